"""Reports of searches: tables in the terminal, and HTML pages that open offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from haq.io.files import write_text
from haq.report.details import Details, detail
from haq.report.from_run import summarize
from haq.report.html import render_html
from haq.report.overlay import compared, render_overlay
from haq.report.summary import Summary
from haq.report.terminal import render, render_comparison
from haq.runs import RunFolder

__all__ = [
    "Details",
    "Summary",
    "detail",
    "render",
    "render_html",
    "render_overlay",
    "summarize",
    "write_overlay",
    "write_page",
    "write_report",
]


def write_report(run: RunFolder, console: Console, path: Path | None = None) -> Path:
    """Prints the report of a run and writes its page; returns the page's path.

    Args:
        run: The run.
        console: Where to print.
        path: Where to write the page, by default `report.html` in the run folder.

    Raises:
        ConfigError: The search stopped before its first trial, or a file is damaged.
    """
    path = path or run.page
    summary, details = summarize(run), detail(run)
    render(summary, console, details)
    _write(path, render_html(summary, details), console)
    return path


def write_page(run: RunFolder, path: Path) -> None:
    """Writes the page of a run, and prints nothing; raises what `write_report` does."""
    write_text(path, render_html(summarize(run), detail(run)))


def write_overlay(runs: Sequence[RunFolder], console: Console, path: Path | None = None) -> Path:
    """Prints a comparison of runs and writes a page that draws them together; returns the page's path.

    Args:
        runs: The runs to compare.
        console: Where to print.
        path: Where to write the page, by default `report-overlay.html` in the folder of the first run.

    Raises:
        ConfigError: A search stopped before its first trial, or a file is damaged.
    """
    path = path or runs[0].path / "report-overlay.html"
    found = compared(runs)
    render_comparison(found, console)
    _write(path, render_overlay(found), console)
    return path


def _write(path: Path, page: str, console: Console) -> None:
    write_text(path, page)
    console.print(f"\n{path}", markup=False, highlight=False, soft_wrap=True)
