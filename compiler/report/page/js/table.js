// Tables that sort by a click on a column, filter as one types, and save themselves as CSV.
import { h, saveButton, tools } from "./dom.js";
import { whole } from "./format.js";

const SHOWN_ROWS = 400; // rows in the document; the rest by a click, and in the CSV always

/** A table of `rows`. Columns: {name, value(row), show(row)?, number?, unit?, long?}; `show` gives text or an element,
 * `unit` is that of the value in CSV, and texts of `long` columns may break anywhere. Options: `csv`
 * is the name of the file, `opens(row)` what a click does, `sort` [column, falling], `key(row)` marks a row. */
export function table(rows, columns, options = {}) {
  const state = { sort: options.sort ?? null, filter: "", all: false };
  const body = h("tbody");
  const counter = h("span", { class: "soft" });
  const heads = columns.map((column, at) => h("th", {
    class: column.number ? "number" : null, title: column.help ?? "sort",
    click: () => {
      const falling = state.sort?.[0] === at ? !state.sort[1] : Boolean(column.number);
      state.sort = [at, falling];
      draw();
    },
  }, column.name));
  const search = h("input", { type: "search", placeholder: "filter", "aria-label": "filter",
    input: () => { state.filter = search.value.toLowerCase(); draw(); } });

  function draw() {
    const found = arranged(rows, columns, state);
    const shown = state.all ? found : found.slice(0, SHOWN_ROWS);
    body.replaceChildren(...shown.map((row) => tableRow(row, columns, options)));
    heads.forEach((head, at) => {
      const mark = state.sort?.[0] === at ? (state.sort[1] ? " ▾" : " ▴") : "";
      head.textContent = columns[at].name + mark;
    });
    counter.replaceChildren(found.length === rows.length ? `${whole(rows.length)} rows` : `${whole(found.length)} of ${whole(rows.length)} rows`);
    if (shown.length < found.length) {
      counter.append(" ", h("a", { click: () => { state.all = true; draw(); } }, "show all"));
    }
  }
  draw();
  return h("div", null,
    tools(search, counter, h("span", { class: "grow" }),
      saveButton("CSV", `${options.csv ?? "table"}.csv`, () => csvText(arranged(rows, columns, state), columns))),
    h("div", { class: options.tall ? "table tall" : "table" }, h("table", null, h("thead", null, h("tr", null, heads)), body)));
}

function tableRow(row, columns, options) {
  return h("tr", {
    class: [options.opens ? "opens" : "", options.mark?.(row) ?? ""].join(" ").trim() || null,
    click: options.opens ? () => options.opens(row) : null,
  }, columns.map((column) =>
    h("td", { class: column.number ? "number" : column.long ? "name" : null }, shownValue(row, column))));
}

function shownValue(row, column) {
  const value = column.show ? column.show(row) : column.value(row);
  return value === null || value === undefined ? "–" : typeof value === "number" ? whole(value) : value;
}

function arranged(rows, columns, state) {
  const found = state.filter
    ? rows.filter((row) => columns.some((c) => String(c.value(row) ?? "").toLowerCase().includes(state.filter)))
    : [...rows];
  if (!state.sort) return found;
  const [at, falling] = state.sort;
  const order = (a, b) => {
    const [x, y] = [columns[at].value(a), columns[at].value(b)];
    if (x === null || x === undefined || y === null || y === undefined) return (x ?? null) === (y ?? null) ? 0 : (x ?? null) === null ? 1 : -1;
    const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return falling ? -sign : sign;
  };
  return found.sort(order);
}

/** Rows as CSV (RFC 4180). A leading = + - @ of a text would be a formula in a spreadsheet: it gets an apostrophe. */
export function csvText(rows, columns) {
  const cell = (value) => {
    if (typeof value === "number") return String(value);
    const text = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = rows.map((row) => columns.map((c) => cell(c.value(row))).join(","));
  return [columns.map((c) => cell(c.unit ? `${c.name} (${c.unit})` : c.name)).join(","), ...lines, ""].join("\r\n");
}

/** A small table of label and value. */
export function facts(pairs) {
  return h("div", { class: "plain" }, h("table", null, h("tbody", null, pairs.map(([label, ...values]) =>
    h("tr", null, h("td", { class: "soft" }, label), values.map((v) => h("td", { class: "number" }, v)))))));
}

/** A small table with column heads; columns from `first` up to `end` hold numbers. */
export function smallTable(heads, rows, first, end) {
  const kind = (at) => (at >= first && at < end ? "number" : at === 0 ? "name" : null);
  return h("div", { class: "plain" }, h("table", null,
    h("thead", null, h("tr", null, heads.map((name, at) => h("th", { class: kind(at) }, name)))),
    h("tbody", null, rows.map((row) => h("tr", null, row.map((v, at) => h("td", { class: kind(at) }, v)))))));
}
