// The passes: what each changed in the text, what it expects to gain, the error after it, and its remarks.
import { diffLines, diffView } from "./diff.js";
import { choice, h, tools } from "./dom.js";
import { counted, decibels, percent, whole } from "./format.js";
import { nodeLinks } from "./links.js";
import { table } from "./table.js";

let selectPass = null;

/** The content of the section. */
export function buildPasses(run) {
  const rows = passRows(run);
  const detail = h("div");
  const list = h("div");
  let chosen = null;
  const columns = passColumns(rows);
  const draw = () => list.replaceChildren(table(rows, columns, {
    csv: "passes", tall: true, opens: select, mark: (row) => (row === chosen ? "selected" : row.changed ? "" : "unchanged"),
  }));
  function select(row) {
    chosen = row;
    draw();
    detail.replaceChildren(...passDetail(run, row));
  }
  selectPass = (number) => rows[number] && select(rows[number]);
  const first = rows.reduce((most, row) => (row.size > (most?.size ?? -1) ? row : most), null);
  if (first) select(first);
  return [h("p", { class: "soft" }, "Every pass in order; a click shows what it changed and why. Expected cycles are the cost model's for all kernels, one after the other, before they are simulated."), list, detail];
}

/** Show a pass, by its place in the record. */
export function openPass(number) {
  selectPass?.(number);
}

function passRows(run) {
  let kernels = null, expected = null, segment = -1;
  return run.record.passes.map((pass, number) => {
    if (pass.segment !== segment) [kernels, expected, segment] = [null, null, pass.segment];
    const change = pass.change ?? null;
    const row = {
      ...pass, number, change, changed: pass.changed ?? true, remarks: pass.remarks ?? [],
      before: [kernels, expected], size: (change?.added ?? 0) + (change?.removed ?? 0) + (change ? 0 : (pass.remarks ?? []).length / 1e6),
      error: worstError(pass.error),
    };
    if (change) [kernels, expected] = [change.kernels, change.expected_clk];
    row.after = [kernels, expected];
    return row;
  });
}

/** The least SQNR of the outputs after a pass; null without --check-passes. */
function worstError(error) {
  const found = Object.values(error?.outputs ?? {}).map((o) => o.sqnr_db).filter((db) => db !== null);
  return found.length ? Math.min(...found) : null;
}

function passColumns(rows) {
  const expectedText = ({ before: [, old], after: [, now] }) => {
    if (now === null) return "–";
    const change = old && Math.abs(now - old) > 0.5 ? ` (${now > old ? "+" : "−"}${percent(Math.abs(now - old) / old)})` : "";
    return `${whole(now)}${change}`;
  };
  const kernelText = ({ before: [old], after: [now] }) => (now === null ? "–" : old !== null && old !== now ? `${whole(old)} → ${whole(now)}` : whole(now));
  const columns = [
    { name: "#", value: (p) => p.number, show: (p) => String(p.number).padStart(2, "0"), number: true },
    { name: "pass", value: (p) => p.pass },
    { name: "options", value: (p) => p.options ?? "" },
  ];
  if (rows.some((p) => p.segment > 0)) columns.push({ name: "part", help: "part of the program", value: (p) => p.segment, number: true });
  if (rows.some((p) => p.change)) {
    columns.push(
      { name: "added", value: (p) => p.change?.added ?? null, show: (p) => (p.change?.added ? h("span", { class: "good" }, `+${whole(p.change.added)}`) : "–"), number: true },
      { name: "removed", value: (p) => p.change?.removed ?? null, show: (p) => (p.change?.removed ? h("span", { class: "bad" }, `−${whole(p.change.removed)}`) : "–"), number: true },
      { name: "kernels", value: (p) => p.after[0], show: kernelText, number: true },
      { name: "expected cycles", value: (p) => p.after[1], show: expectedText, number: true },
    );
  }
  if (rows.some((p) => p.error !== null)) columns.push({ name: "error after it", unit: "dB", help: "least SQNR of the outputs", value: (p) => p.error, show: (p) => decibels(p.error), number: true });
  columns.push({ name: "remarks", value: (p) => p.remarks.length, number: true });
  if (rows.some((p) => p.ms !== undefined)) columns.push({ name: "ms", value: (p) => p.ms ?? null, show: (p) => (p.ms ?? 0).toFixed(1), number: true });
  return columns;
}

function passDetail(run, row) {
  const content = [h("h3", null, `${row.pass}${row.options ? ` ${row.options}` : ""}`)];
  if (row.error !== null) content.push(h("p", null, "After it, against the model: ", Object.entries(run.record.passes[row.number].error.outputs)
    .map(([name, o]) => `${name} ${decibels(o.sqnr_db)}, at most ${o.max_abs?.toExponential(2) ?? "–"}`).join("; ")));
  if (row.remarks.length) content.push(h("details", { open: true }, h("summary", null, counted(row.remarks.length, "remark")), remarkTable(run, row.remarks, row.pass)));
  content.push(...diffPart(row));
  return content;
}

function diffPart(row) {
  const { change } = row;
  if (!change) return [h("p", { class: "soft" }, row.changed ? "What it changed is not in this record: a report of the .onnx has it." : "It changed nothing.")];
  if (!change.diff) return [h("p", { class: "soft" }, row.pass === "import" ? "It made the first graph: there is nothing before it to compare with." : "It changed no text of the graph: its results are at the level of kernels, or addresses.")];
  const holder = h("div");
  const search = h("input", { type: "search", placeholder: "filter lines: a value, an op, a node", size: 40, input: () => draw() });
  const draw = () => {
    const lines = diffLines(change.diff, search.value);
    holder.replaceChildren(lines.length ? diffView(lines) : h("p", { class: "soft" }, "No line contains that."));
  };
  draw();
  return [tools(h("b", null, "What it changed"), h("span", { class: "soft" }, `+${whole(change.added)} −${whole(change.removed)} lines`, change.cut ? `; the last ${whole(change.cut)} are not in the record` : ""), search), holder];
}

/** Remarks as a table, with a choice of their kind. */
export function remarkTable(run, remarks, name) {
  const holder = h("div");
  const kinds = [...new Set(remarks.map((r) => r.kind))];
  const cycles = (r, key) => ({ value: (row) => row[key], show: (row) => (row[key] === null ? "–" : whole(row[key])), number: true, name: r });
  const several = new Set(remarks.map((r) => r.pass)).size > 1;
  const columns = [
    ...(several ? [{ name: "pass", value: (r) => r.pass }] : []),
    { name: "kind", value: (r) => r.kind, show: (r) => h("span", { class: r.kind === "missed" ? "bad" : r.kind === "applied" ? "good" : "soft" }, r.kind) },
    { name: "decision or rule", value: (r) => r.decision },
    { name: "what", value: (r) => r.entity, long: true },
    { name: "nodes", value: (r) => r.nodes.join(" "), show: (r) => nodeLinks(run, r.nodes, 3), long: true },
    { name: "why", value: (r) => r.reason },
    cycles("before", "before_clk"),
    cycles("after", "after_clk"),
    { name: "costs", unit: "cycles", help: "cycles that the refusal costs at least", value: (r) => r.details.lost_clk ?? null, number: true },
    { name: "details", value: (r) => Object.entries(r.details).filter(([key]) => key !== "lost_clk").map(([key, value]) => `${key.replaceAll("_", " ")} ${typeof value === "number" ? whole(value) : value}`).join(", ") },
  ];
  const show = (kind) => holder.replaceChildren(table(remarks.filter((r) => kind === "all" || r.kind === kind), columns, { csv: `remarks-${name}` }));
  show("all");
  return h("div", null, kinds.length > 1 ? tools(choice("kind", [["all", "all"], ...kinds.map((k) => [k, k])], "all", show)) : null, holder);
}
