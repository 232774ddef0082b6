"""Commands that show and export the result of a search: `haq report` and `haq export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.encodings import echo_exactly
from haq.cli.options import examples, naming_options
from haq.cli.output import Result, output_options
from haq.errors import ConfigError, printable
from haq.registry import EXPORTS
from haq.runs.relocation import Named

if TYPE_CHECKING:
    from haq.runs import RunFolder

__all__ = ["export", "report", "reported"]


def reported(folders: Sequence[RunFolder], page: Path) -> dict[str, Any]:
    """Returns the document that `--json` prints for runs."""
    from haq.report import summarize

    runs = [
        {"run": folder.path, "summary": summarize(folder), "best": folder.read_best() if folder.finished else None}
        for folder in folders
    ]
    return {**runs[0], "page": page} if len(runs) == 1 else {"runs": runs, "page": page}


@click.command(
    epilog=examples(
        "haq report runs/digits-resnet-edge-latency-10ms",
        "haq report runs/digits-resnet-edge-latency-10ms --open",
        "haq report runs/predictor runs/random --out both.html",
    )
)
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Page to write.  [default: report.html in RUN; for several runs, report-overlay.html in the first]",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@output_options
def report(runs: tuple[Path, ...], out: Path | None, opened: bool) -> Result:
    """Print the comparison, the Pareto front and the per-layer widths of RUN, and write its report.html.

    For several runs, print a table with one row per run, and write a page that draws them together. With --quiet, only
    the path of the page is printed.
    """
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: folder {str(out.parent)!r} does not exist; make it first")
    from haq.cli.terminal import console
    from haq.report import write_overlay, write_report
    from haq.runs import RunFolder

    folders = [RunFolder.open(run) for run in runs]
    try:
        page = write_report(folders[0], console, out) if len(folders) == 1 else write_overlay(folders, console, out)
    except OSError as error:
        raise ConfigError(f"cannot write the page: {error.strerror or error}; give another --out FILE") from None
    if opened:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            click.echo(f"note: no browser was found; open {page} yourself", err=True)
    return Result(lambda: reported(folders, page), (str(page),))


def _summaries() -> dict[str, str]:
    """Returns what each format is; those of plugins are imported when they are used."""
    plugins = {name: f"of {package}" for name, package in EXPORTS.plugins.items()}
    return {name: plugins.get(name) or EXPORTS[name].summary for name in EXPORTS}


@click.command(
    epilog=examples(
        "haq export runs/digits-resnet-edge-latency-10ms                 bits of every layer as JSON, to the terminal",
        "haq export runs/digits-resnet-edge-latency-10ms --format yaml -o bits.yaml",
        "haq export runs/digits-resnet-edge-latency-10ms --format markdown    table of layers for a ticket",
        "haq export runs/digits-resnet-edge-latency-10ms --format onnx -o net.onnx    for onnxruntime",
        "haq export runs/digits-resnet-edge-latency-10ms --format qonnx       for FINN and hls4ml, into the run folder",
        "haq export runs/digits-resnet-edge-latency-10ms --format packed      bit-packed codes and scales",
        "haq export runs/my-linear-net --format torchao -o torchao.json       for torchao.quantize_",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format",
    "form",
    default="json",
    show_default=True,
    metavar="NAME",
    help="; ".join(f"{name}: {summary}" for name, summary in _summaries().items())
    + "; or file.py:NAME, a haq.exports.Format of your own, whose code is run.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write here.  [default: the terminal; for networks, a file in RUN]",
)
@naming_options(hardware=False)
@output_options
def export(run: Path, form: str, output: Path | None, **named: str | None) -> Result:
    """Write the result of RUN for another program: the bits of every layer, or the quantized network itself.

    A format that holds the network opens the model and the data that the run names, and so runs their code. With
    --json, a format that is JSON is printed as it is; for a file, its path and size are printed.
    """
    from haq.cli.terminal import TerminalObserver, console
    from haq.exports import open_format
    from haq.runs import RunFolder

    folder, chosen = RunFolder.open(run), open_format(form)
    if chosen.file is not None:
        with TerminalObserver() as observer:
            written = chosen.export(folder, output, observer, Named(**named))
    else:
        written = chosen.export(folder, output)
    if isinstance(written, Path):
        console.print(str(written), markup=False, highlight=False, soft_wrap=True)
        return Result(
            lambda: {"run": run, "format": form, "file": written, "size_bytes": written.stat().st_size},
            (str(written),),
        )
    text = written.removesuffix("\n")
    if sys.stdout.isatty():  # a program gets every character unchanged
        text = "\n".join(map(printable, text.split("\n")))
    if not console.quiet:
        echo_exactly(text)
    return Result(lambda: _document(text, form), (text,))


def _document(text: str, form: str) -> dict[str, Any]:
    """Returns the exported text as a document, if it is JSON."""
    try:
        return dict(json.loads(text))
    except ValueError:
        raise ConfigError(f"--json with --format {form}, which prints text; give -o FILE, or --format json") from None
