"""The report in a terminal: 80 columns, no colour needed."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from haq.policy import Width
from haq.report import summary_text
from haq.report.details import Details
from haq.report.overlay import Compared, comparison
from haq.report.summary import LayerWidths, Summary

__all__ = ["render", "render_comparison"]

_COMPACT_FROM = 61
_BAR = 8
_NAME = 34  # columns for the names of runs; longer ones fold


def render(summary: Summary, console: Console, details: Details | None = None) -> None:
    """Prints the whole report.

    Args:
        summary: The run.
        console: Where to print. The report keeps to its width and needs no colour.
        details: Measurements to print, and how to repeat the search.
    """
    console.print(Text(f"Run {summary.name}", style="bold"))
    console.print(_facts(summary))
    console.print(Text(summary_text.verdict(summary), style="bold"))
    if left := summary_text.left_over(summary):
        console.print(Text(left, style="bold yellow" if summary.rest.mostly else ""))
    console.print()
    comparison = summary_text.comparison(summary)
    console.print(_table(comparison))
    for note in comparison.notes:
        console.print(Text(note, style="dim"))
    front = summary_text.front(summary)
    _heading(console, "Pareto front", front)
    if front.rows:
        console.print(_table(front, len(front.header) - 1))
    if summary.layers:
        _heading(console, "Bits per layer", summary_text.layers(summary))
        console.print(_layers(summary.layers))
    if summary.points:
        _said(console, "Progress", summary_text.progress(summary))
    if details is not None:
        if details.bench is not None:
            _said(console, "Latency", summary_text.benched(details.bench))
        console.print(Text("\nRepeat it", style="bold"))
        console.print(Text(details.command), soft_wrap=True)  # one line, which can be copied
        console.print(Text(", ".join(f"{key} {value}" for key, value in details.environment.items()), style="dim"))


def render_comparison(runs: Sequence[Compared], console: Console) -> None:
    """Prints a table with a row for each run."""
    content = comparison(runs)
    table = _table(content, 1, 2)
    table.columns[0].min_width = min(max(len(run.name) for run in runs) + 2, _NAME)
    console.print(table)
    for note in content.notes:
        console.print(Text(note, style="dim"))


def _heading(console: Console, title: str, content: summary_text.Table) -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), "  ", (" ".join(content.notes), "dim")))


def _said(console: Console, title: str, text: str) -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), "  ", text, overflow="fold"))


def _facts(summary: Summary) -> Padding:
    grid = RichTable.grid(padding=(0, 2))
    for label, value in summary_text.facts(summary):
        grid.add_row(Text(label, style="dim"), Text(value, overflow="fold"))
    return Padding(grid, (0, 0, 1, 0))


def _table(content: summary_text.Table, *left: int) -> RichTable:
    """Lays out a table whose columns `left` hold text; a sign marks the chosen row, for terminals without bold."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for index, title in enumerate(content.header):
        indent = "  " if index == 0 else ""
        table.add_column(
            indent + title.replace(" ", "\n" + indent, 1),
            justify="left" if index in (0, *left) else "right",
            vertical="bottom",
            overflow="fold",
        )
    for index, (first, *others) in enumerate(content.rows):
        marked = index == content.marked
        sign = "> " if marked else "  "
        table.add_row(Text(sign + first), *(Text(cell) for cell in others), style="bold" if marked else "")
    return table


def _layers(layers: tuple[LayerWidths, ...]) -> RichTable:
    compact = len(layers) >= _COMPACT_FROM
    shares = any(layer.latency_share is not None for layer in layers)
    table = RichTable(box=None if compact else box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("#", justify="right")
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for title in ("w", "a"):
        table.add_column(title, justify="right")
        if not compact:
            table.add_column("", width=_BAR)
    if shares:
        table.add_column("latency", justify="right")
    widest = max((bits for layer in layers for bits in (layer.w_bits, layer.a_bits) if bits is not None), default=_BAR)
    for number, layer in enumerate(layers, 1):
        cells: list[str | Text] = [str(number), Text(layer.name)]
        for bits in (layer.w_bits, layer.a_bits):
            cells.append(summary_text.width(bits))
            if not compact:
                cells.append(_bar(bits, max(widest, _BAR)))
        if shares:
            cells.append(summary_text.percent(layer.latency_share))
        table.add_row(*cells)
    return table


def _bar(bits: Width, widest: int) -> str:
    return "" if bits is None else "█" * max(1, round(_BAR * bits / widest))
