"""What a search found, for people: a table in the terminal and one HTML page that opens offline."""

from __future__ import annotations

from rich.console import Console

from haq.files import write_text
from haq.report.html import render_html
from haq.report.reading import summarize
from haq.report.summary import Summary
from haq.report.terminal import render
from haq.runs import RunFolder

__all__ = ["Summary", "render", "render_html", "summarize", "write_report"]


def write_report(run: RunFolder, console: Console) -> None:
    """Prints the report of a run and writes its `report.html`.

    Raises:
        ConfigError: The search stopped before its first trial, or a file is damaged.
    """
    summary = summarize(run)
    render(summary, console)
    write_text(run.report, render_html(summary))
    console.print(f"\n{run.report}", markup=False, highlight=False, soft_wrap=True)
