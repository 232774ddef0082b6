"""The charts of the HTML page. Colours hold on light and dark ground; the page's style sheet sets those of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import accumulate
from math import inf
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from haq.constraints import METRICS, format_cost
from haq.policy import Width
from haq.report import wording
from haq.report.summary import Level, Point, Summary

__all__ = ["layers_figure", "scatter_figure"]

Quality = Literal["top1", "loss"]

ACCENT, UNIFORM, NEUTRAL = "#2f81d6", "#d98c1f", "#8b95a1"  # told apart by shape as well, and by the colour-blind
_GRID = "rgba(139, 149, 161, 0.25)"
_FONT = "system-ui, sans-serif"
_FLOAT_HEIGHT = 32
_TICKS = {
    "latency_ms": {"ticksuffix": " ms"},
    "energy_mj": {"ticksuffix": " mJ"},
    "size_bytes": {"ticksuffix": "B", "tickformat": "~s"},
    "bops": {"tickformat": "~s"},
}


def scatter_figure(summary: Summary, quality: Quality) -> go.Figure:
    """Draws every score against its cost, with the front, the uniform networks, the chosen policy and the budget.

    Each point carries its trial's number as `customdata`.
    """
    axis = summary.axis
    metric = next(metric for metric in METRICS.values() if metric.field == axis)
    figure = go.Figure(layout=_layout(height=480))
    searched = [point for point in summary.points if point.origin != "uniform"]
    uniform = [*summary.baselines, *(point for point in summary.points if point.origin == "uniform")]
    longest = summary.front[0].level if summary.front else None

    def add(name: str, points: Sequence[Point], symbol: str, color: str, size: int) -> None:
        if points := [p for p in points if p.cost.get(axis) is not None and _quality(p, quality) is not None]:
            figure.add_scatter(
                name=name,
                x=[point.cost[axis] for point in points],
                y=[_quality(point, quality) for point in points],
                customdata=[point.number for point in points],
                hovertext=[_hover(point, summary) for point in points],
                hoverinfo="text",
                mode="markers",
                marker={"symbol": symbol, "color": color, "size": size, "line": {"color": color, "width": 1.5}},
            )

    for level in _levels(searched):
        symbol = "circle" if level == longest else "circle-open" if level.steps == 0 else "triangle-up-open"
        add(wording.training(level.steps), _at(level, searched), symbol, NEUTRAL, 7)
    for level in _levels(uniform):
        symbol = "diamond-open" if level.steps == 0 else "diamond"
        add(f"uniform widths, {wording.training(level.steps)}", _at(level, uniform), symbol, UNIFORM, 10)
    steps = _staircase(summary.front, axis, quality)
    figure.add_scatter(
        x=[point.cost[axis] for point in steps],
        y=[_quality(point, quality) for point in steps],
        mode="lines",
        line={"color": ACCENT, "width": 2, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )
    add("Pareto front", summary.front, "circle", ACCENT, 9)
    chosen = [point for point in summary.points if point.number is not None and point.number == summary.chosen]
    add(f"chosen, trial {summary.chosen}", chosen[-1:], "star", ACCENT, 19)

    if (limit := summary.limits.get(axis)) is not None:
        figure.add_vline(limit, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
        figure.add_annotation(
            x=limit, y=1, yref="paper", yanchor="bottom", showarrow=False, text=f"budget {format_cost(axis, limit)}"
        )
    per_batch = f", batch of {summary.batch}" if axis in ("latency_ms", "energy_mj") else ""
    figure.update_xaxes(title=metric.name.capitalize() + per_batch, rangemode="tozero", **_TICKS[axis])
    if quality == "top1":
        figure.update_yaxes(title="Top-1 on the validation samples", tickformat="~%")
    else:
        figure.update_yaxes(title="Loss on the validation samples", autorange="reversed")
    _style_axes(figure)
    return figure


def layers_figure(summary: Summary) -> go.Figure:
    """Draws the widths of every layer and, where they are known, the layers' shares of the latency below."""
    layers = summary.layers
    shares = [layer.latency_share for layer in layers]
    rows = 2 if any(share is not None for share in shares) else 1
    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.65, 0.35][:rows])
    figure.update_layout(_layout(height=300 + 150 * rows), barmode="group", bargap=0.3, bargroupgap=0.06)
    positions = list(range(1, len(layers) + 1))
    for name, widths, color in (
        ("weights", [layer.w_bits for layer in layers], ACCENT),
        ("activations", [layer.a_bits for layer in layers], NEUTRAL),
    ):
        figure.add_bar(
            name=name,
            x=positions,
            y=[_FLOAT_HEIGHT if bits is None else bits for bits in widths],
            hovertext=[_bits_hover(layer.name, name, bits) for layer, bits in zip(layers, widths, strict=True)],
            hoverinfo="text",
            marker_color=color,
            row=1,
            col=1,
        )
    figure.update_yaxes(title="Bits", rangemode="tozero", dtick=_dtick(summary), row=1, col=1)
    if rows == 2:
        figure.add_bar(
            x=positions,
            y=shares,
            hovertext=[
                f"{_shown(layer.name)}<br>{wording.percent(layer.latency_share)} of latency" for layer in layers
            ],
            hoverinfo="text",
            marker_color=ACCENT,
            opacity=0.5,
            showlegend=False,
            row=2,
            col=1,
        )
        figure.update_yaxes(title="Latency share", tickformat="~%", row=2, col=1)
    _style_axes(figure)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(
        tickvals=positions, ticktext=[_shown(_short(layer.name)) for layer in layers], tickangle=-90, row=rows, col=1
    )
    return figure


def _style_axes(figure: go.Figure) -> None:
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True, ticks="", title_font_size=13)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True, ticks="", title_font_size=13)


def _layout(height: int) -> dict[str, object]:
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 12, "r": 12, "t": 44, "b": 12},
        "font": {"family": _FONT, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "itemsizing": "constant",
        },
        "hoverlabel": {"bgcolor": "#22282f", "bordercolor": "#22282f", "font": {"family": _FONT}, "align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": ACCENT},
        "dragmode": False,  # a finger that starts on a chart scrolls the page
    }


def _quality(point: Point, quality: Quality) -> float | None:
    return point.top1 if quality == "top1" else point.loss


def _levels(points: Iterable[Point]) -> list[Level]:
    return sorted({point.level for point in points})


def _at(level: Level, points: Iterable[Point]) -> list[Point]:
    return [point for point in points if point.level == level]


def _staircase(front: Iterable[Point], axis: str, quality: Quality) -> list[Point]:
    """Keeps the points that are better than all cheaper ones: the front has more when several costs count."""
    sign = 1 if quality == "top1" else -1
    known = [(point.cost.get(axis), _quality(point, quality), point) for point in front]
    ordered = sorted(
        ((cost, -sign * value, point) for cost, value, point in known if cost is not None and value is not None),
        key=lambda item: item[:2],
    )
    lowest = accumulate((badness for _, badness, _ in ordered), min, initial=inf)
    return [point for (_, badness, point), before in zip(ordered, lowest, strict=False) if badness < before]


def _hover(point: Point, summary: Summary) -> str:
    who = _shown(point.origin) if point.number is None else f"trial {point.number} · {_shown(point.origin)}"
    loss = "–" if point.loss is None else f"{point.loss:.3f}"
    fields = dict.fromkeys((summary.axis, "latency_ms", "size_bytes"))
    costs = (
        f"{metric.name} {format_cost(metric.field, point.cost.get(metric.field))}"
        for metric in METRICS.values()
        if metric.field in fields
    )
    return "<br>".join(
        (
            f"<b>{who}</b>, {wording.training(point.level.steps)}",
            f"validation top-1 {wording.percent(point.top1)}, loss {loss}",
            ", ".join(costs),
            f"mean bits {wording.mean_bits(point)} (weights / activations)",
        )
    )


def _bits_hover(layer: str, what: str, bits: Width) -> str:
    return f"{_shown(layer)}<br>{what}: {wording.width(bits)}{'' if bits is None else ' bits'}"


def _dtick(summary: Summary) -> int:
    widest = max(bits or _FLOAT_HEIGHT for layer in summary.layers for bits in (layer.w_bits, layer.a_bits))
    return 2 if widest <= 8 else 8


def _short(name: str, length: int = 24) -> str:
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


def _shown(text: str) -> str:
    """Escapes what Plotly would take for markup; it knows entities for these three signs, but not for quotes."""
    return escape(text, quote=False)
