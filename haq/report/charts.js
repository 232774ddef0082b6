// Shared by the report of one run and the overlay of several: formats, looks, and drawing.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const ACCENT = "#2f81d6", UNIFORM = "#d98c1f", NEUTRAL = "#8b95a1", PICKED = "#d6336c";
const GRID = "rgba(139, 149, 161, 0.25)";
const FONT = "system-ui, sans-serif";
// Shapes tell series apart first; colour-blind readers can tell these colours apart too
const SERIES = [
  ["circle", ACCENT], ["triangle-up", UNIFORM], ["square", "#2a9d78"], ["diamond", "#c9639b"], ["cross", "#8a6fd1"],
  ["triangle-down", "#56b4e9"], ["pentagon", "#b8860b"], ["x", NEUTRAL], ["hexagon", "#d6604d"],
  ["hourglass", "#5f8f3a"],
];
const LOOKS = DATA.looks; // of each metric: title, scales, ticks, and whether it is for a whole batch
const NEAR = 2.5; // pixels; of points that are closer, one would hide the other

// Plotly reads some markup in texts; it knows entities for these three characters, but not for quotes
const shown = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = (fraction) => (fraction == null ? "–" : (100 * fraction).toFixed(1) + " %");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const byId = (id) => document.getElementById(id);
const narrow = () => window.innerWidth < 600;

function formatted(field, value) {
  if (value == null) return "–";
  const { scales } = LOOKS[field];
  const [factor, unit] = scales.find((scale) => Math.abs(value) >= scale[0]) || scales[scales.length - 1];
  const number = value / factor;
  return (number.toFixed(number < 10 ? 2 : number < 100 ? 1 : 0) + " " + unit).trimEnd();
}

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text != null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function axis(more) {
  return { gridcolor: GRID, zerolinecolor: GRID, automargin: true, ticks: "", title: { font: { size: 13 } }, ...more };
}

function titled(text) {
  return { text, font: { size: 13 }, standoff: 12 };
}

function layout(height, more) {
  return {
    template: {},
    height,
    margin: { l: 12, r: 12, t: 36, b: 12 },
    font: { family: FONT, size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemsizing: "constant" },
    hoverlabel: { bgcolor: "#22282f", bordercolor: "#22282f", font: { family: FONT, color: "#fff" }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: NEUTRAL, activecolor: ACCENT },
    dragmode: false, // a finger that starts on a chart scrolls the page
    ...more,
  };
}

function draw(node, traces, look) {
  const buttons = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons: buttons };
  Plotly.react(node, traces, look, config);
}

// Keeps one of the points that would overlap in a chart of that many pixels
function thinned(points, x, y, width, height) {
  if (points.length < 800) return points;
  const [left, right] = extent(points, x), [low, high] = extent(points, y);
  const taken = new Set();
  return points.filter((point) => {
    const column = Math.floor(((x(point) - left) / (right - left || 1)) * (width / NEAR));
    const row = Math.floor(((y(point) - low) / (high - low || 1)) * (height / NEAR));
    const cell = column * 1e5 + row;
    return !taken.has(cell) && taken.add(cell);
  });
}

function extent(points, of) {
  let low = Infinity, high = -Infinity;
  for (const point of points) {
    const value = of(point);
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// Returns the points with x and y that beat all cheaper ones, in order; `sign` is -1 where less is better
function staircase(points, sign) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y)).filter((point) => {
    const better = sign * point.y > best;
    if (better) best = sign * point.y;
    return better;
  });
}

const QUALITIES = { top1: "Top-1", loss: "Loss", kl: "Divergence" };

// Returns the qualities that at least one of the runs has scores of
function qualitiesOf(runs) {
  const known = Object.entries(QUALITIES).filter(([key]) => runs.some((run) => run.scores[key].some((y) => y != null)));
  return known.length ? known : [["top1", QUALITIES.top1]];
}

function scoreText(quality, value) {
  if (quality === "top1") return `top-1 ${percent(value)}`;
  return `${QUALITIES[quality].toLowerCase()} ${value?.toFixed(3) ?? "–"}`;
}

// Losses and divergences differ by orders of magnitude, and less is better: higher up
function qualityAxis(quality) {
  const title = titled(`${QUALITIES[quality]} on the validation samples`);
  if (quality === "top1") return axis({ title, tickformat: "~%" });
  return axis({ title, type: "log", autorange: "reversed", dtick: "D2", tickformat: "~g" });
}

function costAxis(field, batch) {
  const { title, ticks, per_batch } = LOOKS[field];
  const text = title + (per_batch && batch ? `, batch of ${batch}` : "");
  return axis({ title: titled(text), nticks: narrow() ? 5 : 10, ...ticks });
}

// A group of radio buttons: arrow keys move, as the browser does it
function choice(parent, name, label, options, value, changed) {
  if (options.length < 2) return;
  const group = element("fieldset", null, byId(parent));
  element("legend", label, group);
  for (const [key, text] of options) {
    const item = element("label", null, group);
    const button = element("input", null, item);
    Object.assign(button, { type: "radio", name, value: key, checked: key === value });
    button.addEventListener("change", () => changed(key));
    element("span", text, item);
  }
}

// Charts far down the page are drawn when they come near
const waiting = new Map();
const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => wake(entry.target)),
  { rootMargin: "400px" },
);

function later(node, start) {
  waiting.set(node, start);
  watcher.observe(node);
}

function wake(node) {
  const start = waiting.get(node);
  waiting.delete(node);
  watcher.unobserve(node);
  if (start) start();
}

const PAPER = 680; // pixels between the margins of A4
let closed = [];
const resized = (size) => document.querySelectorAll(".js-plotly-plot").forEach((node) => Plotly.relayout(node, size));
window.addEventListener("beforeprint", () => {
  [...waiting.keys()].forEach(wake);
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => (part.open = true));
  resized({ width: PAPER, autosize: false });
});
window.addEventListener("afterprint", () => {
  closed.forEach((part) => (part.open = false));
  resized({ width: null, autosize: true });
});
