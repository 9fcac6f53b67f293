// Elements made from data. Text goes in as text, never as markup: a title may hold anything.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const text = (kind, words) => element("span", { class: kind }, String(words));

// The category in words, after a dot whose colour is always the same for it.
export function category(words) {
  if (!words) return null;
  const dot = element("i", { class: "dot" });
  let hash = 0;
  for (const letter of words) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  dot.style.setProperty("--hue", (hash * 137.508) % 360); // the golden angle spreads neighbours
  return element("span", { class: "category" }, dot, words);
}

// A bar of a share between 0 and 1, or, with a middle, of -1 to 1: the numbers beside it say the same.
export function bar(share, kind = "") {
  const filled = element("i");
  filled.style.setProperty("--share", Math.min(Math.abs(share), 1));
  const side = share < 0 ? "against" : "";
  return element("span", { class: `bar ${kind} ${side}`.trim(), "aria-hidden": "true" }, filled);
}

export const nameOf = (item) => item.title || item.item_id;

const FINE = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const COARSE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SIGNED = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2, signDisplay: "exceptZero" });
export const number = (value) => (Math.abs(value) < 100 ? FINE : COARSE).format(value);
export const signed = (value) => SIGNED.format(value);
export const percent = (value) => `${Math.round(value * 100)} %`;
