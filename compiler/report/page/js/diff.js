// A unified difference, coloured by line, with the words marked that differ between a removed and an added line.
import { h } from "./dom.js";

const KINDS = { "+": "plus", "-": "minus", "@": "hunk" };
const WORDS = /[%@]?[\w.]+|\s+|[^\s\w]/g;
const MOST_WORDS = 400; // words of lines that are compared word by word

/** The lines of `text` whose hunk contains `filter` in any of its lines; all lines for an empty filter. */
export function diffLines(text, filter) {
  const lines = text ? text.split("\n") : [];
  if (!filter) return lines;
  const hunks = [];
  for (const line of lines) {
    if (line.startsWith("@@") || !hunks.length) hunks.push([]);
    hunks.at(-1).push(line);
  }
  const wanted = filter.toLowerCase();
  return hunks.flatMap((hunk) => runsWith(hunk, wanted));
}

/** The head of a hunk with those lines that contain the text, and two lines around each. */
function runsWith(hunk, wanted) {
  const near = new Set();
  hunk.forEach((line, at) => {
    if (line.toLowerCase().includes(wanted)) for (let i = at - 2; i <= at + 2; i += 1) near.add(i);
  });
  return near.size ? hunk.filter((line, at) => near.has(at) || line.startsWith("@@")) : [];
}

/** The lines as an element. */
export function diffView(lines) {
  const view = h("pre", { class: "diff" });
  for (let at = 0; at < lines.length;) {
    const removed = runOf(lines, at, "-");
    const added = runOf(lines, at + removed.length, "+");
    if (removed.length && removed.length === added.length) {
      const pairs = removed.map((line, i) => changedWords(line, added[i]));
      view.append(...pairs.map(([old]) => h("span", { class: "minus" }, old)), ...pairs.map(([, now]) => h("span", { class: "plus" }, now)));
      at += removed.length + added.length;
    } else if (removed.length || added.length) {
      view.append(...[...removed, ...added].map(plainLine));
      at += removed.length + added.length;
    } else {
      view.append(plainLine(lines[at]));
      at += 1;
    }
  }
  return view;
}

function plainLine(line) {
  return h("span", { class: KINDS[line[0]] ?? null }, line || " ");
}

function runOf(lines, start, sign) {
  let end = start;
  while (end < lines.length && lines[end].startsWith(sign)) end += 1;
  return lines.slice(start, end);
}

/** Both lines with the words marked between what they begin and end with alike. */
function changedWords(old, now) {
  const [a, b] = [old.slice(1).match(WORDS) ?? [], now.slice(1).match(WORDS) ?? []];
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return [[old], [now]];
  let first = 0;
  while (first < a.length && first < b.length && a[first] === b[first]) first += 1;
  let last = 0;
  while (last < a.length - first && last < b.length - first && a.at(-1 - last) === b.at(-1 - last)) last += 1;
  const marked = (sign, words) => {
    const middle = words.slice(first, words.length - last).join("");
    return [sign, words.slice(0, first).join(""), middle ? h("mark", null, middle) : "", words.slice(words.length - last).join("")];
  };
  return [marked("-", a), marked("+", b)];
}
