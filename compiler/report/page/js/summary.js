// The first section: what matters about the run, and what to do next.
import { adviceForKernel, adviceForPart, adviceForRefusal, causesText, largestLoss, timeOf } from "./advice.js";
import { h } from "./dom.js";
import { bytes, counted, decibels, percent, quoted, si, whole } from "./format.js";
import { kernelLink, nodeLinks } from "./links.js";
import { costliestRefusals, modelFile } from "./run.js";
import { openSection } from "./sections.js";
import { smallTable } from "./table.js";

const MOST_LISTED = 5;

/** The content of the section. */
export function buildSummary(run) {
  const found = hazards(run);
  const rest = [bounds, kernels, refusals, host, accuracy, quantized, next].map((finding) => finding(run));
  const findings = run.hazards?.length ? [found, ...rest] : [...rest.slice(0, -1), found, rest.at(-1)];
  return [tiles(run), h("div", { class: "findings" },
    findings.filter(Boolean))];
}

function tile(label, value, detail) {
  return h("div", { class: "tile" }, h("span", { class: "soft" }, label), h("b", null, value), h("span", { class: "soft" }, detail));
}

function tiles(run) {
  const { profile, record } = run;
  const found = [];
  if (run.seconds !== null) found.push(tile("time of a run", si(run.seconds, "s"), intervalText(run)));
  else if (run.tiled.size) {
    const expected = run.kernels.reduce((sum, k) => sum + (k.expected ?? 0), 0);
    found.push(tile("expected by the cost model", timeOf(run, expected), "kernels one after the other"));
  }
  if (profile?.waterfall) found.push(tile("efficiency", percent(profile.waterfall.efficiency), "ideal time over time"));
  if (profile) {
    const used = profile.utilisation;
    found.push(tile("tensor engines", percent(used.tensor), `of their peak; vector ${percent(used.vector)}`));
    found.push(tile("device memory", percent(used.hbm), `of hbm's bandwidth; l2 ${percent(used.l2)}`));
    found.push(tile("energy", si(profile.energy_joules.total, "J"), `${si(profile.power.watts, "W")} on average`));
  }
  if (run.kernels.length) found.push(tile("kernels", whole(run.kernels.length), record.graph ? `for ${counted(record.graph.nodes.length, "ONNX node")}` : `at precision ${record.precision}`));
  return h("div", { class: "tiles" }, found);
}

function intervalText(run) {
  const cycles = `${whole(run.cycles)} cycles`;
  const [low, high] = run.profile?.interval?.seconds ?? [];
  return low === undefined ? cycles : `${cycles}; ${si(low, "s")} to ${si(high, "s")} were the target's estimates off`;
}

function finding(kind, title, ...content) {
  return h("div", { class: `finding ${kind}` }, h("h3", null, title), content);
}

const advise = (...content) => h("p", { class: "do" }, content);

function hazards(run) {
  const found = run.hazards;
  if (!found) return null;
  if (!found.length) return finding("good", "Hazards: none", h("p", null, "All accesses to the same bytes are ordered."));
  return finding("bad", `Hazards: ${whole(found.length)}`, h("p", null, "Accesses to the same bytes that nothing orders: the program may compute wrong values. This is an error of ppuc."),
    h("pre", null, found.slice(0, 20).join("\n")), advise("Report it with this page; ", h("code", null, `ppuc verify ${quoted(modelFile(run))}`), " shows whether values are wrong."));
}

function bounds(run) {
  const loss = largestLoss(run);
  if (!loss) return null;
  const { waterfall } = run.profile;
  const owners = Object.entries(waterfall.owners).filter(([, share]) => share > 0.0005).sort((a, b) => b[1] - a[1]);
  return finding("first", `The largest loss is ${loss.meaning}: ${percent(loss.share)} of the time (${timeOf(run, loss.cycles)}), and the ${loss.owner}'s`,
    loss.causes ? h("p", null, `It consists of ${causesText(run, loss)}.`) : null,
    h("p", { class: "soft" }, "Of the whole time: ", owners.map(([owner, share]) => `${owner} ${percent(share)}`).join(", "), ". ",
      h("a", { click: () => openSection("time") }, "the waterfall")),
    advise(adviceForPart(run, loss)));
}

function kernels(run) {
  const found = run.kernels.filter((k) => k.cycles).sort((a, b) => b.cycles - a.cycles).slice(0, MOST_LISTED);
  if (!found.length) return null;
  const share = found.reduce((sum, k) => sum + k.share, 0);
  return finding("", `The ${counted(found.length, "kernel")} that cost most: ${percent(share)} of the ${run.profile ? "time" : "expected time"}`,
    smallTable(["kernel", "ONNX nodes", "time", "share", "bound by"], found.map((k) => [
      kernelLink(k.kernel), nodeLinks(run, k.loc, 2), timeOf(run, k.cycles), percent(k.share), k.bound_by ?? "–"]), 2, 4),
    advise(`${found[0].kernel}: ${adviceForKernel(found[0])}`));
}

function refusals(run) {
  const found = costliestRefusals(run);
  if (!found.length) return null;
  const most = found.slice(0, MOST_LISTED);
  return finding("", `Refused fusions and placements that cost most (${whole(found.length)} in all)`,
    smallTable(["tensor", "nodes", "size", "costs at least", "pass", "why"], most.map((r) => [
      r.entity, nodeLinks(run, r.nodes, 3), r.details.bytes ? bytes(r.details.bytes) : "–", timeOf(run, r.lost_clk), r.pass,
      r.reasons.join("; ")]), 2, 4),
    advise(adviceForRefusal(most[0])));
}

function host(run) {
  const steps = run.profile?.host ?? [];
  const later = run.profile?.later ?? [];
  if (!steps.length && !later.length) return null;
  const nodes = steps.reduce((sum, step) => sum + step.nodes.length, 0);
  const moved = steps.reduce((sum, step) => sum + step.transfer_seconds, 0);
  return finding("", `${counted(nodes, "node")} on the host, ${counted(later.length, "program")} compiled at run time`,
    h("p", null, `Transfers take ${si(moved, "s")} of simulated time a run.`),
    smallTable(["host step", "to the host", "to the PPU", "transfers"], steps.slice(0, MOST_LISTED).map((step) => [
      nodeLinks(run, step.nodes, 3), bytes(step.from_ppu_bytes), bytes(step.to_ppu_bytes), si(step.transfer_seconds, "s")]), 1, 4),
    advise(h("code", null, `ppuc check ${quoted(modelFile(run))}`), " says for each node why, and what would bring it to the PPU."));
}

function accuracy(run) {
  const { verify } = run.record;
  if (!verify) return null;
  const worst = verify.outputs.reduce((a, b) => ((a?.sqnr_db ?? Infinity) <= (b.sqnr_db ?? Infinity) ? a : b), null);
  const kind = { ok: "good", wrong: "bad" }[verify.verdict] ?? "";
  return finding(kind, `Accuracy: ${verify.verdict}`,
    smallTable(["output", "verdict", "SQNR", "max abs", "cosine"], verify.outputs.map((o) => [
      o.name, o.verdict, decibels(o.sqnr_db), o.max_abs?.toExponential(2) ?? "–", o.cosine?.toFixed(6) ?? "–"]), 2, 5),
    verify.first_offender ? h("p", null, `The first tensor that is off: ${verify.first_offender.name ?? verify.first_offender}`) : null,
    verify.layers?.length ? null : advise(h("code", null, `ppuc verify ${quoted(modelFile(run))} --layers`), ` compares inner tensors too${worst ? `, to find where ${worst.name} loses accuracy` : ""}.`));
}

function quantized(run) {
  const found = run.record.quantize;
  if (!found) return null;
  return finding(found.goal_met === false ? "bad" : "good",
    `In 8 bits: ${decibels(found.accuracy.sqnr_db)}, agreement ${percent(found.accuracy.agreement, 2)}, ${found.time.speedup.toFixed(2)} × the speed of bf16`,
    h("p", null, `${percent(found.share)} of the multiply-accumulates in 8 bits. `, h("a", { click: () => openSection("quantization") }, "layers and goals")),
    advise(found.goal_met === false ? ["The goal is missed: lift the noisiest layers, with ", h("code", null, "--precision mixed"), "."]
      : ["Compile with the policy: ", h("code", null, `ppuc compile ${quoted(modelFile(run))} --policy ${quoted(found.policy ?? "policy.toml")}`)]));
}

function next(run) {
  const file = quoted(modelFile(run));
  const missing = [];
  if (!run.profile) missing.push([h("code", null, `ppuc profile ${file} --timing-only`), " measures the time of every kernel"]);
  if (!run.record.verify) missing.push([h("code", null, `ppuc verify ${file}`), " compares the outputs with ONNX Runtime's, and checks that all accesses to memory are ordered"]);
  if (!run.record.graph) missing.push(["A report of the .onnx instead of the .ppu also shows the graph and what each pass changed"]);
  return missing.length ? finding("", "Not in this report", h("ul", null, missing.map((m) => h("li", null, m)))) : null;
}
