// Elements of the page. Text is always set as text, never parsed: names of a model may hold anything.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "hidden" || key === "open") element.toggleAttribute(key, true);
    else element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element. Functions among the attributes listen to the event of that name; children are elements or text. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, as `h`. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A legend: [name, colour] pairs. */
export function legend(entries) {
  return h("div", { class: "legend" }, entries.map(([name, colour]) =>
    h("span", null, h("span", { class: "swatch", style: `background:${colour}` }), name)));
}

/** A row of controls above a chart or a table. */
export function tools(...children) {
  return h("div", { class: "tools" }, ...children);
}

/** A select of [value, label] pairs. */
export function choice(label, options, chosen, changed) {
  const select = h("select", { change: () => changed(select.value), "aria-label": label },
    options.map(([value, text]) => h("option", { value }, text)));
  select.value = chosen;
  return h("label", null, `${label} `, select);
}

/** A button that saves `text` as a file. */
export function saveButton(label, name, text) {
  return h("button", {
    type: "button",
    click: () => {
      const url = URL.createObjectURL(new Blob([text()], { type: "text/csv;charset=utf-8" }));
      h("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    },
  }, label);
}
