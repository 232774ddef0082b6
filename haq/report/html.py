"""The report as one HTML page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from haq.metrics import format_cost
from haq.report import summary_text
from haq.report.details import Bench, Details
from haq.report.payload import embedded, payload
from haq.report.summary import Summary

__all__ = ["folded", "page", "render_html", "table"]

_LAYER_PX = 30

# With this policy the browser itself refuses everything from outside the file
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
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
{scripts}
</body>
</html>
"""
_NOSCRIPT = '<noscript><p class="note">The charts need JavaScript; the tables do not.</p></noscript>'


def render_html(summary: Summary, details: Details) -> str:
    """Returns the whole page. It makes no requests, and all text from the user is escaped."""
    content = summary_text.comparison(summary)
    sections = [
        _head(summary),
        _section("Accuracy and cost", *_accuracy(summary)),
        *_layers(summary),
        _section("Comparison", table(content), *_notes(content)),
        *_progress(summary),
        *_heat_map(details),
        *_bench(details.bench),
        _section("Repeat it", _repeat(details)),
    ]
    return page(summary.name, "\n".join(sections), payload(summary, details), "bits.js", "page.js", "sections.js")


def page(title: str, body: str, data: Mapping[str, Any], *scripts: str) -> str:
    """Returns a page of `body`, already escaped, whose scripts read `data`.

    Args:
        title: Title, as text.
        body: HTML.
        data: Plain JSON types.
        scripts: Files of this package that run after `charts.js`, in this order.
    """
    from plotly.offline import get_plotlyjs

    return _PAGE.format(
        title=escape(f"{title} · haq"),
        style=_asset("page.css"),
        plotly=get_plotlyjs(),
        body=body,
        data=embedded(data),
        scripts="\n".join(f"<script>{_asset(name)}</script>" for name in ("charts.js", *scripts)),
    )


@cache
def _asset(name: str) -> str:
    return files("haq.report").joinpath(name).read_text(encoding="utf-8")


def _head(summary: Summary) -> str:
    left = summary_text.left_over(summary)
    kind = "warning" if summary.rest.mostly else "note"
    said = f'<p class="{kind}">{escape(left)}</p>\n' if left else ""
    return (
        f'<p class="run">{escape(summary.name)}</p>\n<h1>{escape(summary_text.verdict(summary))}</h1>\n'
        f"{said}{_facts(summary_text.facts(summary))}\n{_NOSCRIPT}"
    )


def _accuracy(summary: Summary) -> list[str]:
    front = summary_text.front(summary)
    if not summary.points:
        return _notes(front)
    return [
        _controls("controls"),
        _chart("scatter", "Every scored policy: accuracy against cost, with the Pareto front"),
        '<p class="note" id="drawn"></p>',
        folded("The Pareto front as a table", front),
    ]


def _layers(summary: Summary) -> list[str]:
    if not summary.points:
        return []
    content = summary_text.layers(summary)
    width = f' style="min-width: {_LAYER_PX * len(summary.layers)}px"'
    return [
        _section(
            "Bits per layer",
            '<div class="choose"><label for="policy">Policy</label><select id="policy"></select>'
            '<span class="note">or click a point above</span></div>',
            '<div id="picked" aria-live="polite"></div>',
            '<p class="note" id="unknown" hidden>The run folder does not hold the widths of this policy.</p>',
            f'<div id="bits"><div class="wide" tabindex="0" role="group" aria-label="Bits of every layer">'
            f'<div class="chart"{width}><div id="layers"></div></div></div>',
            f"<details><summary>The layers as a table</summary>{''.join(_notes(content))}"
            f'<div class="wide layers">{_table(content, "layer-table")}</div></details></div>',
        )
    ]


def _progress(summary: Summary) -> list[str]:
    if not summary.points:
        return []
    chart = _chart("progress", "Score of every trial and the best so far, over the search")
    text = summary_text.progress(summary)
    return [_section("Progress", f'<p class="note">{escape(text)}</p>', _controls("progress-controls"), chart)]


def _heat_map(details: Details) -> list[str]:
    if not details.heat_maps:
        return []
    note = (
        '<p class="note">What each layer loses when it alone is quantized, on a logarithmic scale. Framed: the widths '
        "of the policy above.</p>"
    )
    return [
        _section("Sensitivity", note, _controls("map-controls"), _chart("sensitivity", "Sensitivity of each layer"))
    ]


def _bench(bench: Bench | None) -> list[str]:
    if bench is None:
        return []
    text = f'<p class="note">{escape(summary_text.benched(bench))}</p>'
    rows = [
        (name, *(format_cost("latency_ms", value) for value in (predicted, measured)))
        for name, predicted, measured in zip(bench.layers, bench.predicted, bench.measured, strict=True)
    ]
    content = summary_text.Table(("layer", "predicted", "measured"), tuple(rows), ())
    chart = _chart("bench", "Predicted against measured latency of each layer")
    return [_section("Predicted and measured latency", text, chart, folded("The layers as a table", content))]


def _repeat(details: Details) -> str:
    return (
        f'<pre tabindex="0" id="command">{escape(details.command)}</pre>\n{_facts(list(details.environment.items()))}'
    )


def _section(title: str, *parts: str) -> str:
    return "\n".join((f"<section>\n<h2>{title}</h2>", *parts, "</section>"))


def _facts(facts: list[tuple[str, str]]) -> str:
    entries = (f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts)
    return f"<dl>{''.join(entries)}</dl>"


def _controls(name: str) -> str:
    return f'<div class="controls" id="{name}"></div>'


def _chart(name: str, label: str) -> str:
    return f'<div class="chart"><div id="{name}" role="figure" aria-label="{label}"></div></div>'


def folded(title: str, content: summary_text.Table) -> str:
    """Returns a table that unfolds on a click."""
    return f"<details><summary>{title}</summary>{''.join(_notes(content))}{table(content)}</details>"


def table(content: summary_text.Table) -> str:
    """Returns a table that scrolls when it is too wide."""
    return f'<div class="wide">{_table(content)}</div>'


def _table(content: summary_text.Table, name: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in content.header)
    rows = []
    for index, row in enumerate(content.rows):
        start = '<tr class="marked">' if index == content.marked else "<tr>"
        rows.append(start + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    identity = f' id="{name}"' if name else ""
    return f"<table{identity}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _notes(content: summary_text.Table) -> list[str]:
    return [f'<p class="note">{escape(note)}</p>' for note in content.notes]
