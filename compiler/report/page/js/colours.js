// Colours by meaning, the same in every chart, graph and table.

export const PARTS = {
  tensor: "#3b7dd8", vector: "#7b5cc4", l1: "#b9a23a", l2: "#3aa38f", hbm: "#2f8f4e",
  latency: "#d9663b", sync: "#c2477e", idle: "#8a9099", load: "#3aa38f", store: "#b9a23a",
};

export const OWNERS = {
  algorithm: "#3b7dd8", silicon: "#7b5cc4", compiler: "#d9663b", system: "#b9a23a", host: "#c2477e",
};

export const ROLES = {
  constant: "#3b7dd8", staged: "#3aa38f", activation: "#d9663b", input: "#b9a23a", output: "#c2477e",
};

export const STALLS = {
  busy: "#3b7dd8", data: "#d9a13b", space: "#7b5cc4", bandwidth: "#2f8f4e", latency: "#d9663b", sync: "#c2477e",
};

/** A colour for a name, the same for every name: for kernels, which are many. */
export function colourOf(name) {
  let hash = 2166136261;
  for (const unit of name) hash = Math.imul(hash ^ unit.codePointAt(0), 16777619) >>> 0;
  return `hsl(${hash % 360} ${45 + (hash >> 9) % 25}% 58%)`;
}

/** From the ground (0) to the hot colour (1). */
export function heat(share) {
  return `color-mix(in oklab, var(--hot) ${Math.round(100 * Math.min(1, Math.max(0, share)))}%, var(--raised))`;
}
