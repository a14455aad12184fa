"use strict";
// The page's script: the theme, small makers of elements, how numbers are written. Text only ever enters by textContent.

const DASH = "–";

function theme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function keep(key, value) {
  try { value === undefined ? 0 : localStorage.setItem(key, value); return localStorage.getItem(key); } catch { return null; }
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const name = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${button.textContent.toLowerCase()} colours`); };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    keep("jaxdict-theme", theme());
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const missing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);

// Three significant digits; whole numbers whole; scientific below 1e-3 and from 1e6.
function shown(value, kind) {
  if (missing(value)) return DASH;
  if (typeof value === "string") return value;
  if (kind === "share") return shown(100 * value) + "%";
  const minus = value < 0 ? "−" : "", size = Math.abs(value);
  const grouped = (decimals) => minus + size.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  if (size === 0 || kind === "count") return grouped(0);
  if (size < 1e-3 || size >= 1e6) return minus + size.toExponential(2).replace("e+", "e").replace("-", "−");
  return grouped(Math.max(0, 2 - Math.floor(Math.log10(Number(size.toPrecision(3))))));
}

const label = (text, whole) => (missing(text) ? el("span", { class: "small" }, DASH) : el("bdi", { class: whole ? "label whole" : "label", title: text }, text));

let page = null; // { tables, cards, examples, ... }, parsed once

function column(table, key) { return page.tables[table].values[key] || []; }

const rowOf = new Map(); // feature number -> its row in the features table
function ofFeature(k, key) {
  const row = rowOf.get(k), value = row === undefined ? null : column("features", key)[row];
  return value === undefined ? null : value;
}

const saved = keep("jaxdict-theme");
if (saved === "dark" || saved === "light") document.documentElement.dataset.theme = saved;
document.addEventListener("DOMContentLoaded", () => {
  page = JSON.parse(document.getElementById("data").textContent);
  for (const { values } of Object.values(page.tables)) for (const key of Object.keys(values)) values[key] = unpack(values[key]);
  if (page.examples) addExamples(page.examples);
  column("features", "feature").forEach((k, row) => rowOf.set(k, row));
  setUpTheme();
  document.querySelectorAll("[data-table]").forEach((box) => makeTable(box, box.dataset.table));
  setUpCards();
});
