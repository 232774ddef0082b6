// The lower sections of the report of one run: progress, sensitivity, and predicted against measured latency.
"use strict";

// Best so far: scores after calibration and after fine-tuning have a panel each, because they do not compare

function drawProgress() {
  const { quality, time } = state, node = byId("progress");
  const sign = quality === "top1" ? 1 : -1;
  const panels = [...new Set([last, 0])].sort((a, b) => b - a);
  const slowest = Math.max(...policies.elapsed.map((seconds) => seconds ?? 0));
  const [unit, factor] = slowest > 7200 ? ["hours", 3600] : slowest > 180 ? ["minutes", 60] : ["seconds", 1];
  const traces = [], look = { annotations: [] };
  const named = new Set();
  panels.forEach((level, place) => {
    const suffix = place ? String(place + 1) : "";
    const points = every
      .filter((point) => point.level === level && policies.number[point.policy] != null && point[quality] != null)
      .map(({ policy, ...point }) => ({
        ...point, policy, y: point[quality],
        x: time === "trial" ? policies.number[policy] : policies.elapsed[policy] / factor,
      }))
      .sort((a, b) => a.x - b.x);
    let reached = -Infinity;
    const rises = points.filter((p) => sign * p.y > reached && ((reached = sign * p.y), true));
    const end = points.length ? [{ ...rises[rises.length - 1], x: points[points.length - 1].x }] : [];
    const line = [...rises, ...end];
    traces.push({
      type: "scatter", mode: "lines", name: "best so far", legendgroup: "best", showlegend: place === 0,
      x: line.map((p) => p.x), y: line.map((p) => p.y), xaxis: "x", yaxis: "y" + suffix, hoverinfo: "skip",
      line: { color: ACCENT, width: 2.5, shape: "hv" },
    });
    DATA.origins.forEach((who, index) => {
      const all = points.filter((p) => origin(p.policy) === who);
      const own = thinned(all, (p) => p.x, (p) => p.y, node.clientWidth, 240);
      if (!own.length) return;
      const [symbol, color] = SERIES[1 + (index % (SERIES.length - 1))]; // the first is that of the line
      traces.push({
        type: "scatter", mode: "markers", name: shown(who), legendgroup: who, showlegend: !named.has(who),
        x: own.map((p) => p.x), y: own.map((p) => p.y), customdata: own.map((p) => p.policy), hovertext: own.map(hover),
        hoverinfo: "text", xaxis: "x", yaxis: "y" + suffix, marker: { symbol, color, size: 7 },
      });
      named.add(who);
    });
    const top = 1 - place * 0.55;
    const domain = panels.length > 1 ? [top - 0.45, top] : [0, 1];
    look["yaxis" + suffix] = { ...qualityAxis(quality), title: titled(QUALITIES[quality]), domain };
    look.annotations.push({
      text: `<b>${capital(levels[level].name)}</b>`, x: 0, xref: "paper", xanchor: "left", y: domain[1], yref: "paper",
      yanchor: "bottom", showarrow: false,
    });
  });
  look.xaxis = axis({
    title: titled(time === "trial" ? "Trial" : `Time since the start, ${unit}`), rangemode: "tozero",
    anchor: panels.length > 1 ? "y2" : "y",
  });
  const rows = Math.ceil(named.size / (narrow() ? 2 : 6));
  draw(node, traces, layout((panels.length > 1 ? 500 : 320) + 21 * rows, look));
}

// Sensitivity

function drawMap() {
  const map = DATA.heat_maps[state.map], node = byId("sensitivity");
  const cost = (value) => (value == null ? 0 : map.measure === "sqnr" ? 10 ** (-value / 10) : value);
  const parts = [["weights", map.weights], ["activations", map.activations]].filter((part) => part[1]);
  const positive = parts.flatMap(([, rows]) => rows.flat().map(cost)).filter((value) => value > 0);
  const highest = extent(positive, Number)[1];
  const lowest = Math.min(Math.max(extent(positive, Number)[0], 1e-6 * highest), highest / 10);
  const [zmin, zmax] = [Math.log10(lowest), Math.log10(highest)];
  const number = (value) => {
    if (value == null) return "∞";
    return map.measure === "sqnr" ? value.toFixed(1) : value ? value.toExponential(1) : "0";
  };
  const label = (layer) => shown(narrow() ? brief(layer).slice(-14) : brief(layer));
  const picked = state.picked != null && pairsOf(state.picked);
  const wide = node.clientWidth / (parts.length * map.widths.length) > 52;
  const rows = map.layers.map((_, index) => index);
  const look = { shapes: [], margin: { l: 12, r: 12, t: 8, b: 12 } };
  const traces = parts.map(([name, values], side) => {
    const suffix = side ? "2" : "";
    const heat = {
      type: "heatmap", x: map.widths.map((_, index) => index), y: rows, xaxis: "x" + suffix, yaxis: "y" + suffix,
      z: values.map((row) => row.map((value) => Math.log10(Math.min(Math.max(cost(value), lowest), highest)))),
      zmin, zmax, colorscale: "Viridis", xgap: 1, ygap: 1, hoverinfo: "text", showscale: side === 0,
      hovertext: values.map((row, index) => row.map((value, column) =>
        `<b>${shown(map.layers[index])}</b>, ${name}<br>${map.widths[column]} bits: ${number(value)}`)),
      text: values.map((row) => row.map(number)), texttemplate: wide ? "%{text}" : "", textfont: { size: 10 },
      colorbar: {
        orientation: "h", thickness: 10, len: 0.5, x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom",
        outlinewidth: 0, tickvals: [zmin, zmax], ticktext: ["least sensitive", "most sensitive"], ticks: "",
      },
    };
    look["xaxis" + suffix] = axis({
      title: titled(`${capital(name)}, bits`), tickvals: map.widths.map((_, index) => index),
      ticktext: map.widths.map(String),
      domain: parts.length === 1 ? [0, 1] : side ? [0.52, 1] : [0, 0.48], anchor: "y" + suffix, showgrid: false,
      zeroline: false, range: [-0.5, map.widths.length - 0.5],
    });
    look["yaxis" + suffix] = axis({
      autorange: false, range: [rows.length - 0.5, -0.5], tickvals: rows, showgrid: false, zeroline: false,
      ticktext: map.layers.map((layer) => (side ? "" : label(layer))),
      anchor: "x" + suffix, tickfont: { size: 11 },
    });
    const frames = rows.map((row) => {
      const layer = layers.indexOf(map.layers[row]);
      const column = picked && layer >= 0 ? map.widths.indexOf(DATA.pairs[picked[layer]][side]) : -1;
      return column < 0 ? "" : `M${column - 0.5},${row - 0.5}H${column + 0.5}V${row + 0.5}H${column - 0.5}Z`;
    });
    for (const [color, width] of [["#000", 4], ["#fff", 2]]) {
      const line = { color, width };
      look.shapes.push({ type: "path", path: frames.join(""), xref: "x" + suffix, yref: "y" + suffix, line });
    }
    return heat;
  });
  draw(node, traces, layout(100 + 20 * rows.length, look));
}

// Predicted against measured

function drawBench() {
  const { layers: names, predicted, measured } = DATA.bench;
  const every = [...predicted, ...measured].filter((value) => value > 0);
  const [low, high] = extent(every, Number);
  const range = [Math.log10(low / 1.4), Math.log10(high * 1.4)];
  const log = { type: "log", range, dtick: "D2", tickformat: "~g", ...LOOKS.latency_ms.ticks };
  const scale = (title) => axis({ title: titled(title), ...log });
  const text = names.map((name, row) =>
    `<b>${shown(name)}</b><br>predicted ${formatted("latency_ms", predicted[row])}, measured ` +
    `${formatted("latency_ms", measured[row])} (${signed(predicted[row] / measured[row] - 1)})`);
  const ends = range.map((end) => 10 ** end);
  const traces = [
    {
      type: "scatter", mode: "lines", x: ends, y: ends, hoverinfo: "skip", name: "as predicted",
      line: { color: NEUTRAL, width: 1.5, dash: "dash" },
    },
    {
      type: "scatter", mode: "markers", x: predicted, y: measured, hovertext: text, hoverinfo: "text", name: "a layer",
      marker: { symbol: "circle", color: ACCENT, size: 9, opacity: 0.8 },
    },
  ];
  const look = { xaxis: scale("Predicted latency of the layer"), yaxis: scale("Measured") };
  draw(byId("bench"), traces, layout(440, look));
}

const signed = (share) => (share < 0 ? "−" : "+") + (100 * Math.abs(share)).toFixed(1) + " %";

if (layers.length) {
  choice("progress-controls", "time", "Over", [["trial", "Trials"], ["time", "Time"]], state.time, (time) => {
    state.time = time;
    drawProgress();
  });
  later(byId("progress"), () => {
    drawProgress();
    byId("progress").on("plotly_click", (event) => pick(event.points[0].customdata));
  });
}
if (DATA.heat_maps.length) {
  const names = DATA.heat_maps.map((map, index) => [String(index), map.measure]);
  choice("map-controls", "map", "Measure", names, "0", (index) => {
    state.map = Number(index);
    drawMap();
  });
  later(byId("sensitivity"), drawMap);
}
if (DATA.bench) later(byId("bench"), drawBench);
