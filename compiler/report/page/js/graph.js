// The graph of the model: blocks that open, nodes coloured by what they cost, fused nodes outlined together.
import { ancestry, blockTree, leavesBelow } from "./blocks.js";
import { choice, h, s, tools } from "./dom.js";
import { counted } from "./format.js";
import { colouring, colourModes, kernelsOfItem } from "./graph_colours.js";
import { clipped, headHeight, layoutBlock } from "./graph_layout.js";
import { openKernel, openNode } from "./panel.js";

const MOST_OPEN = 500; // nodes that may be opened all at once
const MOST_FOUND = 30;
const FEW_BOXES = 2;
let current = null;

/** The content of the section: needs the graph. */
export function buildGraph(run) {
  const root = blockTree(run.record.graph);
  const leaves = new Map(leavesBelow(root).map((leaf) => [leaf.node.node, leaf]));
  const view = { run, root, leaves, open: new Set(), mode: "time", zoom: 1, picked: new Set(), rects: new Map(), canvas: h("div", { class: "graph" }), legend: h("div") };
  current = view;
  openFew(view, root);
  dragToScroll(view.canvas);
  const zoomBy = (factor) => { view.zoom = Math.min(3, Math.max(0.1, view.zoom * factor)); draw(view); };
  view.canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }, { passive: false });
  queueMicrotask(() => draw(view));
  return [
    h("p", { class: "soft" }, "A click on a block opens it, on the head of an open one closes it; a click on a node shows it, with the nodes that are fused with it outlined. Drag to move, Ctrl and the wheel to zoom."),
    tools(searchBox(view), choice("colour", colourModes(run), view.mode, (mode) => { view.mode = mode; draw(view); }),
      button("+", "zoom in", () => zoomBy(1.25)), button("−", "zoom out", () => zoomBy(0.8)), button("fit", "fit the width", () => { view.zoom = Math.min(1, (view.canvas.clientWidth - 20) / view.layout.width); draw(view); }),
      button("close all", "close all blocks", () => { view.open.clear(); draw(view); }),
      leaves.size <= MOST_OPEN ? button("open all", "open all blocks", () => { openBelow(view, root); draw(view); }) : null),
    view.legend, view.canvas,
  ];
}

function button(label, title, click) {
  return h("button", { type: "button", title, click }, label);
}

/** Opens blocks from the outside in while there is next to nothing to see. */
function openFew(view, block) {
  const inner = block.children.filter((child) => child.children);
  if (block.children.length > FEW_BOXES || !inner.length) return;
  for (const child of inner) {
    view.open.add(child.id);
    openFew(view, child);
  }
}

function openBelow(view, block) {
  for (const child of block.children.filter((c) => c.children)) {
    view.open.add(child.id);
    openBelow(view, child);
  }
}

/** Outline nodes: those of a kernel, or one. Nothing before the section was opened. */
export function pickNodes(names) {
  if (!current) return;
  current.picked = new Set(names);
  markPicked(current);
}

/** Open the blocks around a node, scroll to it, and outline `picked`. */
export function revealNode(name, picked = [name]) {
  const leaf = current?.leaves.get(name);
  if (!leaf) return;
  for (const block of ancestry(leaf).slice(1, -1)) current.open.add(block.id);
  current.picked = new Set(picked);
  draw(current);
  current.rects.get(leaf.id)?.scrollIntoView({ block: "center", inline: "center" });
}

function searchBox(view) {
  const list = h("ul", { hidden: true });
  const input = h("input", { type: "search", placeholder: "find a node, an op, a tensor or a kernel", size: 34, input: () => show(), blur: () => setTimeout(() => { list.hidden = true; }, 250) });
  const show = () => {
    const wanted = input.value.toLowerCase();
    const found = wanted ? [...view.run.nodes.values()].filter((n) => searched(view.run, n).includes(wanted)) : [];
    list.replaceChildren(...found.slice(0, MOST_FOUND).map((n) => h("li", { mousedown: () => { revealNode(n.node); openNode(n.node); } }, `${n.node} `, h("span", { class: "soft" }, n.op))));
    if (found.length > MOST_FOUND) list.append(h("li", { class: "soft" }, `and ${found.length - MOST_FOUND} more`));
    if (wanted && !found.length) list.append(h("li", { class: "soft" }, "nothing of that name"));
    list.hidden = !wanted;
  };
  return h("span", { class: "found" }, input, list);
}

function searched(run, node) {
  const kernels = (run.kernelsOf.get(node.node) ?? []).map((k) => k.kernel);
  return [node.node, node.op, ...node.writes, ...node.path, ...kernels].join("\n").toLowerCase();
}

function draw(view) {
  const layout = layoutBlock(view.root, view.open);
  const shown = shownItems(layout).filter((item) => !item.port);
  const colours = colouring(view.run, view.mode, shown);
  view.layout = layout;
  view.rects = new Map();
  const arrow = s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" }, s("path", { d: "M0 0L8 4L0 8z", fill: "var(--soft)" }));
  view.canvas.replaceChildren(s("svg", { width: layout.width * view.zoom, height: layout.height * view.zoom, viewBox: `0 0 ${layout.width} ${layout.height}` },
    s("defs", null, arrow), shapes(view, layout, colours)));
  view.legend.replaceChildren(colours.legend);
  markPicked(view);
}

function shownItems(layout) {
  return layout.boxes.flatMap((box) => (box.inner ? shownItems(box.inner) : [box.item]));
}

function shapes(view, layout, colours) {
  return [...layout.boxes.map((box) => boxShape(view, box, colours)), ...layout.edges.map((edge) => edgeShape(view, edge))];
}

function edgeShape(view, { points, tensors }) {
  const types = view.run.record.graph.types;
  const title = tensors.slice(0, 12).map((t) => `${t} ${types[t] ?? ""}`).join("\n") + (tensors.length > 12 ? `\nand ${tensors.length - 12} more` : "");
  const path = points.map((p, at) => `${at ? "L" : "M"}${p.x.toFixed(1)} ${p.y.toFixed(1)}`).join("");
  return s("path", { class: "edge", d: path, "marker-end": "url(#arrow)" }, s("title", null, title));
}

function boxShape(view, box, colours) {
  const { item, x, y, width, height } = box;
  if (item.port) {
    return s("g", { transform: `translate(${x} ${y})` }, s("rect", { class: "port", width, height, rx: 10 }), line(clipped(item.label, width * 1.15), width / 2, 15, "small"), s("title", null, item.tensors.join("\n")));
  }
  const click = (event) => { event.stopPropagation(); if (!view.moved) clicked(view, item); };
  if (box.inner) {
    const rect = s("rect", { class: "box open", width, height, rx: 6, click });
    view.rects.set(item.id, rect);
    return s("g", { transform: `translate(${x} ${y})` }, rect, line(clipped(`▾ ${item.label}`, width), width / 2, 16),
      s("g", { transform: `translate(${(width - box.inner.width) / 2} ${headHeight})` }, shapes(view, box.inner, colours)));
  }
  const rect = s("rect", { class: "box", width, height, rx: item.children ? 6 : 3, style: `fill:${colours.fill(item)}`, click,
    mouseenter: () => outlineFused(view, item, true), mouseleave: () => outlineFused(view, item, false) });
  view.rects.set(item.id, rect);
  const lines = item.children ? [[`▸ ${item.label}`, ""], [`${counted(item.nodes.length, "node")}: ${opsText(view, item)}`, "small"], [colours.text(item), "small"]]
    : [[item.node.op, ""], [colours.text(item) && view.mode !== "time" ? `${colours.text(item)}` : item.node.node, "small"]];
  const title = item.children ? item.name : `${item.node.node} (${item.node.op})\n${colours.text(item)}`;
  return s("g", { transform: `translate(${x} ${y})` }, rect, lines.map(([text, kind], at) => line(clipped(text, kind ? width * 1.2 : width), width / 2, 15 + 15 * at, kind)), s("title", null, title));
}

function line(text, x, y, kind) {
  return s("text", { x, y, "text-anchor": "middle", class: kind || null }, text);
}

function opsText(view, block) {
  const counts = new Map();
  for (const name of block.nodes) {
    const { op } = view.run.nodes.get(name);
    counts.set(op, (counts.get(op) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([op, n]) => `${n} ${op}`).join(", ");
}

function clicked(view, item) {
  if (!item.children) {
    const kernels = kernelsOfItem(view.run, item);
    if (kernels.length === 1 && view.mode === "kernel") openKernel(kernels[0].kernel);
    else openNode(item.node.node);
    return;
  }
  if (view.open.has(item.id)) view.open.delete(item.id);
  else view.open.add(item.id);
  const { scrollLeft, scrollTop } = view.canvas;
  draw(view);
  view.canvas.scrollTo(scrollLeft, scrollTop);
}

/** The rectangle that shows a node: its own, or that of the closed block around it. */
function rectOf(view, name) {
  const leaf = view.leaves.get(name);
  const shown = leaf && ancestry(leaf).slice(1).find((item) => !item.children || !view.open.has(item.id));
  return shown && view.rects.get(shown.id);
}

function outlineFused(view, item, on) {
  if (item.children) return;
  for (const name of kernelsOfItem(view.run, item).flatMap((k) => k.loc)) rectOf(view, name)?.classList.toggle("fused", on);
}

function markPicked(view) {
  for (const rect of view.rects.values()) rect.classList.remove("picked");
  for (const name of view.picked) rectOf(view, name)?.classList.add("picked");
}

function dragToScroll(canvas) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => { from = { x: event.clientX, y: event.clientY, left: canvas.scrollLeft, top: canvas.scrollTop }; current.moved = false; });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.abs(dx) + Math.abs(dy) > 4) { current.moved = true; canvas.classList.add("dragged"); }
    canvas.scrollTo(from.left - dx, from.top - dy);
  });
  for (const end of ["pointerup", "pointerleave"]) canvas.addEventListener(end, () => { from = null; canvas.classList.remove("dragged"); });
}
