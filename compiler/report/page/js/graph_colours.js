// Colours of the graph: what a node or a block costs, what bounds it, where it runs, how far off it is.
import { PARTS, colourOf, heat } from "./colours.js";
import { h, legend } from "./dom.js";
import { bytes, decibels, percent } from "./format.js";
import { traffic } from "./run.js";
import { timeOf } from "./advice.js";

const PLAIN = "var(--raised)";
const CLEAN_DB = 80; // results with this SQNR and more are as good as exact
const PLACES = { PPU: "#3aa38f", host: "#c2477e", "no kernel": "#8a9099" };

/** The modes that a record has something for, as [id, label]. */
export function colourModes(run) {
  return [
    ["time", run.profile ? "time" : "expected time"],
    ["bound", "what bounds it"],
    ["kernel", "kernel"],
    ...(run.profile ? [["l2", "l2 traffic"], ["hbm", "hbm traffic"]] : []),
    ...(run.errors.size ? [["error", "error"]] : []),
    ["place", "where it runs"],
  ];
}

/** A colouring of `items` (leaves and closed blocks): `fill(item)`, `text(item)` and `legend`. */
export function colouring(run, mode, items) {
  if (mode === "bound") return byName(run, items, (k) => k.bound_by ?? "unknown", (name) => PARTS[name] ?? "#8a9099");
  if (mode === "kernel") return byKernel(run);
  if (mode === "place") return byPlace(run);
  if (mode === "error") return byError(run);
  const value = mode === "time" ? (k) => k.cycles ?? 0 : (k) => traffic(k, mode);
  return byAmount(run, items, value, mode === "time" ? (amount) => timeOf(run, amount) : bytes);
}

const namesOf = (item) => (item.children ? item.nodes : [item.node.node]);

/** Kernels of an item: of a node all that contain it, of a block those booked on its nodes. */
export function kernelsOfItem(run, item) {
  if (!item.children) return run.kernelsOf.get(item.node.node) ?? [];
  const inside = new Set(item.nodes);
  return run.kernels.filter((k) => inside.has(k.node));
}

function byAmount(run, items, value, show) {
  const total = (item) => kernelsOfItem(run, item).reduce((sum, k) => sum + value(k), 0);
  const amounts = new Map(items.map((item) => [item, total(item)]));
  const most = Math.max(...amounts.values(), 0);
  const all = run.kernels.reduce((sum, k) => sum + value(k), 0);
  return {
    fill: (item) => (most && amounts.get(item) ? heat(0.06 + 0.64 * Math.sqrt(amounts.get(item) / most)) : PLAIN),
    text: (item) => (amounts.get(item) ? `${show(amounts.get(item))}, ${percent(amounts.get(item) / all)}` : ""),
    legend: h("div", { class: "legend" }, "0", h("span", { class: "ramp", style: `background:linear-gradient(90deg, ${heat(0.06)}, ${heat(0.7)})` }), show(most),
      "; a node has the amount of its whole kernel"),
  };
}

function byName(run, items, name, colour) {
  const chosen = (item) => {
    const longest = kernelsOfItem(run, item).reduce((a, k) => (!a || (k.cycles ?? 0) > (a.cycles ?? 0) ? k : a), null);
    return longest && name(longest);
  };
  const found = new Set(items.map(chosen).filter(Boolean));
  return { fill: (item) => (chosen(item) ? `color-mix(in srgb, ${colour(chosen(item))} 55%, var(--raised))` : PLAIN), text: (item) => chosen(item) ?? "", legend: legend([...found].map((n) => [n, colour(n)])) };
}

function byKernel(run) {
  const kernels = (item) => kernelsOfItem(run, item);
  return {
    fill: (item) => (kernels(item).length === 1 ? `color-mix(in srgb, ${colourOf(kernels(item)[0].kernel)} 55%, var(--raised))` : PLAIN),
    text: (item) => (kernels(item).length === 1 ? kernels(item)[0].kernel : kernels(item).length ? `${kernels(item).length} kernels` : ""),
    legend: h("div", { class: "legend" }, "nodes of the same colour are fused in one kernel; grey: in several, or none"),
  };
}

function byPlace(run) {
  const place = (name) => (run.host.has(name) ? "host" : run.kernelsOf.has(name) ? "PPU" : "no kernel");
  const counts = (item) => namesOf(item).reduce((found, name) => ({ ...found, [place(name)]: (found[place(name)] ?? 0) + 1 }), {});
  const chosen = (item) => ["host", "PPU", "no kernel"].find((p) => counts(item)[p]);
  return {
    fill: (item) => `color-mix(in srgb, ${PLACES[chosen(item)]} 45%, var(--raised))`,
    text: (item) => (item.children ? Object.entries(counts(item)).map(([p, n]) => `${n} ${p}`).join(", ") : chosen(item)),
    legend: h("div", null, legend(Object.entries(PLACES)), h("div", { class: "legend" }, "no kernel: computed at compile time, or only a way to read a tensor; a block with any node on the host has its colour")),
  };
}

function byError(run) {
  const worst = (item) => namesOf(item).map((n) => run.errors.get(n)).filter((db) => db !== undefined).reduce((a, b) => Math.min(a, b), Infinity);
  return {
    fill: (item) => (Number.isFinite(worst(item)) ? heat(0.7 * (1 - worst(item) / CLEAN_DB)) : PLAIN),
    text: (item) => (Number.isFinite(worst(item)) ? decibels(worst(item)) : ""),
    legend: h("div", { class: "legend" }, `SQNR: ${CLEAN_DB} dB`, h("span", { class: "ramp", style: `background:linear-gradient(90deg, ${heat(0)}, ${heat(0.7)})` }), "0 dB; of a block, the least"),
  };
}
