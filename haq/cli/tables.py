"""Tables and lists of facts in the layout of all commands."""

from __future__ import annotations

from collections.abc import Container, Mapping

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from haq.layers.rest import Rest

__all__ = ["columns", "facts", "left_over"]


def columns(*names: str, right: Container[str] = (), title: str | None = None) -> Table:
    """Returns an empty table; text that is too long is folded, because 80 columns must suffice.

    Args:
        *names: Names of the columns.
        right: Names of the columns that hold numbers.
        title: Line above the table.
    """
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False, title=title,
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", vertical="top")
    return table


def facts(labelled: Mapping[str, str]) -> Padding:
    """Returns labels and values, one pair per line, followed by an empty line."""
    grid = Table.grid(padding=(0, 2))
    for label, value in labelled.items():
        grid.add_row(Text(label, style="dim"), Text(value, overflow="fold"))
    return Padding(grid, (0, 0, 1, 0))


def left_over(rest: Rest) -> Padding | str:
    """Returns what no layer covers, in words that cannot be overlooked if it is most of the network; or nothing."""
    said = rest.said()
    return Padding(Text(said, style="bold yellow" if rest.mostly else "yellow"), (1, 0, 0, 0)) if said else ""
