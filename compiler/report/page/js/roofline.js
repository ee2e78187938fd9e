// The roofline: every kernel by its arithmetic intensity and the arithmetic that it achieves.
import { chart } from "./chart.js";
import { PARTS } from "./colours.js";
import { choice, h, tools } from "./dom.js";
import { bytes, counted, percent, round, si } from "./format.js";
import { openKernel } from "./panel.js";
import { traffic } from "./run.js";

const NO_TRAFFIC = "no traffic of that memory";
const WITH_TRAFFIC = "by its traffic";

/** The content of the section: needs a profile. */
export function buildRoofline(run) {
  const holder = h("div");
  const show = (space) => holder.replaceChildren(...roofline(run, space));
  show("hbm");
  return [tools(choice("intensity against", [["hbm", "device memory (hbm)"], ["l2", "l2"]], "hbm", show)), holder];
}

function roofline(run, space) {
  const timed = run.kernels.filter((k) => k.measured && k.macs > 0 && k.end > k.start);
  const others = run.kernels.length - timed.length;
  const points = timed.map((k) => point(run, k, space));
  const finite = points.map((p) => p.intensity).filter(Number.isFinite);
  const ridges = Object.values(run.record.target.ridge_ops_per_byte);
  const high = 10 ** Math.ceil(Math.log10(2 * Math.max(...finite, ...ridges)));
  const low = 10 ** Math.floor(Math.log10(0.5 * Math.min(...finite, ...ridges)));
  const values = points.map((p) => ({ ...p, x: Number.isFinite(p.intensity) ? p.intensity : high, y: p.tops }));
  const about = space === "hbm" ? " Weights that copies bring to l2 ahead count for the kernel that first reads them." : "";
  return [
    h("p", { class: "soft" }, `Operations are multiplications and additions of products; time is a kernel's own span, which may overlap with others'.${about} `,
      others ? `${counted(others, "kernel")} without products: not here, but in the table of kernels.` : ""),
    chart((width) => rooflineSpec(run, space, values, [low, high], width), (datum) => datum.kernel && openKernel(datum.kernel)),
  ];
}

function point(run, kernel, space) {
  const moved = traffic(kernel, space);
  const seconds = (kernel.end - kernel.start) / run.clock;
  const tops = (2 * kernel.macs) / seconds / 1e12;
  const intensity = moved ? (2 * kernel.macs) / moved : Infinity;
  return {
    kernel: kernel.kernel, nodes: kernel.loc.slice(0, 4).join(", "), bound: kernel.bound_by, tops, intensity,
    shape: moved ? WITH_TRAFFIC : NO_TRAFFIC, achieved: `${round(tops)} TOPS`, span: si(seconds, "s"), share: percent(kernel.share),
    "operations a byte": moved ? round(intensity) : "no bytes", moved: bytes(moved), operations: si(2 * kernel.macs, ""),
  };
}

/** Roofs: the bandwidth's slope up to each peak; formats of the same peak share a line. */
function roofs(run, space, [low, high]) {
  const rate = run.record.target[`${space}_gbs`] / 1e3; // TB/s: TOPS at one operation a byte
  const peaks = new Map();
  for (const [format, peak] of Object.entries(run.record.target.peak_tops)) peaks.set(peak, [...(peaks.get(peak) ?? []), format]);
  return [...peaks].flatMap(([peak, formats]) => {
    const name = `${formats.join(", ")}: ${round(peak)} TOPS`;
    const ridge = peak / rate;
    return [[low, rate * low], [ridge, peak], [high, peak]].map(([x, y]) => ({ roof: name, peak, x, y }));
  });
}

/** 1, 2 and 5 of each decade. */
function ticks(low, high) {
  const found = [];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade += 1) found.push(...[1, 2, 5].map((digit) => digit * 10 ** decade));
  return found;
}

function rooflineSpec(run, space, values, domain, width) {
  const lines = roofs(run, space, domain);
  const bottom = Math.min(...values.map((v) => v.y), ...lines.map((l) => l.y));
  const top = Math.max(...lines.map((l) => l.y));
  const y = { type: "quantitative", scale: { type: "log", domain: [10 ** Math.floor(Math.log10(bottom)), 10 ** Math.ceil(Math.log10(top))] }, title: "achieved TOPS", axis: { format: ",~r", values: ticks(bottom, top * 10) } };
  const x = { type: "quantitative", scale: { type: "log", domain, nice: false }, title: `arithmetic intensity in operations per byte of ${space} (${round(run.record.target[`${space}_gbs`])} GB/s)`, axis: { format: ",~r", values: ticks(...domain) } };
  const bounds = Object.keys(PARTS).filter((part) => values.some((v) => v.bound === part));
  const tip = ["kernel", "nodes", "bound", "achieved", "operations a byte", "operations", "moved", "span", "share"];
  return {
    width, height: 420,
    layer: [
      { data: { values: lines }, mark: { type: "line", strokeWidth: 1.5 },
        encoding: { x: { field: "x", ...x }, y: { field: "y", ...y },
          strokeDash: { field: "roof", type: "nominal", title: "roof", sort: null, legend: { orient: "right", symbolStrokeWidth: 1.5, columns: 1 } },
          color: { value: "#8a9099" } } },
      { data: { values }, mark: { type: "point", filled: true, size: 70, opacity: 0.8, cursor: "pointer" },
        encoding: { x: { field: "x", ...x }, y: { field: "y", ...y },
          color: { field: "bound", type: "nominal", title: "bound by", scale: { domain: bounds, range: bounds.map((b) => PARTS[b]) }, legend: { orient: "right", columns: 1 } },
          shape: { field: "shape", type: "nominal", title: "intensity", scale: { domain: [WITH_TRAFFIC, NO_TRAFFIC], range: ["circle", "triangle-right"] }, legend: { orient: "right", columns: 1 } },
          tooltip: tip.map((field) => ({ field, title: field })) } },
    ],
    resolve: { scale: { color: "independent" } },
  };
}
