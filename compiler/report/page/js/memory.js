// The memory plan over time: what lies where in l2 and hbm, from kernel to kernel.
import { chart } from "./chart.js";
import { ROLES } from "./colours.js";
import { h, tools } from "./dom.js";
import { bytes, byteUnit, percent, whole } from "./format.js";
import { nodeLinks } from "./links.js";
import { openKernel } from "./panel.js";
import { table } from "./table.js";

const FULL = 0.25; // a plan that takes less of its memory is drawn to its own extent

/** The content of the section. */
export function buildMemory(run) {
  const { spaces, steps, refused } = run.record.memory;
  return [
    h("p", { class: "soft" }, "A rectangle is a tensor: the addresses that it takes, from the first kernel that needs it to the last. Weights and outputs of the model keep their place for the whole run."),
    spaces.filter((space) => space.blocks.length).map((space) => spacePlan(run, space, steps)),
    h("h3", null, "Kept out of l2"),
    refused.length ? refusedTable(run, refused) : h("p", null, "Nothing: every tensor that could be in l2 is."),
  ];
}

function spacePlan(run, space, steps) {
  const holder = h("div");
  const whole_ = h("input", { type: "checkbox", change: () => draw() });
  whole_.checked = space.extent > FULL * space.capacity;
  const draw = () => holder.replaceChildren(chart((width) => planSpec(space, steps, whole_.checked, width),
    (datum) => datum.first && openKernel(datum.first)));
  draw();
  const columns = [
    { name: "tensor", value: (b) => b.tensor, long: true },
    { name: "role", value: (b) => b.role },
    { name: "type", value: (b) => b.type },
    { name: "bytes", value: (b) => b.bytes, show: (b) => bytes(b.bytes), number: true },
    { name: "address", value: (b) => b.address, number: true },
    { name: "first kernel", value: (b) => steps[b.start] ?? "", long: true },
    { name: "last kernel", value: (b) => steps[b.end] ?? "", long: true },
    { name: "life", unit: "kernels", help: "kernels from the first to the last that needs it", value: (b) => b.end - b.start + 1, number: true },
  ];
  return h("div", null,
    h("h3", null, `${space.space}: ${bytes(space.extent)} of ${bytes(space.capacity)} (${percent(space.extent / space.capacity)})`),
    tools(h("span", { class: "soft" }, `${whole(space.blocks.length)} tensors; any plan needs ${bytes(space.bound)}, the most that is alive at once`),
      h("label", null, whole_, " up to the capacity")),
    holder,
    h("details", null, h("summary", null, "as a table"), table(space.blocks, columns, { csv: `memory-${space.space}`, sort: [3, true], opens: (b) => openKernel(steps[b.start]) })));
}

function planSpec(space, steps, toCapacity, width) {
  const top = toCapacity ? Math.max(space.capacity, space.extent) : space.extent;
  const [scale, unit] = byteUnit(top);
  const roles = Object.keys(ROLES).filter((role) => space.blocks.some((b) => b.role === role));
  const values = space.blocks.map((b) => ({
    tensor: b.tensor, role: b.role, type: b.type, bytes: bytes(b.bytes), first: steps[b.start] ?? "", last: steps[b.end] ?? "",
    x: b.start, x2: b.end + 1, y: b.address / scale, y2: (b.address + b.bytes) / scale, addresses: `${whole(b.address)} – ${whole(b.address + b.bytes - 1)}`,
    steps: b.start === b.end ? `${b.start}` : `${b.start} – ${b.end}`,
  }));
  const tip = [["tensor", "tensor"], ["role", "role"], ["type", "type"], ["bytes", "size"], ["addresses", "addresses"], ["steps", "steps"], ["first", "first kernel"], ["last", "last kernel"]];
  const shades = { domain: roles, range: roles.map((role) => ROLES[role]) };
  return {
    width, height: 340,
    layer: [
      { data: { values }, mark: { type: "rect", strokeWidth: 0.3, stroke: "#80808080", fillOpacity: 0.8, cursor: "pointer" },
        encoding: {
          x: { field: "x", type: "quantitative", title: "step: kernels in the order of the program", scale: { domain: [0, Math.max(steps.length, 1)], nice: false }, axis: { tickMinStep: 1, format: "d" } },
          x2: { field: "x2" },
          y: { field: "y", type: "quantitative", title: `address in ${unit}`, scale: { domain: [0, (top / scale) * (toCapacity ? 1.08 : 1.02)], nice: false } },
          y2: { field: "y2" },
          color: { field: "role", type: "nominal", title: "holds", scale: shades },
          tooltip: tip.map(([field, title]) => ({ field, title })),
        } },
      ...(toCapacity ? [{ data: { values: [{ y: space.capacity / scale, text: `capacity: ${bytes(space.capacity)}` }] },
        layer: [{ mark: { type: "rule", color: "#e0484c", strokeDash: [6, 3] }, encoding: { y: { field: "y", type: "quantitative" } } },
          { mark: { type: "text", color: "#e0484c", align: "left", dx: 6, dy: -7, x: 0 }, encoding: { y: { field: "y", type: "quantitative" }, text: { field: "text" } } }] }] : []),
    ],
  };
}

function refusedTable(run, refused) {
  return table(refused, [
    { name: "tensor", value: (r) => r.tensor, long: true },
    { name: "nodes", value: (r) => r.nodes.join(" "), show: (r) => nodeLinks(run, r.nodes, 3), long: true },
    { name: "bytes", value: (r) => r.bytes, show: (r) => bytes(r.bytes), number: true },
    { name: "would save", unit: "bytes", help: "traffic of device memory", value: (r) => r.saved_bytes, show: (r) => bytes(r.saved_bytes), number: true },
    { name: "costs at least", unit: "cycles", help: "cycles", value: (r) => r.lost_clk, show: (r) => `${whole(r.lost_clk)} cycles`, number: true },
    { name: "why", value: (r) => r.why },
  ], { csv: "kept-out-of-l2", sort: [4, true] });
}
