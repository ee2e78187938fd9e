// The panel at the right: all about one kernel or one ONNX node.
import { adviceForKernel, timeOf } from "./advice.js";
import { STALLS } from "./colours.js";
import { h, legend } from "./dom.js";
import { bytes, decibels, percent, round, si, whole } from "./format.js";
import { splitBar, splitLegend } from "./kernels.js";
import { revealNode } from "./graph.js";
import { kernelLink, nodeLink, nodeLinks } from "./links.js";
import { remarkTable } from "./passes.js";
import { remarksOfKernel } from "./run.js";
import { openSection } from "./sections.js";
import { facts, smallTable } from "./table.js";

const panelState = { run: null, picked: () => {} };

/** Set the run that panels are about; `picked(node names)` marks nodes in the graph. */
export function preparePanel(run, picked) {
  Object.assign(panelState, { run, picked });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closePanel(); });
}

function showPanel(title, kind, ...content) {
  const panel = document.getElementById("panel");
  panel.replaceChildren(h("button", { class: "close", type: "button", click: closePanel, title: "close (Esc)" }, "✕"),
    h("span", { class: "soft" }, kind), h("h2", null, title), ...content.flat(Infinity).filter(Boolean));
  panel.hidden = false;
  panel.scrollTop = 0;
}

/** Close the panel. */
export function closePanel() {
  document.getElementById("panel").hidden = true;
  panelState.picked([]);
}

/** Show a kernel. */
export function openKernel(name) {
  const { run } = panelState;
  const kernel = run.kernel.get(name);
  if (!kernel) return;
  panelState.picked(kernel.loc);
  const tile = run.tiled.get(name);
  showPanel(name, "kernel", graphLink(kernel.loc),
    kernelTime(run, kernel),
    part("ONNX nodes", h("p", { class: "nodes" }, nodeLinks(run, kernel.loc))),
    tile && part("Tiles", facts([["sizes / tile", tile.details.tiles], ["units", whole(tile.details.units)], ["expected", `${whole(tile.after_clk)} cycles`]])),
    kernel.measured ? [work(run, kernel), queues(kernel)] : null,
    tensors(run, kernel),
    folded("Remarks", remarksOfKernel(run, kernel), (found) => remarkTable(run, found, name)),
    kernel.loops && h("details", { open: true }, h("summary", null, h("b", null, "Loop nest, rings and vector programs")), h("pre", null, kernel.loops)),
    kernel.streams && h("details", { open: !kernel.loops }, h("summary", null, h("b", null, "Streams of instructions")), h("pre", null, kernel.streams)));
}

/** Show an ONNX node. */
export function openNode(name) {
  const { run } = panelState;
  const node = run.nodes.get(name);
  if (!node) return;
  panelState.picked([name]);
  const kernels = run.kernelsOf.get(name) ?? [];
  const types = run.record.graph.types;
  const neighbours = (tensors, direction) => tensors.map((tensor) => h("div", null, tensor, h("span", { class: "soft" }, ` ${types[tensor] ?? ""} `), others(run, node, tensor, direction)));
  const error = run.errors.get(name);
  showPanel(name, `ONNX node, ${node.op}`, graphLink([name]),
    node.path.length ? h("p", { class: "soft" }, `in ${node.path.at(-1)}`) : null,
    error === undefined ? null : h("p", null, `Its result has ${decibels(error)} SQNR.`),
    part("Kernels", kernels.length
      ? smallTable(["kernel", "time", "share", "bound by"], kernels.map((k) => [kernelLink(k.kernel), k.cycles === null ? "–" : timeOf(run, k.cycles), percent(k.share), k.bound_by ?? "–"]), 1, 3)
      : h("p", null, run.host.has(name) ? "It runs on the host." : "No kernel: it was computed at compile time, or only changes how a tensor is read.")),
    kernels.length ? h("p", { class: "soft" }, "Times are of whole kernels, with all nodes that are fused in them.") : null,
    part("Reads", neighbours(node.reads, "writes"), node.weights ? h("div", { class: "soft" }, `and ${node.weights === 1 ? "a weight" : `${node.weights} weights`}`) : null),
    part("Writes", neighbours(node.writes, "reads")),
    folded("Remarks", run.remarksOf.get(name) ?? [], (found) => remarkTable(run, found, name)));
}

/** A link that opens the graph where the first of some nodes is, with all of them outlined. */
function graphLink(names) {
  const first = names.find((name) => panelState.run.nodes.has(name));
  return first && h("p", null, h("a", { click: () => { openSection("graph"); setTimeout(() => revealNode(first, names), 0); } }, "show in the graph"));
}

/** Links to the nodes that write (or read) a tensor. */
function others(run, node, tensor, direction) {
  const found = [...run.nodes.values()].filter((n) => n !== node && n[direction].includes(tensor));
  return found.length ? [direction === "writes" ? "from " : "to ", found.map((n, at) => [at ? ", " : "", nodeLink(n.node)])] : null;
}

function part(title, ...content) {
  return [h("h3", null, title), ...content];
}

function folded(title, items, show) {
  if (!items.length) return null;
  const body = h("div");
  const details = h("details", { toggle: () => { if (details.open && !body.childElementCount) body.append(show(items)); } },
    h("summary", null, h("b", null, `${title} (${whole(items.length)})`)), body);
  return details;
}

function kernelTime(run, kernel) {
  if (kernel.cycles === null) return null;
  const share = percent(kernel.share);
  return [
    h("p", null, h("b", null, `${timeOf(run, kernel.cycles)}, ${whole(kernel.cycles)} cycles`), `, ${share} of the ${kernel.measured ? "run" : "expected time"}`, kernel.bound_by ? `, bound by ${kernel.bound_by}` : ""),
    h("p", null, adviceForKernel(kernel)),
    kernel.split ? [splitBar(kernel.split), splitLegend()] : null,
  ];
}

function work(run, kernel) {
  const span = (kernel.end - kernel.start) / run.clock;
  const moved = ["l2", "hbm"].map((space) => [`${space} traffic`, `${bytes(kernel.read_bytes[space])} read, ${bytes(kernel.write_bytes[space])} written`]);
  return part("Work", facts([
    ["from, to", `${si(kernel.start / run.clock, "s")} – ${si(kernel.end / run.clock, "s")}`],
    ["units", `${whole(kernel.units)} of ${whole(run.record.target.units)}`],
    ["multiply-accumulates", kernel.macs ? `${si(kernel.macs, "")} (${round((2 * kernel.macs) / span / 1e12)} TOPS)` : "none"],
    ...moved,
    ...(kernel.staged ? [["brought to l2 for it", bytes(kernel.staged)]] : []),
    ["use of the chip's peak", Object.entries(kernel.utilisation).map(([engine, share]) => `${engine} ${percent(share)}`).join(", ")],
  ]));
}

/** Shares of a queue's time on all units: busy, and stalled by cause. */
export function queueShares(kernel, queue) {
  const all = kernel.units * (kernel.end - kernel.start);
  return all ? Object.entries({ busy: kernel.busy[queue], ...kernel.stall[queue] }).map(([cause, cycles]) => [cause, cycles / all]) : [];
}

function queues(kernel) {
  const names = Object.keys(kernel.instructions).filter((queue) => kernel.instructions[queue]);
  const bar = (queue) => h("span", { class: "bar", style: "width:120px" }, queueShares(kernel, queue).map(([cause, share]) =>
    h("span", { title: `${cause} ${percent(share)}`, style: `width:${100 * share}%;background:${STALLS[cause]}` })));
  const stalls = (queue) => queueShares(kernel, queue).filter(([cause, share]) => cause !== "busy" && share > 0.005).sort((a, b) => b[1] - a[1]).slice(0, 2).map(([cause, share]) => `${cause} ${percent(share, 0)}`).join(", ");
  return part("Queues: busy, and what they wait for", legend(Object.entries(STALLS)),
    smallTable(["queue", "instructions", "busy", "of its time", "stalls"], names.map((queue) => [queue, whole(kernel.instructions[queue]), percent(kernel.busy[queue] / (kernel.units * (kernel.end - kernel.start) || 1), 0), bar(queue), stalls(queue) || "–"]), 1, 3));
}

function tensors(run, kernel) {
  const row = (access) => (name) => {
    const tensor = run.record.tensors?.[name] ?? {};
    return [name, access, tensor.type ?? "", tensor.bytes === undefined ? "–" : bytes(tensor.bytes), tensor.copy_of ? `${tensor.space}, copied from hbm` : tensor.space ?? ""];
  };
  const rows = [...(kernel.reads ?? []).map(row("read")), ...(kernel.writes ?? []).map(row("written"))];
  return rows.length ? part("Tensors", smallTable(["tensor", "", "type", "bytes", "memory"], rows, 3, 4)) : null;
}
