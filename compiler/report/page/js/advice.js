// What a user can do about what bounds a run: a change of the command, of the model, or of the machine.
import { h } from "./dom.js";
import { percent, quoted, si } from "./format.js";
import { modelFile } from "./run.js";

const code = (text) => h("code", null, text);

/** The largest loss of the waterfall: every part but the ideal. Null without a loss. */
export function largestLoss(run) {
  const parts = run.profile?.waterfall?.parts.filter((p) => p.part !== "ideal" && p.cycles > 0) ?? [];
  return parts.reduce((worst, part) => (worst === null || part.cycles > worst.cycles ? part : worst), null);
}

/** What to do about a part of the waterfall, as content of a paragraph. */
export function adviceForPart(run, part) {
  const file = quoted(modelFile(run));
  if (part.part === "exposed") return adviceForCause(run, largestCause(part)[0]);
  return {
    format: () => ["Let products run in a faster format: ", code(`ppuc profile ${file} --precision bf16`), narrower(run, file)],
    shape: () => ["Sizes that are multiples of the tensor engine's fragment (channels, hidden sizes, rows) lose nothing here; a larger batch fills rows: ", larger(run, file)],
    compulsory: () => ["Each weight is read once a run, whatever the compiler does. Share the reading among more samples: ", larger(run, file), narrower(run, file)],
    tiles: () => ["Few rows or channels leave units and lanes empty. A larger batch gives each unit whole tiles: ", larger(run, file), ". Or let the simulator choose among tilings: ", code(`ppuc compile ${file} --tune 8`)],
    traffic: () => ["Tensors leave l2 or are read several times: see the refusals below and the memory plan. Half the bytes with ", code("--precision bf16"), narrower(run, file)],
    launch: () => ["The fixed cost of a launch counts less, the more work there is in one: ", larger(run, file)],
    host: () => ["Tensors cross the link because some nodes run on the host; ", code(`ppuc check ${file}`), " says why, and what would bring each to the PPU."],
  }[part.part]?.() ?? [];
}

/** The largest cause of the exposed part: [name, cycles]. */
export function largestCause(part) {
  return Object.entries(part.causes ?? {}).reduce((a, b) => (b[1] > a[1] ? b : a), ["latency", 0]);
}

function adviceForCause(run, cause) {
  const file = quoted(modelFile(run));
  return {
    latency: () => ["Kernels are too short to hide the latency of memory. More work a kernel hides more of it: ", larger(run, file), "; and fewer kernels have fewer beginnings: see the refused fusions."],
    sync: () => ["Kernels wait for the ones before them, whose last tiles come late. Larger kernels wait less often: ", larger(run, file), "; tilings that end together: ", code(`ppuc compile ${file} --tune 8`)],
    idle: () => ["Work is uneven: some units finish early. Sizes that divide among the units help; so does ", code(`ppuc compile ${file} --tune 8`)],
    overlap: () => ["Engines and memories take turns, because a kernel has too few tiles to keep all of them busy, or its tiles fill the rings. Larger kernels overlap better: ", larger(run, file), "; or choose tilings by measuring: ", code(`ppuc compile ${file} --tune 8`)],
  }[cause]();
}

function larger(run, file) {
  const [input, type] = Object.entries(run.record.inputs ?? {})[0] ?? ["x", ""];
  const size = Number(/\[(\d+)/.exec(type)?.[1] ?? 1);
  const declared = /\[([^,\]]+)/.exec(run.record.graph?.types[input] ?? "")?.[1];
  if (declared && /^\d+$/.test(declared)) return `export the model with a larger batch (${8 * size}, or any)`;
  return code(`ppuc profile ${file} --dim ${quoted(`${input}:0=${8 * size}`)} --timing-only`);
}

function narrower(run, file) {
  if (/fp8|int8|mixed|fp4/.test(run.record.precision)) return "";
  return [". In 8 bits: ", code(`ppuc quantize ${file} --calibrate SAMPLES.npz`)];
}

const BOUND = {
  tensor: "The tensor engine works most of the time: it gets faster with a narrower format, and with sizes that fill its fragments.",
  vector: "The vector engine works most of the time: element-wise work, reductions and windows. 16-bit activations, or a cheaper activation function, shorten it.",
  l1: "Bandwidth of l1 bounds it: larger tiles reuse more of what they load.",
  l2: "Bandwidth of l2 bounds it: 16-bit activations halve the bytes; fused with its neighbour, it would move fewer.",
  hbm: "Device memory bounds it: weights in 8 bits, a larger batch, or its tensors in l2.",
  latency: "It is too short to hide the latency of memory: more work a kernel (a larger batch), or fusion with a neighbour.",
  sync: "It waits for other kernels: what it reads is ready late. See the kernel before it.",
  idle: "Its work is uneven: units wait for the last one.",
  load: "Loading bounds it: narrower operands, or larger tiles that reuse more.",
  store: "Storing bounds it: narrower results.",
};

/** A sentence about what bounds a kernel and what shortens it. */
export function adviceForKernel(kernel) {
  return BOUND[kernel.bound_by] ?? "";
}

/** What a refused decision costs and what would change it. */
export function adviceForRefusal(remark) {
  if (remark.decision === "kept-in-hbm" || remark.decision === "not-staged") return "A machine with a larger l2, or a smaller batch, would keep it: try --set l2.bytes=…, or 16-bit activations.";
  if (remark.decision === "stored-wide") return "It keeps the type of the model's input or output: a model whose inputs and outputs are 16-bit saves this.";
  if (/other readers|in another kernel/.test(remark.reason)) return "Another node reads the tensor too: a model that computes it once for one reader could fuse.";
  if (/starts a kernel|takes no other|cannot read through/.test(remark.reason)) return "The ops are of kinds that no single kernel computes: their tensor goes through memory. A different order of the ops in the model may avoid it.";
  return "The graph shows the nodes; the pass shows what it did instead.";
}

/** Shares of the exposed part by cause, as text. */
export function causesText(run, part) {
  const total = run.profile.waterfall.total_cycles;
  return Object.entries(part.causes ?? {}).filter(([, cycles]) => cycles > 0).sort((a, b) => b[1] - a[1])
    .map(([cause, cycles]) => `${CAUSES[cause]} ${percent(cycles / total)}`).join(", ");
}

/** What the causes of the exposed part mean. */
export const CAUSES = {
  latency: "memory latency and issue", sync: "waiting for other kernels", idle: "units that wait for the last one",
  overlap: "engines and memories taking turns",
};

/** Cycles as time. */
export function timeOf(run, cycles) {
  return si(cycles / run.clock, "s");
}
