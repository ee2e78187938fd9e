// Numbers with units. Cycles are of the chip's clock; sizes are decimal bytes, as in the tables of the command line.

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

/** Three to four significant digits with a prefix: `si(0.0000729, "s")` is "72.9 µs". */
export function si(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return `0 ${unit}`;
  const size = Math.abs(value);
  const [scale, prefix] = PREFIXES.find(([limit]) => size >= limit * 0.99995) ?? PREFIXES.at(-1);
  return `${round(value / scale)} ${prefix}${unit}`;
}

/** A number with four significant digits at most. */
export function round(value) {
  const digits = Math.abs(value) >= 1000 ? 0 : Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.min(digits, 6) });
}

/** Bytes, none of them as "0 B". */
export function bytes(value) {
  return value !== null && Math.abs(value) < 1000 ? `${whole(value)} B` : si(value, "B");
}

/** An integer with separators. */
export function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

/** A share of 1 as a percentage. */
export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)}%`;
}

/** Decibels. */
export function decibels(value) {
  return value === null || value === undefined ? "–" : `${value.toFixed(1)} dB`;
}

/** "1 kernel", "2 kernels". */
export function counted(number, thing) {
  return `${whole(number)} ${thing}${number === 1 ? "" : "s"}`;
}

/** The unit for a time axis that ends at `seconds`: [units a second, its name]. */
export function timeUnit(seconds) {
  if (seconds < 1e-6) return [1e9, "ns"];
  if (seconds < 1e-3) return [1e6, "µs"];
  return seconds < 1 ? [1e3, "ms"] : [1, "s"];
}

/** The unit for a byte axis that ends at `size`: [bytes a unit, its name]. */
export function byteUnit(size) {
  if (size < 1e3) return [1, "B"];
  if (size < 1e6) return [1e3, "kB"];
  return size < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
}

/** An argument of a command as a shell takes it. */
export function quoted(text) {
  return /^[\w./@%+=:,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
