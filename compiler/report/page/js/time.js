// Where the time goes: the waterfall from the ideal to the run.
import { CAUSES } from "./advice.js";
import { chart } from "./chart.js";
import { OWNERS } from "./colours.js";
import { h } from "./dom.js";
import { percent, si, timeUnit } from "./format.js";
import { table } from "./table.js";

/** The content of the section: needs a profile with a waterfall. */
export function buildTime(run) {
  const rows = waterfallRows(run);
  return [
    h("p", null, "From the time of a perfect machine to that of the run: each step adds what one more imperfection costs, and whose it is. Steps sum to the run."),
    chart((width) => waterfallSpec(run, rows, width)),
    h("details", null, h("summary", null, "as a table"), table(rows, [
      { name: "part", value: (r) => r.part },
      { name: "whose", value: (r) => r.owner },
      { name: "cycles", value: (r) => r.cycles, number: true },
      { name: "time", unit: "s", value: (r) => r.cycles / run.clock, show: (r) => si(r.cycles / run.clock, "s"), number: true },
      { name: "share", value: (r) => r.share, show: (r) => percent(r.share), number: true },
      { name: "what", value: (r) => r.meaning },
    ], { csv: "waterfall" })),
  ];
}

/** The parts with where each begins, the causes of the exposed part after it, and the total. */
function waterfallRows(run) {
  const { parts, total_cycles: total } = run.profile.waterfall;
  const rows = [];
  let reached = 0;
  for (const part of parts) {
    rows.push({ ...part, begin: reached, level: 0 });
    let inner = reached;
    for (const [cause, cycles] of Object.entries(part.causes ?? {})) {
      rows.push({ part: `· ${cause}`, owner: part.owner, meaning: CAUSES[cause], cycles, share: total ? cycles / total : 0, begin: inner, level: 1 });
      inner += cycles;
    }
    reached += part.cycles;
  }
  rows.push({ part: "total", owner: "all", meaning: "the run", cycles: total, share: 1, begin: 0, level: 0 });
  return rows;
}

function waterfallSpec(run, rows, width) {
  const total = run.profile.waterfall.total_cycles / run.clock;
  const [scale, unit] = timeUnit(total);
  const values = rows.map((r) => ({
    part: r.part, owner: r.owner, what: r.meaning, level: r.level,
    from: (r.begin / run.clock) * scale, to: ((r.begin + r.cycles) / run.clock) * scale,
    label: [percent(r.share), ...(r.cycles ? [si(r.cycles / run.clock, "s")] : []), r.meaning].join(" · "),
    time: si(r.cycles / run.clock, "s"), share: percent(r.share), cycles: Math.round(r.cycles),
  }));
  const y = { field: "part", type: "nominal", sort: null, title: null, axis: { grid: false, labelFontSize: 12 } };
  const inside = values.map((v) => ({ ...v, at: v.to > total * scale * 0.62 ? v.from : v.to, right: v.to > total * scale * 0.62 }));
  const owners = [...Object.keys(OWNERS), "all"];
  return {
    width, height: 24 * rows.length,
    data: { values: inside },
    encoding: { y },
    layer: [
      { mark: { type: "bar", height: { band: 0.72 }, minBandSize: 2 },
        encoding: {
          x: { field: "from", type: "quantitative", title: `time in ${unit}`, scale: { domain: [0, total * scale * 1.02], nice: false } },
          x2: { field: "to" },
          color: { field: "owner", type: "nominal", title: "whose it is", scale: { domain: owners, range: [...Object.values(OWNERS), "#8a9099"] } },
          opacity: { condition: { test: "datum.level === 1", value: 0.55 }, value: 1 },
          tooltip: ["part", "owner", "what", "time", "share", "cycles"].map((field) => ({ field, title: field })),
        } },
      { transform: [{ filter: "!datum.right" }],
        mark: { type: "text", align: "left", dx: 6, fontSize: 11 },
        encoding: { x: { field: "at", type: "quantitative" }, text: { field: "label" } } },
      { transform: [{ filter: "datum.right && datum.from > 0" }],
        mark: { type: "text", align: "right", dx: -6, fontSize: 11 },
        encoding: { x: { field: "at", type: "quantitative" }, text: { field: "label" } } },
    ],
  };
}
