// Reads the record, builds the sections, and follows the fragment of the address: #section=graph, #kernel=NAME, #node=NAME,
// #pass=14, #find=NODE (in the graph), #theme=dark, #all (every section).
import { redrawCharts, watched } from "./chart.js";
import { h } from "./dom.js";
import { buildGraph, pickNodes, revealNode } from "./graph.js";
import { buildKernels } from "./kernels.js";
import { buildMemory } from "./memory.js";
import { openKernel, openNode, preparePanel } from "./panel.js";
import { buildPasses, openPass } from "./passes.js";
import { buildQuantization } from "./quantization.js";
import { buildRoofline } from "./roofline.js";
import { readRun } from "./run.js";
import { contents, openAll, openSection, section } from "./sections.js";
import { buildSummary } from "./summary.js";
import { buildTime } from "./time.js";
import { buildTimeline } from "./timeline.js";

const THEMES = ["auto", "light", "dark"];
let chosenTheme = "auto";

async function readRecord() {
  const packed = Uint8Array.from(atob(document.getElementById("record").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function sectionList(run) {
  const { record, profile } = run;
  const onnx = "A report of the .onnx model has it: a compiled .ppu holds neither the graph nor the texts of passes.";
  const profiled = "ppuc profile measures it; so does ppuc report MODEL.";
  const some = (present, build) => (present ? () => build(run) : null);
  return [
    section("summary", "What matters", "and what to do next", some(true, buildSummary), ""),
    section("time", "Waterfall", "from the ideal to the run", some(profile?.waterfall, buildTime), profiled),
    section("roofline", "Roofline", "arithmetic intensity and achieved arithmetic of every kernel", some(profile, buildRoofline), profiled),
    section("kernels", "Kernels and nodes", "time of each, as tables", some(run.kernels.length, buildKernels), profiled),
    section("graph", "Graph", "ONNX nodes by module, fused kernels", some(record.graph, buildGraph), onnx),
    section("passes", "Passes", "what each changed, and why", some(record.passes.length, buildPasses), onnx),
    section("memory", "Memory plan", "addresses over time", some(record.memory, buildMemory), "ppuc report MODEL has it."),
    section("timeline", "Timeline", "kernels and queues over time", some(profile, buildTimeline), profiled),
    section("quantization", "Quantization", "sensitivity and goals", some(record.quantize, buildQuantization), "ppuc quantize MODEL.onnx --calibrate SAMPLES.npz --record RUN.json measures it, and ppuc report RUN.json shows it."),
  ];
}

function aboutText(record) {
  const inputs = Object.entries(record.inputs ?? {}).map(([name, type]) => `${name}: ${type}`);
  const shown = inputs.slice(0, 3).join(", ") + (inputs.length > 3 ? ` +${inputs.length - 3}` : "");
  return `precision ${record.precision}${shown && ", "}${shown}; ppuc ${record.ppuc}`;
}

function setTheme(theme) {
  chosenTheme = theme;
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `colours: ${theme}`;
  redrawCharts();
}

function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (THEMES.includes(wanted.get("theme"))) setTheme(wanted.get("theme"));
  if (wanted.has("all")) openAll();
  if (wanted.has("section")) openSection(wanted.get("section"));
  if (wanted.has("pass")) { openSection("passes"); openPass(Number(wanted.get("pass"))); }
  if (wanted.has("find")) { openSection("graph"); setTimeout(() => revealNode(wanted.get("find")), 0); }
  if (wanted.has("kernel")) openKernel(wanted.get("kernel"));
  if (wanted.has("node")) openNode(wanted.get("node"));
}

function showErrors() {
  const report = (what) => {
    document.getElementById("main").prepend(h("div", { class: "error" }, `This page has an error; please report it.\n${what}`));
    document.body.dataset.errors = Number(document.body.dataset.errors ?? 0) + 1;
  };
  window.addEventListener("error", (event) => report(event.error?.stack ?? event.message));
  window.addEventListener("unhandledrejection", (event) => report(event.reason?.stack ?? event.reason));
}

async function start() {
  const record = await readRecord();
  const run = readRun(record);
  document.getElementById("about").textContent = aboutText(record);
  const list = sectionList(run);
  document.getElementById("contents").replaceChildren(contents());
  document.getElementById("main").replaceChildren(...list);
  preparePanel(run, pickNodes);
  setTheme("auto");
  document.getElementById("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(chosenTheme) + 1) % THEMES.length]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (chosenTheme === "auto") setTheme("auto"); });
  openSection("summary", false);
  follow();
  window.addEventListener("hashchange", follow);
  let resizing = 0;
  window.addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => redrawCharts(true), 200); });
  document.body.dataset.ready = "yes";
}

showErrors();
watched(start());
