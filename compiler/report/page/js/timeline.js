// The run over time: kernels with the units that they use, and what the queues of each did meanwhile.
import { chart } from "./chart.js";
import { PARTS, STALLS } from "./colours.js";
import { choice, h, tools } from "./dom.js";
import { counted, percent, si, timeUnit, whole } from "./format.js";
import { openKernel, queueShares } from "./panel.js";

const QUEUES = ["load", "tensor", "vector", "store"];

/** The content of the section: needs a profile. */
export function buildTimeline(run) {
  const placed = lanes(run.kernels.filter((k) => k.measured && k.end > k.start));
  const holder = h("div");
  const show = (most) => {
    const costliest = [...placed].sort((a, b) => b.cycles - a.cycles).slice(0, Number(most));
    holder.replaceChildren(chart((width) => queuesSpec(costliest, width), (datum) => datum.kernel && openKernel(datum.kernel)));
  };
  show(20);
  return [
    h("p", { class: "soft" }, `${counted(placed.length, "kernel")}; a bar is as high as the share of the ${whole(run.record.target.units)} units that it uses. Kernels that overlap are in different rows: the next one loads while the last one computes. Drag to move, turn the wheel to zoom, double-click to see all.`),
    chart((width) => timelineSpec(run, placed, width), (datum) => datum.kernel && openKernel(datum.kernel)),
    h("h3", null, "What queues did"),
    tools(choice("kernels", [[20, "the 20 costliest"], [60, "the 60 costliest"], [placed.length, "all"]], 20, show),
      h("span", { class: "soft" }, "Shares of the queue's time on all units of the kernel, from its start to its end; the rest is before its first and after its last instruction.")),
    holder,
  ];
}

/** Kernels with the first row that is free when each starts. */
function lanes(kernels) {
  const free = [];
  return [...kernels].sort((a, b) => a.start - b.start).map((kernel) => {
    let lane = free.findIndex((end) => end <= kernel.start);
    if (lane < 0) lane = free.push(0) - 1;
    free[lane] = kernel.end;
    return { ...kernel, lane };
  });
}

function timelineSpec(run, kernels, width) {
  const [scale, unit] = timeUnit(run.profile.seconds);
  const rows = Math.max(...kernels.map((k) => k.lane), 0) + 1;
  const bounds = Object.keys(PARTS).filter((part) => kernels.some((k) => k.bound_by === part));
  const values = kernels.map((k) => ({
    kernel: k.kernel, nodes: k.loc.slice(0, 4).join(", "), bound: k.bound_by, from: (k.start / run.clock) * scale, to: (k.end / run.clock) * scale,
    low: rows - k.lane - 1 + 0.05, high: rows - k.lane - 1 + 0.05 + (0.9 * k.units) / run.record.target.units,
    units: `${k.units} of ${run.record.target.units}`, span: si((k.end - k.start) / run.clock, "s"), charged: `${si(k.cycles / run.clock, "s")}, ${percent(k.share)}`,
  }));
  const tip = ["kernel", "nodes", "bound", "units", "span", "charged"];
  return {
    width, height: Math.min(420, 56 * rows + 10),
    data: { values },
    params: [{ name: "zoom", select: { type: "interval", encodings: ["x"] }, bind: "scales" }],
    mark: { type: "rect", stroke: "#00000066", strokeWidth: 0.5, cursor: "pointer", clip: true },
    encoding: {
      x: { field: "from", type: "quantitative", title: `time in ${unit}`, scale: { domain: [0, run.profile.seconds * scale], nice: false } },
      x2: { field: "to" },
      y: { field: "low", type: "quantitative", title: null, scale: { domain: [0, rows], nice: false }, axis: { labels: false, ticks: false, values: Array.from({ length: rows + 1 }, (_, i) => i) } },
      y2: { field: "high" },
      color: { field: "bound", type: "nominal", title: "bound by", scale: { domain: bounds, range: bounds.map((b) => PARTS[b]) } },
      tooltip: tip.map((field) => ({ field, title: field })),
    },
  };
}

function queuesSpec(kernels, width) {
  const values = kernels.flatMap((k) => QUEUES.flatMap((queue) => queueShares(k, queue).map(([state, share], order) =>
    ({ kernel: k.kernel, queue, state, share, order, percent: percent(share) }))));
  return {
    data: { values },
    facet: { column: { field: "queue", type: "nominal", title: null, sort: QUEUES } },
    spec: {
      width: Math.max(120, (width - 260) / QUEUES.length - 20), height: { step: 17 },
      mark: { type: "bar", cursor: "pointer" },
      encoding: {
        y: { field: "kernel", type: "nominal", sort: null, title: null, axis: { labelLimit: 220 } },
        x: { field: "share", type: "quantitative", title: "share of its time", stack: true, scale: { domain: [0, 1] }, axis: { format: ".0%", tickCount: 3 } },
        color: { field: "state", type: "nominal", title: "busy, or waiting for", sort: Object.keys(STALLS), scale: { domain: Object.keys(STALLS), range: Object.values(STALLS) } },
        order: { field: "order" },
        tooltip: [["kernel", "kernel"], ["queue", "queue"], ["state", "busy, or waiting for"], ["percent", "share"]].map(([field, title]) => ({ field, title })),
      },
    },
    autosize: { type: "pad" },
  };
}
