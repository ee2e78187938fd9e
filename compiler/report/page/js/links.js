// Links to the panel of a kernel or a node.
import { h } from "./dom.js";
import { openKernel, openNode } from "./panel.js";

/** A link to a kernel's panel. */
export function kernelLink(name) {
  return h("a", { click: (event) => { event.stopPropagation(); openKernel(name); } }, name);
}

/** A link to a node's panel. */
export function nodeLink(name) {
  return h("a", { click: (event) => { event.stopPropagation(); openNode(name); } }, name);
}

/** Links to nodes, the first `most` of them; of a program without its graph, plain names. */
export function nodeLinks(run, names, most = Infinity) {
  const unique = [...new Set(names)];
  const shown = unique.slice(0, most).flatMap((name, at) => [at ? ", " : "", run.nodes.has(name) ? nodeLink(name) : name]);
  return h("span", null, shown, unique.length > most ? ` +${unique.length - most}` : "");
}
