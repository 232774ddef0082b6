// Scatter plots of several runs over each other: each run has a shape and a colour.
"use strict";

const RUNS = DATA.runs;
const metrics = new Map(RUNS.flatMap((run) => run.metrics.map(({ field, name }) => [field, name])));
const now = {
  field: RUNS[0].axis,
  quality: (RUNS.find((run) => run.quality !== "top1") ?? RUNS[0]).quality,
  level: "longest",
};

function pointsOf(run) {
  const wanted = now.level === "longest" ? run.levels.length - 1 : run.levels.findIndex((level) => level.steps === 0);
  return run.scores.policy
    .map((policy, row) => ({
      policy, level: run.scores.level[row], x: run.policies.cost[now.field]?.[policy], y: run.scores[now.quality][row],
    }))
    .filter((point) => point.level === wanted && point.x != null && point.y != null);
}

function told(run, point) {
  const { number, origin } = run.policies;
  const who = number[point.policy] == null ? "" : `trial ${number[point.policy]} · `;
  return [
    `<b>${shown(run.name)}</b>`, who + shown(run.origins[origin[point.policy]]),
    `${run.levels[point.level].name}: ${scoreText(now.quality, point.y)}`, `${metrics.get(now.field)} ${formatted(now.field, point.x)}`,
  ].join("<br>");
}

function drawRuns() {
  const node = byId("scatter"), sign = now.quality === "top1" ? 1 : -1;
  const traces = [];
  RUNS.forEach((run, index) => {
    const [symbol, color] = SERIES[index % SERIES.length];
    const points = pointsOf(run);
    const steps = staircase(points.filter((point) => run.policies.number[point.policy] != null), sign);
    const onFront = new Set(steps.map((point) => point.policy));
    const others = points.filter((point) => !onFront.has(point.policy));
    const drawn = thinned(others, (p) => p.x, (p) => p.y, node.clientWidth, 400);
    const chosen = points.filter((point) => point.policy === run.chosen);
    const add = (some, mode, marker, legend) => traces.push({
      type: "scatter", mode, name: shown(`${run.name}, ${run.agent}`), legendgroup: String(index), showlegend: legend,
      x: some.map((p) => p.x), y: some.map((p) => p.y), hovertext: some.map((p) => told(run, p)), hoverinfo: "text",
      line: { color, width: 2, shape: "hv", dash: ["solid", "dash", "dot", "dashdot"][index % 4] }, marker,
    });
    const faint = { symbol: symbol + "-open", color, size: 7, opacity: 0.6, line: { color, width: 1.2 } };
    add(drawn, "markers", faint, false);
    add(steps, "lines+markers", { symbol, color, size: 9 }, true);
    const star = { symbol: "star", color, size: 18, line: { color: "#fff", width: 1 } };
    if (chosen.length) add(chosen, "markers", star, false);
  });
  const batches = new Set(RUNS.map((run) => run.batch));
  const limits = [...new Set(RUNS.map((run) => run.metrics.find((metric) => metric.field === now.field)?.limit))];
  const known = limits.filter((limit) => limit != null);
  const upright = { type: "line", y0: 0, y1: 1, yref: "paper", line: { color: NEUTRAL, width: 1.5, dash: "dash" } };
  draw(node, traces, layout(470 + 21 * RUNS.length, {
    xaxis: costAxis(now.field, batches.size === 1 ? RUNS[0].batch : null),
    yaxis: qualityAxis(now.quality),
    shapes: known.map((x) => ({ ...upright, x0: x, x1: x })),
    annotations: known.map((x) => ({
      x, xanchor: "right", y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: `budget ${formatted(now.field, x)}`,
    })),
  }));
}

const redraw = (key) => (value) => {
  now[key] = value;
  drawRuns();
};
const costs = [...metrics.keys()].map((field) => [field, LOOKS[field].title]);
choice("controls", "axis", "Cost", costs, now.field, redraw("field"));
choice("controls", "quality", "Quality", qualitiesOf(RUNS), now.quality, redraw("quality"));
if (RUNS.some((run) => run.levels.length > 1)) {
  const trainings = [["longest", "Trained longest"], ["ptq", "Calibrated only"]];
  choice("controls", "level", "Scores", trainings, now.level, redraw("level"));
}
drawRuns();
