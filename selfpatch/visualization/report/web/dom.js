"use strict";
// Elements, numbers, and what the reader has chosen. Texts are set by textContent: nothing is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// A link to a file beside the page, if it is one; else the text alone.
function fileLink(text, target) {
  if (!/^[\w.@-]+(\/[\w.@-]+)*$/.test(target)) return el("span", {}, text);
  return el("a", { href: `./${target}` }, text);
}

// Zoom, hidden lines, sorting: kept while a live page draws itself anew.
const memory = new Map();

function remembered(key, initial) {
  if (!memory.has(key)) memory.set(key, { ...initial });
  return memory.get(key);
}

let numIds = 0;

function freshId(prefix) {
  numIds += 1;
  return `${prefix}-${numIds}`;
}

// The same in every drawing of the page, so that the focus can come back.
function stableId(key) {
  return `k-${Array.from(key, (c) => (/[a-zA-Z0-9]/.test(c) ? c : `_${c.codePointAt(0).toString(36)}`)).join("")}`;
}

function formatNumber(value, percent) {
  if (value === null || !Number.isFinite(value)) return "not finite";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "\u2212").replace("e-", "e\u2212");
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(4))).replace("-", "\u2212");
}

// Round numbers that cover a range, about `count` of them.
function ticksOf(low, high, count, wholeNumbers = false) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.999) || 10);
  if (wholeNumbers) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function readJson(id) {
  return JSON.parse(document.getElementById(id).textContent);
}
