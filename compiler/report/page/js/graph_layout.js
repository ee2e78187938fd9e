// Places the boxes of a graph: dagre lays out one block at a time, and an opened block is a box in the one around it.

const LEAF_HEIGHT = 36;
const BLOCK_HEIGHT = 54;
const HEAD = 24; // above the content of an opened block
const LETTER = 6.7; // pixels, of the 12 pixel font
const MOST_PORTS = 6; // tensors of a border with a box of their own; more share one

/** The layout of a block: `width`, `height`, `boxes` ({item, x, y, width, height, inner?} by their upper left corner) and
 * `edges` ({points, tensors}). `open` has the ids of opened blocks. */
export function layoutBlock(block, open) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 16, ranksep: 26, edgesep: 8, marginx: 12, marginy: 12 });
  graph.setDefaultEdgeLabel(() => ({}));
  const items = new Map();
  for (const child of block.children) {
    const inner = child.children && open.has(child.id) ? layoutBlock(child, open) : null;
    items.set(child.id, { item: child, inner, ...sizeOf(child, inner) });
  }
  const edges = [...block.edges, ...ports(block.inputs, items, "in"), ...ports(block.outputs, items, "out")];
  for (const [id, box] of items) graph.setNode(id, { width: box.width, height: box.height });
  for (const { source, target, tensor } of edges) {
    const known = graph.edge(source, target);
    if (known) known.tensors.push(tensor);
    else graph.setEdge(source, target, { tensors: [tensor] });
  }
  dagre.layout(graph);
  const { width, height } = graph.graph();
  return {
    width: Math.max(width, 80),
    height: Math.max(height, 40),
    boxes: [...items].map(([id, box]) => {
      const at = graph.node(id);
      return { ...box, x: at.x - box.width / 2, y: at.y - box.height / 2 };
    }),
    edges: graph.edges().map((edge) => graph.edge(edge)).map(({ points, tensors }) => ({ points, tensors: [...new Set(tensors)] })),
  };
}

function sizeOf(item, inner) {
  if (inner) return { width: Math.max(inner.width, 120), height: inner.height + HEAD };
  if (item.children) return { width: textWidth(item.label, 220, 280), height: BLOCK_HEIGHT };
  return { width: textWidth(item.node.node, 96, 190), height: LEAF_HEIGHT };
}

function textWidth(text, least, most) {
  return Math.min(most, Math.max(least, 18 + LETTER * text.length));
}

/** Adds boxes for the tensors that cross the border of a block, and gives the edges to them. */
function ports(border, items, direction) {
  const names = [...border.keys()];
  const groups = names.length > MOST_PORTS ? [names] : names.map((name) => [name]);
  return groups.flatMap((tensors) => {
    const label = tensors.length === 1 ? tensors[0] : `${tensors.length} tensors`;
    const id = `${direction}:${label}`;
    items.set(id, { item: { id, port: direction, label, tensors }, inner: null, width: textWidth(label, 60, 180), height: 22 });
    return tensors.flatMap((tensor) => [...border.get(tensor)].map((child) =>
      (direction === "in" ? { source: id, target: child, tensor } : { source: child, target: id, tensor })));
  });
}

/** As much of a text as fits a width. */
export function clipped(text, width) {
  const letters = Math.floor((width - 12) / LETTER);
  return text.length <= letters ? text : `${text.slice(0, Math.max(1, letters - 1))}…`;
}

/** Height of the head of an opened block. */
export const headHeight = HEAD;
