// The report of one run: a policy picked in the scatter plot or in the list fills the chart of bits.
"use strict";

const { policies, scores, levels, layers, costs } = DATA;
const last = levels.length - 1;
const state = {
  field: DATA.axis,
  quality: DATA.quality,
  time: "trial",
  view: "close",
  map: 0,
  picked: DATA.chosen ?? (DATA.front.length ? DATA.front[0] : null),
};
const letters = new Map([...DATA.alphabet].map((letter, index) => [letter, index]));
const every = scores.policy.map((policy, row) => ({
  policy, level: scores.level[row], top1: scores.top1[row], loss: scores.loss[row], kl: scores.kl[row],
}));
const best = new Map(); // policy → its longest-trained score
for (const point of every) {
  if (!best.has(point.policy) || best.get(point.policy).level < point.level) best.set(point.policy, point);
}

const origin = (policy) => DATA.origins[policies.origin[policy]];
const isUniform = (policy) => origin(policy).startsWith("uniform");
const price = (policy, field) => policies.cost[field]?.[policy] ?? null;
const title = (policy) =>
  policies.number[policy] == null ? capital(origin(policy)) : `Trial ${policies.number[policy]} · ${origin(policy)}`;
const metricName = (field) => DATA.metrics.find((metric) => metric.field === field).name;

// For each layer the place of its pair of widths in DATA.pairs; null if the run folder does not hold them
function pairsOf(policy) {
  const word = policies.bits[policy];
  return word == null ? null : [...word].map((letter) => letters.get(letter));
}

function meanBits(policy) {
  const pairs = pairsOf(policy);
  if (!pairs) return "–";
  return [0, 1].map((side) => {
    const widths = pairs.map((pair) => DATA.pairs[pair][side]).filter((width) => width != null);
    return widths.length ? (widths.reduce((a, b) => a + b) / widths.length).toFixed(1) : "float";
  }).join(" / ");
}

function described(point) {
  const known = ["top1", "loss", ...(point.kl == null ? [] : ["kl"])];
  return `${levels[point.level].name}: ${known.map((quality) => scoreText(quality, point[quality])).join(", ")}`;
}

function priced(policy) {
  return DATA.metrics.map(({ field, name }) => `${name} ${formatted(field, price(policy, field))}`).join(", ");
}

function hover(point) {
  const costs = DATA.metrics.map(({ field, name }) => `${name} ${formatted(field, price(point.policy, field))}`);
  const rows = [];
  while (costs.length) rows.push(costs.splice(0, 3).join(", "));
  return [
    `<b>${shown(title(point.policy))}</b>`, described(point), ...rows,
    `mean bits ${meanBits(point.policy)} (weights / activations)`,
  ].join("<br>");
}

// Accuracy and cost

function drawScatter() {
  const { field, quality } = state, node = byId("scatter");
  const sign = quality === "top1" ? 1 : -1;
  const points = every
    .map((point) => ({ ...point, x: price(point.policy, field), y: point[quality] }))
    .filter((point) => point.x != null && point.y != null);
  const traces = [];
  const add = (name, chosen, symbol, color, size) => {
    if (!chosen.length) return;
    traces.push({
      type: "scatter", mode: "markers", name,
      x: chosen.map((point) => point.x), y: chosen.map((point) => point.y),
      customdata: chosen.map((point) => point.policy), hovertext: chosen.map(hover), hoverinfo: "text",
      marker: { symbol, color, size, line: { color, width: 1.5 } },
    });
  };
  const view = state.view === "close" ? closeUp(points) : null;
  const seen = view ? points.filter((point) => inside(point, view)) : points;
  const width = node.clientWidth;
  const searched = seen.filter((point) => !isUniform(point.policy));
  const drawn = thinned(searched.filter((point) => point.level === last), (p) => p.x, (p) => p.y, width, 400);
  let left = searched.filter((point) => point.level === last).length - drawn.length;
  levels.forEach((level, index) => {
    let at = index === last ? drawn : searched.filter((point) => point.level === index);
    if (index !== last) {
      const kept = thinned(at, (p) => p.x, (p) => p.y, width, 400);
      left += at.length - kept.length;
      at = kept;
    }
    const symbol = index === last ? "circle" : level.steps === 0 ? "circle-open" : "triangle-up-open";
    add(level.name, at, symbol, NEUTRAL, 7);
  });
  levels.forEach((level, index) => {
    const at = seen.filter((point) => point.level === index && isUniform(point.policy));
    add(`uniform widths, ${level.name}`, at, level.steps ? "diamond" : "diamond-open", UNIFORM, 11);
  });
  const fronted = new Set(DATA.front);
  const front = seen.filter((point) => fronted.has(point.policy) && point.level === last);
  const steps = staircase(front, sign);
  traces.push({
    type: "scatter", mode: "lines", x: steps.map((p) => p.x), y: steps.map((p) => p.y), hoverinfo: "skip",
    line: { color: ACCENT, width: 2, shape: "hv" }, showlegend: false,
  });
  add("Pareto front", front, "circle", ACCENT, 9);
  const chosen = points.filter((point) => point.policy === DATA.chosen && point === bestAt(points, point.policy));
  if (chosen.length) add(`chosen, trial ${policies.number[DATA.chosen]}`, chosen, "star", ACCENT, 19);
  const full = DATA.float.cost[field];
  if (full != null && DATA.float[quality] != null && (!view || inside({ x: full, y: DATA.float[quality] }, view))) {
    traces.push({
      type: "scatter", mode: "markers", name: "floating point", x: [full], y: [DATA.float[quality]], hoverinfo: "text",
      hovertext: [`<b>Floating point</b><br>top-1 ${percent(DATA.float.top1)}<br>${formatted(field, full)}`],
      marker: { symbol: "square-open", color: NEUTRAL, size: 11, line: { color: NEUTRAL, width: 2 } },
    });
  }
  traces.push({
    type: "scatter", mode: "markers", name: "policy shown below", ...ring(), hoverinfo: "skip",
    marker: { symbol: "circle-open", color: PICKED, size: 26, line: { color: PICKED, width: 2.5 } },
  });
  const metric = DATA.metrics.find((found) => found.field === field);
  const rows = narrow() ? traces.length : Math.ceil(traces.length / 4);
  draw(node, traces, layout(440 + 21 * rows, {
    xaxis: { ...costAxis(field, DATA.batch), ...(view && { range: view.x }) },
    yaxis: { ...qualityAxis(quality), ...(view && { range: view.y.map(placed), autorange: false }) },
    shapes: marks(), annotations: notes(metric),
  }));
  node.view = view;
  const outside = points.length - seen.length;
  byId("drawn").textContent = [
    outside ? `${outside} of ${points.length} scores lie outside this view; “All” shows them.` : "",
    left ? `${left} points are not drawn, because others lie on them; all policies are in the list.` : "",
  ].join(" ").trim();
}

// Where most searched policies lie: one bad score, or a network far off the budget, would squeeze all others
function closeUp(points) {
  const searched = points.filter((point) => policies.number[point.policy] != null);
  if (searched.length < 8) return null;
  const limit = DATA.metrics.find((metric) => metric.field === state.field).limit;
  const sign = state.quality === "top1" ? 1 : -1;
  const fronted = new Set(DATA.front);
  const front = searched.filter((point) => fronted.has(point.policy) && point.level === last);
  const ranked = (of, share) => searched.map(of).sort((a, b) => a - b)[Math.floor(share * searched.length)];
  const cost = (point) => point.x, good = (point) => sign * point.y;
  const [cheapest, dearest] = extent([...front, ...(limit == null ? [] : [{ x: limit }])], cost);
  const left = Math.min(cheapest, ranked(cost, 0.05)), right = Math.max(dearest, ranked(cost, 0.99));
  const worst = sign * Math.min(extent(front, good)[0], ranked(good, 0.15));
  const full = DATA.float[state.quality];
  const best = sign * Math.max(extent(searched, good)[1], full == null ? -Infinity : sign * full);
  const [low, high] = [placed(worst), placed(best)];
  const aside = 0.06 * (right - left || right || 1), up = 0.1 * (high - low || 0.1);
  const y = [low - up, high + up].map((end) => (sign > 0 ? end : 10 ** end));
  return { x: [Math.max(0, left - aside), right + aside], y };
}

// The position of a value on the axis of quality: those of losses and divergences are logarithmic
function placed(value) {
  return state.quality === "top1" ? value : Math.log10(value);
}

function inside(point, view) {
  const [low, high] = extent(view.y, Number);
  return point.x >= view.x[0] && point.x <= view.x[1] && point.y >= low && point.y <= high;
}

function bestAt(points, policy) {
  return points.filter((point) => point.policy === policy).sort((a, b) => b.level - a.level)[0];
}

// The budget, and floating point
function marks() {
  const { field, quality } = state, found = [];
  const limit = DATA.metrics.find((metric) => metric.field === field).limit;
  const line = { color: NEUTRAL, width: 1.5, dash: "dash" };
  if (limit != null) found.push({ type: "line", x0: limit, x1: limit, y0: 0, y1: 1, yref: "paper", line });
  if (DATA.float[quality] != null) {
    const y = DATA.float[quality];
    found.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: y, y1: y, line: { ...line, width: 1, dash: "dot" } });
  }
  return found;
}

// The point of the picked policy, at its longest training
function ring() {
  const point = best.get(state.picked);
  const x = point ? price(point.policy, state.field) : null;
  return x == null || point[state.quality] == null ? { x: [], y: [] } : { x: [x], y: [point[state.quality]] };
}

function notes(metric) {
  const found = [];
  if (metric.limit != null) {
    found.push({
      x: metric.limit, xanchor: "right", y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: `budget ${formatted(metric.field, metric.limit)}`,
    });
  }
  const score = DATA.float[state.quality];
  if (score != null) {
    const text = "float " + (state.quality === "top1" ? percent(score) : score.toFixed(3));
    const y = placed(score); // on a logarithmic axis, annotations take the logarithm and shapes the value
    const place = { x: 0, xref: "paper", xanchor: "left", y, yanchor: "bottom" };
    found.push({ ...place, text, showarrow: false, font: { size: 12 } });
  }
  return found;
}

// The picked policy

function pick(policy) {
  state.picked = policy;
  const list = byId("policy");
  if (list.value !== String(policy)) list.value = String(policy);
  const node = byId("scatter");
  const place = ring();
  const [x, y] = [place.x[0], place.y[0]];
  if (node.view && x != null && !inside({ x, y }, node.view)) {
    document.querySelector('input[name="view"][value="all"]').click(); // or the ring would be out of sight
  } else {
    Plotly.restyle(node, { x: [place.x], y: [place.y] }, [node.data.length - 1]);
  }
  if (byId("sensitivity")?.data) drawMap();
  drawPicked();
}

function fillList() {
  const list = byId("policy");
  const option = (group, policy) => {
    const point = best.get(policy);
    const score = state.quality === "top1" ? percent(point.top1) : scoreText(state.quality, point[state.quality]);
    const cost = formatted(DATA.axis, price(policy, DATA.axis));
    const item = element("option", `${title(policy)} · ${score} · ${cost}`, group);
    item.value = String(policy);
  };
  const group = (label, members) => {
    if (!members.length) return;
    const made = element("optgroup", null, list);
    made.label = label;
    members.forEach((policy) => option(made, policy));
  };
  const scored = [...best.keys()].sort((a, b) => a - b);
  const trials = scored.filter((policy) => policies.number[policy] != null);
  const fronted = new Set(DATA.front);
  if (DATA.chosen != null) group("Chosen", [DATA.chosen]);
  group("Pareto front", DATA.front.filter((policy) => policy !== DATA.chosen));
  group("Uniform baselines", scored.filter((policy) => policies.number[policy] == null));
  group("Other trials", trials.filter((policy) => !fronted.has(policy) && policy !== DATA.chosen));
  list.addEventListener("change", () => pick(Number(list.value)));
}

if (layers.length) {
  const fields = DATA.metrics.map(({ field }) => [field, LOOKS[field].title]);
  choice("controls", "axis", "Cost", fields, state.field, (field) => {
    state.field = field;
    drawScatter();
    drawPicked();
  });
  choice("controls", "quality", "Quality", qualitiesOf([DATA]), state.quality, (quality) => {
    state.quality = quality;
    drawScatter();
    if (byId("progress").data) drawProgress();
  });
  choice("controls", "view", "View", [["close", "Close up"], ["all", "All"]], state.view, (view) => {
    state.view = view;
    drawScatter();
  });
  fillList();
  drawScatter();
  byId("scatter").on("plotly_click", (event) => {
    const policy = event.points[0].customdata;
    if (policy != null) pick(policy);
  });
  if (state.picked != null) pick(state.picked);
}
