// The graph as nested blocks: by the modules that the exporter named, and where there are many things in a row, cut where
// the fewest tensors pass.

const MOST_CHILDREN = 36; // children of a block; of more, neighbours are put into blocks
const SHORTEST_ROW = 8; // children of such a block
const LONGEST_ROW = 30;

/** The tree of blocks over a graph of the record. A block has `id`, `name`, `children` (blocks and leaves, in the order
 * of the model), `nodes` (all names below), `edges` between children, and `inputs`, `outputs`: tensors that cross its
 * border, by child. A leaf has `id`, `node`. */
export function blockTree(graph) {
  const root = newBlock(null, "model");
  graph.nodes.forEach((node, order) => insertNode(root, node, order));
  finish(root);
  connect(root, graph);
  return root;
}

function newBlock(parent, name) {
  return { id: `${parent?.id ?? ""}/${name}`, name, parent, children: [], nodes: [], edges: [], inputs: new Map(), outputs: new Map(), byName: new Map() };
}

function insertNode(root, node, order) {
  let block = root;
  for (const step of node.path) {
    if (!block.byName.has(step)) {
      const child = newBlock(block, step);
      child.order = order;
      block.byName.set(step, child);
      block.children.push(child);
    }
    block = block.byName.get(step);
  }
  block.children.push({ id: `node:${node.node}`, node, parent: block, order });
}

/** Removes blocks around a single block, gathers long rows, and fills `nodes`. */
function finish(block) {
  block.children = block.children.map((child) => (child.children ? unwrapped(child) : child));
  block.children.forEach((child) => { child.parent = block; if (child.children) finish(child); });
  block.nodes = block.children.flatMap((child) => (child.children ? child.nodes : [child.node.node]));
  block.label = shortName(block);
  while (block.children.length > MOST_CHILDREN) {
    const before = block.children.length;
    block.children = gather(block);
    if (block.children.length >= before) return;
  }
}

function unwrapped(block) {
  let inner = block;
  while (inner.children.length === 1 && inner.children[0].children) [inner] = inner.children;
  if (inner.children.length === 1) return inner.children[0];
  return inner;
}

/** The name without that of the block around it, which exporters repeat. */
function shortName(block) {
  const around = block.parent?.name ?? "";
  return around && block.name.startsWith(`${around}.`) ? block.name.slice(around.length + 1) : block.name;
}

/** Neighbouring children as blocks, cut where the fewest tensors pass. */
function gather(block) {
  const row = block.children;
  const passing = tensorsBetween(row);
  const blocks = [];
  for (let start = 0; start < row.length;) {
    let end = Math.min(start + LONGEST_ROW, row.length);
    if (row.length - start > SHORTEST_ROW) {
      for (let at = start + SHORTEST_ROW, best = Infinity; at <= Math.min(start + LONGEST_ROW, row.length); at += 1) {
        if (passing[at] < best) [best, end] = [passing[at], at];
      }
    }
    if (row.length - end < SHORTEST_ROW / 2) end = row.length;
    blocks.push(rowBlock(block, row.slice(start, end)));
    start = end;
  }
  return blocks;
}

function rowBlock(parent, children) {
  const names = children.flatMap((child) => (child.children ? child.nodes : [child.node.node]));
  const block = newBlock(parent, `${names[0]} … ${names.at(-1)}`);
  Object.assign(block, { children, nodes: names, label: block.name });
  children.forEach((child) => { child.parent = block; });
  return block;
}

/** For each place before a child, how many tensors are computed before it and read from it on. */
function tensorsBetween(row) {
  const writer = new Map(), last = new Map();
  const leaves = (child) => (child.children ? child.children.flatMap(leaves) : [child]);
  row.forEach((child, at) => {
    for (const leaf of leaves(child)) {
      for (const tensor of leaf.node.reads) if (writer.has(tensor)) last.set(tensor, at);
      for (const tensor of leaf.node.writes) writer.set(tensor, at);
    }
  });
  const change = new Array(row.length + 2).fill(0);
  for (const [tensor, at] of last) {
    change[writer.get(tensor) + 1] += 1;
    change[at + 1] -= 1;
  }
  let passing = 0;
  return change.map((step) => (passing += step));
}

/** The blocks around a leaf or block, from the root to itself. */
export function ancestry(item) {
  const found = [];
  for (let at = item; at; at = at.parent) found.unshift(at);
  return found;
}

/** Edges at the innermost block that has both ends, and the tensors that cross borders of blocks. */
function connect(root, graph) {
  const leaf = new Map(leavesBelow(root).map((l) => [l.node.node, l]));
  const writer = new Map(graph.nodes.flatMap((n) => n.writes.map((tensor) => [tensor, leaf.get(n.node)])));
  const inputs = new Set(graph.inputs);
  for (const reader of leaf.values()) {
    const to = ancestry(reader);
    for (const tensor of reader.node.reads) {
      if (writer.has(tensor)) join(ancestry(writer.get(tensor)), to, tensor);
      else if (inputs.has(tensor)) enter(to, 0, tensor);
    }
  }
  for (const tensor of graph.outputs) {
    if (writer.has(tensor)) leave(ancestry(writer.get(tensor)), 0, tensor);
  }
}

function join(from, to, tensor) {
  let depth = 0;
  while (from[depth + 1] === to[depth + 1] && from[depth + 1]?.children) depth += 1;
  const [source, target] = [from[depth + 1], to[depth + 1]];
  if (source === target) return;
  from[depth].edges.push({ source: source.id, target: target.id, tensor });
  leave(from, depth + 1, tensor);
  enter(to, depth + 1, tensor);
}

function enter(path, depth, tensor) {
  for (let at = depth; at + 1 < path.length; at += 1) cross(path[at].inputs, tensor, path[at + 1].id);
}

function leave(path, depth, tensor) {
  for (let at = depth; at + 1 < path.length; at += 1) cross(path[at].outputs, tensor, path[at + 1].id);
}

function cross(border, tensor, child) {
  if (!border.has(tensor)) border.set(tensor, new Set());
  border.get(tensor).add(child);
}

/** All leaves of a block. */
export function leavesBelow(block) {
  return block.children.flatMap((child) => (child.children ? leavesBelow(child) : [child]));
}
