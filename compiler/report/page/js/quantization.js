// What 8 bits cost and bring: sensitivity of each layer, and accuracy against the share of products in 8 bits.
import { chart } from "./chart.js";
import { h } from "./dom.js";
import { counted, decibels, percent, si } from "./format.js";
import { nodeLink } from "./links.js";
import { openNode } from "./panel.js";
import { table } from "./table.js";

const SHOWN_LAYERS = 40; // layers of the chart, the noisiest
const MET = "goal met", MISSED = "goal missed", BF16 = "all in bf16", CHOSEN = "as decided";

/** The content of the section: needs what `quantize` found. */
export function buildQuantization(run) {
  const found = run.record.quantize;
  const open = (datum) => datum.layer && openNode(datum.layer);
  return [
    h("p", null, `${percent(found.share)} of the multiply-accumulates in 8 bits: ${decibels(found.accuracy.sqnr_db)}, agreement ${percent(found.accuracy.agreement, 2)}; ${si(found.time.seconds, "s")} simulated, ${found.time.speedup.toFixed(2)} × bf16 (${si(found.time.bf16_seconds, "s")}).`,
      found.metric ? ` Task metric: ${found.metric.quantized.toPrecision(4)}, of the model in fp32 ${found.metric.fp32.toPrecision(4)}.` : ""),
    h("h3", null, "Accuracy against the share in 8 bits"),
    chart((width) => paretoSpec(found, width)),
    found.pareto.length ? null : h("p", { class: "soft" }, "One point only: a search with goals (--precision mixed) tries more."),
    h("h3", null, `Sensitivity: SQNR of the outputs with one layer alone in 8 bits${found.layers.length > SHOWN_LAYERS ? `, the ${SHOWN_LAYERS} noisiest of ${counted(found.layers.length, "layer")}` : ""}`),
    chart((width) => sensitivitySpec(run, found, width), open),
    table(found.layers, layerColumns(run), { csv: "layers", sort: [4, false] }),
  ].filter(Boolean);
}

function layerColumns(run) {
  return [
    { name: "layer", value: (l) => l.layer, long: true, show: (l) => (run.nodes.has(l.layer) ? nodeLink(l.layer) : l.layer) },
    { name: "kind", value: (l) => l.kind },
    { name: "format", value: (l) => l.format },
    { name: "scales", value: (l) => l.scales },
    { name: "alone", unit: "dB", help: "SQNR of the outputs, with this layer alone in 8 bits", value: (l) => l.isolated_sqnr_db, show: (l) => decibels(l.isolated_sqnr_db), number: true },
    { name: "so far", unit: "dB", help: "SQNR of its result, with all layers in 8 bits", value: (l) => l.accumulated_sqnr_db, show: (l) => decibels(l.accumulated_sqnr_db), number: true },
    { name: "cosine", value: (l) => l.cosine, show: (l) => l.cosine?.toFixed(5) ?? "–", number: true },
    { name: "clipped", value: (l) => l.clipped, show: (l) => percent(l.clipped, 2), number: true },
    { name: "MACs", value: (l) => l.macs, show: (l) => si(l.macs, ""), number: true },
    { name: "saves", unit: "s", help: "its time in bf16 less that in 8 bits", value: (l) => l.saved_seconds, show: (l) => si(l.saved_seconds, "s"), number: true },
  ];
}

function sensitivitySpec(run, found, width) {
  const noisiest = [...found.layers].filter((l) => l.isolated_sqnr_db !== null).sort((a, b) => a.isolated_sqnr_db - b.isolated_sqnr_db).slice(0, SHOWN_LAYERS);
  const values = noisiest.map((l) => ({ layer: l.layer, kind: l.kind, format: l.format, db: l.isolated_sqnr_db, alone: decibels(l.isolated_sqnr_db), "so far": decibels(l.accumulated_sqnr_db), saves: si(l.saved_seconds, "s") }));
  const tip = ["layer", "kind", "format", "alone", "so far", "saves"];
  return {
    width, height: 18 * values.length, data: { values },
    mark: { type: "bar", cursor: "pointer" },
    encoding: {
      y: { field: "layer", type: "nominal", sort: null, title: null, axis: { labelLimit: 260 } },
      x: { field: "db", type: "quantitative", title: "SQNR of the outputs in dB, this layer alone in 8 bits (less is worse)", scale: { zero: true } },
      color: { field: "format", type: "nominal", title: "format", scale: { scheme: "tableau10" } },
      tooltip: tip.map((field) => ({ field, title: field })),
    },
  };
}

/** Points of the search, among them that of bf16 where it went so far (no product in 8 bits), and the decision. */
function paretoPoints(found) {
  const points = found.pareto.map((p) => ({ share: p.share, db: p.sqnr_db, state: p.share ? (p.met ? MET : MISSED) : BF16, name: liftedText(p), agreement: percent(p.agreement, 2) }));
  points.push({ share: found.share, db: found.accuracy.sqnr_db, state: CHOSEN, name: "as decided", agreement: percent(found.accuracy.agreement, 2) });
  return points.map((p) => ({ ...p, share_text: percent(p.share), db_text: decibels(p.db) }));
}

function liftedText({ lifted, lifted_layers: layers }) {
  if (!lifted) return "all in 8 bits";
  const names = layers ?? [];
  return names.length ? `${names.slice(0, 2).join(", ")}${lifted > 2 ? ` +${lifted - 2}` : ""} in bf16` : `${counted(lifted, "layer")} in bf16`;
}

function paretoSpec(found, width) {
  const values = paretoPoints(found);
  const states = [[MET, "#2f8f4e"], [MISSED, "#c4282c"], [CHOSEN, "#3b7dd8"], [BF16, "#7b5cc4"]].filter(([state]) => values.some((v) => v.state === state));
  const x = { field: "share", type: "quantitative", title: "multiply-accumulates in 8 bits", scale: { domain: [0, 1] }, axis: { format: ".0%" } };
  const y = { field: "db", type: "quantitative", title: "SQNR of the outputs in dB", scale: { zero: true } };
  const goal = found.goal?.min_sqnr ?? null;
  return {
    width, height: 320,
    layer: [
      { data: { values }, mark: { type: "point", filled: true, size: 110 },
        encoding: { x, y, color: { field: "state", type: "nominal", title: "point", scale: { domain: states.map(([s]) => s), range: states.map(([, c]) => c) } },
          tooltip: [["name", "layers"], ["state", "goal"], ["share_text", "in 8 bits"], ["db_text", "SQNR"], ["agreement", "agreement"]].map(([field, title]) => ({ field, title })) } },
      { data: { values }, mark: { type: "text", align: "right", dx: -9, fontSize: 10 }, encoding: { x, y, text: { field: "name" } } },
      ...(goal === null ? [] : [{ data: { values: [{ db: goal, text: `goal: ${decibels(goal)}` }] },
        layer: [{ mark: { type: "rule", color: "#e0484c", strokeDash: [6, 3] }, encoding: { y: { field: "db", type: "quantitative" } } },
          { mark: { type: "text", color: "#e0484c", align: "left", x: 6, dy: -6 }, encoding: { y: { field: "db", type: "quantitative" }, text: { field: "text" } } }] }]),
    ],
  };
}
