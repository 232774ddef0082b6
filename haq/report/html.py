"""The report as one HTML page that needs nothing but a browser."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from haq.report import wording
from haq.report.figures import layers_figure, scatter_figure
from haq.report.summary import Summary

__all__ = ["render_html"]

_LAYER_PX = 30
_BUTTONS = [["zoom2d", "pan2d", "resetScale2d", "toImage"]]

# The policy makes the browser itself refuse whatever is not inside the file
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --ground: #fff; --ink: #1c2127; --muted: #5d6875; --line: #e2e6ea; --mark: #eef5fc; --accent: #1f6fc4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181c; --ink: #e4e8ec; --muted: #9aa5b1; --line: #2d343b; --mark: #1a2735; --accent: #6cb0f5; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; font-weight: 600; margin: 4px 0 20px; max-width: 34em; }
h2 { font-size: 18px; font-weight: 600; margin: 48px 0 2px; }
p { margin: 4px 0 12px; max-width: 52em; overflow-wrap: anywhere; }
.run, .note, dt, th { color: var(--muted); }
.run { color: var(--accent); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-bottom: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
.marked td { background: var(--mark); font-weight: 600; }
@media (max-width: 600px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 22px; }
  table { font-size: 13px; }
  th, td { padding: 7px 4px; }
  th { white-space: normal; vertical-align: bottom; }
}
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); padding: 4px 0; }
.chart text { fill: var(--ink) !important; }
.chart .hoverlayer text { fill: #fff !important; }
"""


def render_html(summary: Summary) -> str:
    """Returns the whole page; it makes no request, and everything from the user is escaped."""
    parts = [_head(summary), *_front(summary), *_comparison(summary), *_layers(summary)]
    return _PAGE.format(
        title=escape(f"{summary.name} · haq"), style=_STYLE, plotly=get_plotlyjs(), body="\n".join(parts)
    )


def _head(summary: Summary) -> str:
    facts = "".join(f"<dt>{label}</dt><dd>{escape(value)}</dd>" for label, value in wording.facts(summary))
    return f'<p class="run">{escape(summary.name)}</p>\n<h1>{escape(wording.verdict(summary))}</h1>\n<dl>{facts}</dl>'


def _front(summary: Summary) -> list[str]:
    front = wording.front(summary)
    if not summary.points:
        return ["<h2>Accuracy and cost</h2>", *_notes(front)]
    charts = [_chart("scatter", scatter_figure(summary, "top1"))]
    if summary.ranked_by_loss:
        charts.append(_chart("scatter-loss", scatter_figure(summary, "loss")))
    return ["<h2>Accuracy and cost</h2>", *charts, _folded("The Pareto front as a table", front)]


def _comparison(summary: Summary) -> list[str]:
    content = wording.comparison(summary)
    return ["<h2>Comparison</h2>", _table(content), *_notes(content)]


def _layers(summary: Summary) -> list[str]:
    if not summary.layers:
        return []
    chart = _chart("layers", layers_figure(summary), min_width=_LAYER_PX * len(summary.layers))
    return ["<h2>Bits per layer</h2>", chart, _folded("The layers as a table", wording.layers(summary))]


def _chart(name: str, figure: go.Figure, min_width: int = 0) -> str:
    div = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displaylogo": False, "modeBarButtons": _BUTTONS},
    )
    return f'<div class="wide"><div class="chart" style="min-width: {min_width}px">{div}</div></div>'


def _folded(title: str, content: wording.Table) -> str:
    return f"<details><summary>{title}</summary>{''.join(_notes(content))}{_table(content)}</details>"


def _table(content: wording.Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in content.header)
    rows = []
    for index, row in enumerate(content.rows):
        start = '<tr class="marked">' if index == content.marked else "<tr>"
        rows.append(start + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _notes(content: wording.Table) -> list[str]:
    return [f'<p class="note">{escape(note)}</p>' for note in content.notes]
