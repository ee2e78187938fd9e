// The record with what the sections look up: kernels with their measured times, nodes and the remarks about both.

/** Indices over a record. `kernels` are rows of the profile, or without one of the program, in their order. */
export function readRun(record) {
  const profile = record.profile ?? null;
  const remarks = record.passes.flatMap((pass, at) => (pass.remarks ?? []).map((remark) => ({ ...remark, at })));
  const tiled = new Map(remarks.filter((r) => r.decision === "tiled").map((r) => [r.entity, r]));
  const kernels = kernelRows(record, profile, tiled);
  const run = {
    record,
    profile,
    remarks,
    tiled,
    kernels,
    clock: record.target.clock_ghz * 1e9,
    cycles: profile?.cycles ?? record.verify?.cycles ?? record.run?.cycles ?? null,
    hazards: record.verify?.hazards ?? record.run?.hazards ?? (profile?.values ? profile.hazards : null),
    seconds: profile?.seconds ?? record.verify?.seconds ?? record.run?.seconds ?? null,
    kernel: new Map(kernels.map((k) => [k.kernel, k])),
    nodes: new Map((record.graph?.nodes ?? []).map((n) => [n.node, n])),
    host: new Set([...(profile?.host ?? []).flatMap((h) => h.nodes), ...(record.quantize?.host ?? [])]),
    kernelsOf: gathered(kernels, (k) => k.loc),
    remarksOf: gathered(remarks, (r) => r.nodes),
    errors: nodeErrors(record),
  };
  addStaged(run);
  return run;
}

function kernelRows(record, profile, tiled) {
  const measured = new Map((profile?.kernels ?? []).map((k) => [k.kernel, k]));
  const program = Object.entries(record.kernels ?? {});
  const names = [...new Set([...measured.keys(), ...program.map(([name]) => name)])];
  const expected = (name) => tiled.get(name)?.after_clk ?? null;
  const sum = names.reduce((total, name) => total + (expected(name) ?? 0), 0);
  return names.map((name) => {
    const found = record.kernels?.[name] ?? {};
    const time = measured.get(name) ?? null;
    const loc = time?.loc ?? found.loc ?? [];
    const cycles = time?.cycles ?? expected(name);
    return {
      ...found, ...time, kernel: name, loc, cycles, measured: time !== null, expected: expected(name),
      node: time?.node ?? record.booked?.[name] ?? loc[0] ?? name,
      share: time?.share ?? (sum && cycles ? cycles / sum : 0),
      bound_by: time?.bound_by ?? tiled.get(name)?.details.bound ?? null,
    };
  });
}

/** Names to the items that list them. */
function gathered(items, names) {
  const found = new Map();
  for (const item of items) {
    for (const name of new Set(names(item))) {
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(item);
    }
  }
  return found;
}

/** Adds to each kernel the bytes that copies bring from hbm to l2 for it (`staged`): to the first that reads them. */
function addStaged(run) {
  const counted = new Set();
  for (const kernel of run.kernels) {
    kernel.staged = 0;
    for (const name of kernel.reads ?? []) {
      const tensor = run.record.tensors?.[name];
      if (tensor?.copy_of && !counted.has(name)) kernel.staged += tensor.bytes;
      counted.add(name);
    }
  }
}

/** By node: SQNR in dB of what it computes, where `verify --layers` or `quantize` found it. */
function nodeErrors(record) {
  const writer = new Map((record.graph?.nodes ?? []).flatMap((n) => n.writes.map((tensor) => [tensor, n.node])));
  const found = new Map();
  for (const layer of [...(record.verify?.layers ?? []), ...(record.verify?.outputs ?? [])]) {
    if (layer.sqnr_db !== null && layer.sqnr_db !== undefined) found.set(writer.get(layer.name) ?? layer.name, layer.sqnr_db);
  }
  for (const layer of record.quantize?.layers ?? []) {
    if (layer.accumulated_sqnr_db !== null) found.set(layer.layer, layer.accumulated_sqnr_db);
  }
  return found;
}

/** Bytes between a kernel and `hbm` or `l2`: its own, and for hbm those of the copies that bring its weights to l2. */
export function traffic(kernel, space) {
  const own = (kernel.read_bytes?.[space] ?? 0) + (kernel.write_bytes?.[space] ?? 0);
  return own + (space === "hbm" ? kernel.staged : 0);
}

/** Remarks about a kernel, or about a node that it contains. */
export function remarksOfKernel(run, kernel) {
  const found = new Set(kernel.loc.flatMap((node) => run.remarksOf.get(node) ?? []));
  return run.remarks.filter((r) => r.entity === kernel.kernel || found.has(r));
}

/** Refused decisions with the cycles that they cost at least, the costliest first; one entry a tensor and pass. */
export function costliestRefusals(run) {
  const found = new Map();
  for (const remark of run.remarks.filter((r) => r.kind === "missed" && r.details?.lost_clk > 0)) {
    const key = JSON.stringify([remark.at, remark.entity]);
    const known = found.get(key);
    if (!known) found.set(key, { ...remark, reasons: [remark.reason], lost_clk: remark.details.lost_clk });
    else if (!known.reasons.includes(remark.reason)) known.reasons.push(remark.reason);
  }
  return [...found.values()].sort((a, b) => b.lost_clk - a.lost_clk);
}

/** The model's file as an argument of a command, for what needs the model itself. */
export function modelFile(run) {
  return run.record.model.file.endsWith(".onnx") ? run.record.model.file : "MODEL.onnx";
}
