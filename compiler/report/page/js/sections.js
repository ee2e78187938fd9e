// The sections of the page: folded, filled when first opened, and reachable by the fragment of the address.
import { h } from "./dom.js";

const sections = new Map();

/** A section. `build()` returns its content; null for `build` leaves it out, and `missing` says what would give it. */
export function section(id, title, lede, build, missing) {
  const body = h("div", { class: "body" });
  const element = h("details", { class: "section", id, toggle: () => fillSection(id) },
    h("summary", null, h("h2", null, title), h("span", { class: "soft" }, build ? lede : "not in this record")), body);
  sections.set(id, { element, body, build: build ?? (() => [h("p", { class: "soft" }, missing)]), title, present: Boolean(build), filled: false });
  return element;
}

function fillSection(id) {
  const entry = sections.get(id);
  if (!entry.element.open || entry.filled) return;
  entry.filled = true;
  entry.body.append(...entry.build().flat(Infinity).filter(Boolean));
}

/** Open a section and scroll to it. */
export function openSection(id, scroll = true) {
  const entry = sections.get(id);
  if (!entry) return;
  entry.element.open = true;
  fillSection(id);
  if (scroll) entry.element.scrollIntoView();
}

/** Links to all sections. */
export function contents() {
  return h("div", null, [...sections].map(([id, entry]) =>
    h("a", { class: entry.present ? null : "missing", click: () => openSection(id) }, entry.title)));
}

/** Open every section. */
export function openAll() {
  for (const id of sections.keys()) openSection(id, false);
}
