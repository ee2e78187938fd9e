// Vega-Lite charts in the colours of the page; drawn again when these change or the window is resized.
import { h } from "./dom.js";

const drawn = new Set();

function config() {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line] = ["--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const font = 'system-ui, "DejaVu Sans", sans-serif';
  return {
    background: "transparent",
    font,
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: soft, tickColor: soft, labelLimit: 240, titleFontWeight: 500 },
    legend: { labelColor: text, titleColor: text, labelLimit: 260, orient: "bottom", columns: 9, titleFontWeight: 500, symbolBaseFillColor: soft, symbolBaseStrokeColor: soft },
    header: { labelColor: text, titleColor: text },
    text: { color: text },
    title: { color: text },
    view: { stroke: line },
  };
}

/** A chart in `holder`. `spec(width)` gives the specification for a width in pixels; `click(datum)` opens what a mark
 * stands for. Names of a model go into data only: expressions are code. */
export function chart(spec, click = null) {
  const holder = h("div", { class: "chart" });
  const entry = { holder, width: 0 };
  entry.draw = async () => {
    if (!holder.isConnected || holder.clientWidth === 0) return;
    entry.width = holder.clientWidth;
    const full = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", autosize: { type: "fit-x", contains: "padding" }, ...spec(entry.width - 20) };
    const { view } = await vegaEmbed(holder, full, {
      renderer: "svg", config: config(), hover: false,
      actions: { export: true, source: false, compiled: false, editor: false },
      tooltip: { theme: document.documentElement.dataset.theme === "dark" ? "dark" : "light" },
    });
    if (click) view.addEventListener("click", (event, item) => { if (item?.datum) click(item.datum); });
  };
  drawn.add(entry);
  queueMicrotask(() => watched(entry.draw()));
  return holder;
}

/** A promise whose failure is reported as an error of the page. */
export function watched(promise) {
  return promise.catch((error) => window.dispatchEvent(new ErrorEvent("error", { error, message: String(error) })));
}

/** Draw all charts that are visible again. */
export function redrawCharts(resized = false) {
  for (const entry of drawn) {
    if (!entry.holder.isConnected) drawn.delete(entry);
    else if (!resized || Math.abs(entry.holder.clientWidth - entry.width) > 8) watched(entry.draw());
  }
}
