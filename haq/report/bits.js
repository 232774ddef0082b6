// The picked policy: its scores and costs, and the widths of its layers as a chart and as a table.
"use strict";

const FLOAT_HEIGHT = 32; // of the bar of a layer that is left in floating point
const HATCH = { fillmode: "overlay", fgcolor: "rgba(255, 255, 255, 0.75)", size: 6, solidity: 0.25 };

function drawPicked() {
  if (state.picked == null) return;
  const own = every.filter((point) => point.policy === state.picked);
  const box = byId("picked");
  box.textContent = "";
  element("strong", title(state.picked), box);
  element("span", own.map(described).join("; "), box);
  element("span", `${priced(state.picked)}; mean bits ${meanBits(state.picked)}`, box);
  drawLayers();
}

function drawLayers() {
  const pairs = pairsOf(state.picked), node = byId("layers");
  byId("unknown").hidden = Boolean(pairs);
  byId("bits").hidden = !pairs;
  if (!pairs) return;
  const widths = pairs.map((pair) => DATA.pairs[pair]);
  const field = costs && (costs.by[state.field] ? state.field : Object.keys(costs.by)[0]);
  const each = field && pairs.map((pair, row) => costs.by[field][row][pair]);
  const total = each && each.reduce((a, b) => a + b, costs.rest[field] || 0);
  const share = total ? each.map((value) => value / total) : null;
  const bound = costs?.memory_bound && pairs.map((pair, row) => ["compute", "memory"][costs.memory_bound[row][pair]]);
  const x = layers.map((_, index) => index + 1);
  const widest = Math.max(...widths.flat().map((width) => width ?? FLOAT_HEIGHT));
  const traces = [0, 1].filter((side) => widths.some((pair) => pair[side] != null)).map((side) => {
    const name = ["weights", "activations"][side];
    return {
      type: "bar", name, x, y: widths.map((pair) => pair[side] ?? FLOAT_HEIGHT),
      text: widths.map((pair) => pair[side] ?? "fp"), textposition: "outside", textangle: 0, constraintext: "none",
      cliponaxis: false, textfont: { size: 10 }, hoverinfo: "text",
      hovertext: widths.map((pair, row) => {
        const more = bound?.[row] ? `<br>${bound[row]} binds it` : "";
        return `${shown(layers[row])}<br>${name}: ${pair[side] == null ? "float" : pair[side] + " bits"}${more}`;
      }),
      marker: { color: side ? NEUTRAL : ACCENT, pattern: { shape: side ? "/" : "", ...HATCH } },
    };
  });
  if (share) traces.push(...shareBars(x, share, bound, each, field));
  const name = field && metricName(field);
  const look = {
    barmode: "group", bargap: 0.25, bargroupgap: 0.05,
    xaxis: axis({
      showgrid: false, tickvals: x, ticktext: layers.map((layer) => shown(brief(layer))), tickangle: -90,
      anchor: share ? "y2" : "y", range: [0.4, layers.length + 0.6],
    }),
    yaxis: axis({
      title: titled("Bits"), dtick: widest <= 8 ? 2 : 8, domain: share ? [0.44, 1] : [0, 1], range: [0, 1.1 * widest],
    }),
    ...(share && {
      yaxis2: axis({
        title: titled(`Share of ${name}`), tickformat: "~%", domain: [0, 0.36], rangemode: "tozero", nticks: 4,
      }),
    }),
    legend: { orientation: "h", x: 0, y: 1, yref: "container", yanchor: "top", itemsizing: "constant" },
  };
  draw(node, traces, layout(share ? 470 : 330, look));
  fillTable(widths, share, bound, name);
}

function shareBars(x, share, bound, each, field) {
  const kinds = bound ? ["compute", "memory"].filter((kind) => bound.includes(kind)) : [null];
  return kinds.map((kind) => {
    const rows = share.map((_, row) => row).filter((row) => kind == null || bound[row] === kind);
    return {
      type: "bar", yaxis: "y2", name: kind ? `${kind} binds` : "", showlegend: Boolean(kind),
      x: rows.map((row) => x[row]), y: rows.map((row) => share[row]), width: 0.62, offset: -0.31, hoverinfo: "text",
      hovertext: rows.map((row) => {
        const more = kind ? `<br>${kind} binds it` : "";
        const part = `${percent(share[row])} of ${metricName(field)}`;
        return `${shown(layers[row])}<br>${formatted(field, each[row])}, ${part}${more}`;
      }),
      marker: {
        color: kind === "memory" ? UNIFORM : "#2a9d78",
        pattern: { shape: kind === "memory" ? "x" : "", ...HATCH },
      },
    };
  });
}

function brief(name) {
  return name.length <= 24 ? name : name.slice(0, 11) + "…" + name.slice(-12);
}

function fillTable(widths, share, bound, name) {
  const table = byId("layer-table");
  table.textContent = "";
  const header = ["#", "layer", "w", "a", ...(share ? [name] : []), ...(bound ? ["bound by"] : [])];
  const head = element("tr", null, element("thead", null, table));
  header.forEach((cell) => (element("th", cell, head).scope = "col"));
  const body = element("tbody", null, table);
  widths.forEach(([w, a], row) => {
    const cells = [row + 1, layers[row], w ?? "float", a ?? "float"];
    if (share) cells.push(percent(share[row]));
    if (bound) cells.push(bound[row] ?? "–");
    const line = element("tr", null, body);
    cells.forEach((cell) => element("td", cell, line));
  });
}
