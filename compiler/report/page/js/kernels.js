// Time by kernel and by ONNX node, as tables.
import { PARTS } from "./colours.js";
import { h, legend } from "./dom.js";
import { bytes, percent, round, si } from "./format.js";
import { nodeLinks } from "./links.js";
import { openKernel, openNode } from "./panel.js";
import { traffic } from "./run.js";
import { table } from "./table.js";

/** The content of the section: needs kernels. */
export function buildKernels(run) {
  const content = [h("h3", null, "By kernel"), table(run.kernels, kernelColumns(run), { csv: "kernels", sort: [2, true], opens: (k) => openKernel(k.kernel) })];
  if (run.profile) {
    content.splice(0, 0, h("p", { class: "soft" }, "A kernel is charged the time by which it delays the end of the run, so the times add up to the run; utilisation is of the whole chip's peak over its own span."), splitLegend());
    content.push(h("h3", null, "By ONNX node"), table(run.profile.nodes, nodeColumns(run), { csv: "nodes", sort: [2, true], opens: (n) => (run.nodes.has(n.node) ? openNode(n.node) : openKernel(n.kernels[0])) }));
  }
  return content;
}

function kernelColumns(run) {
  const columns = [
    { name: "kernel", value: (k) => k.kernel, long: true },
    { name: "ONNX nodes", value: (k) => k.loc.join(" "), show: (k) => nodeLinks(run, k.loc, 2), long: true },
    { name: run.profile ? "cycles" : "expected cycles", value: (k) => k.cycles, number: true },
    { name: "time", unit: "s", value: (k) => (k.cycles === null ? null : k.cycles / run.clock), show: (k) => (k.cycles === null ? "–" : si(k.cycles / run.clock, "s")), number: true },
    { name: "share", value: (k) => k.share, show: (k) => percent(k.share), number: true },
    { name: "bound by", value: (k) => k.bound_by },
  ];
  if (!run.profile) return columns;
  return [...columns,
    { name: "expected", unit: "cycles", help: "cycles by the cost model", value: (k) => k.expected, number: true },
    ...timeColumns(),
    { name: "units", value: (k) => k.units, number: true },
    { name: "GMAC", value: (k) => (k.macs ?? 0) / 1e9, show: (k) => (k.macs ? round(k.macs / 1e9) : "–"), number: true },
    { name: "l2", unit: "bytes", help: "bytes read and written", value: (k) => traffic(k, "l2"), show: (k) => bytes(traffic(k, "l2")), number: true },
    { name: "hbm", unit: "bytes", help: "bytes read and written, and brought to l2 for it", value: (k) => traffic(k, "hbm"), show: (k) => bytes(traffic(k, "hbm")), number: true },
  ];
}

function nodeColumns(run) {
  const moved = (n, space) => n.read_bytes[space] + n.write_bytes[space];
  return [
    { name: "node", value: (n) => n.node, long: true },
    { name: "fused with it", value: (n) => n.fused.join(" "), show: (n) => nodeLinks(run, n.fused, 2), long: true },
    { name: "cycles", value: (n) => n.cycles, number: true },
    { name: "time", unit: "s", value: (n) => n.cycles / run.clock, show: (n) => si(n.cycles / run.clock, "s"), number: true },
    { name: "share", value: (n) => n.share, show: (n) => percent(n.share), number: true },
    { name: "bound by", value: (n) => n.bound_by },
    { name: "kernels", value: (n) => n.kernels.length, number: true },
    ...timeColumns(),
    { name: "l2", unit: "bytes", value: (n) => moved(n, "l2"), show: (n) => bytes(moved(n, "l2")), number: true },
    { name: "hbm", unit: "bytes", value: (n) => moved(n, "hbm"), show: (n) => bytes(moved(n, "hbm")), number: true },
  ];
}

function timeColumns() {
  return [
    { name: "time by part", unit: "cycles", help: "see the legend", value: (r) => splitText(r), show: (r) => splitBar(r.split) },
    { name: "tensor", help: "use of the chip's peak", value: (r) => r.utilisation?.tensor, show: (r) => percent(r.utilisation?.tensor), number: true },
  ];
}

function splitText(row) {
  return Object.entries(row.split ?? {}).map(([part, cycles]) => `${part} ${Math.round(cycles)}`).join(" ");
}

/** A bar of a kernel's time by part. */
export function splitBar(split) {
  const total = Object.values(split ?? {}).reduce((a, b) => a + b, 0);
  if (!total) return "–";
  return h("span", { class: "bar", style: "min-width:110px", title: Object.entries(split).map(([p, c]) => `${p} ${percent(c / total)}`).join(", ") },
    Object.entries(split).map(([part, cycles]) => h("span", { style: `width:${(100 * cycles) / total}%;background:${PARTS[part]}` })));
}

/** The legend of these bars. */
export function splitLegend() {
  return legend(["tensor", "vector", "l1", "l2", "hbm", "latency", "sync", "idle"].map((part) => [part, PARTS[part]]));
}
