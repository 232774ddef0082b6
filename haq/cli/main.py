"""Commands and their options. Heavy modules are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from haq import __version__
from haq.cli.choosing import finetune, pick
from haq.cli.comparing import compare_agents
from haq.cli.hardware import hardware, profile, table
from haq.cli.measuring import bench, measure
from haq.cli.options import DEFAULTS, examples, search_options
from haq.cli.quantization import compare, quantize, schemes
from haq.cli.sensitivity import sensitivity
from haq.config import SearchConfig
from haq.errors import ConfigError, HaqError
from haq.exports.formats import FORMATS
from haq.runs import free_folder

__all__ = ["cli", "main"]


def main() -> None:
    """Runs the command line: a user's mistake is one line on standard error and exit code 2."""
    try:
        status = cli.main(standalone_mode=False)
    except (HaqError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {' '.join(message.split())}", err=True)
        status = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        status = 130
    sys.exit(status if isinstance(status, int) else 0)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "haq search --constraint latency=10ms             search on the built-in network",
        "haq report runs/digits-resnet-edge               show the result again",
        "haq export runs/digits-resnet-edge -o bits.json  write the widths of every layer",
        "haq pick runs/digits-resnet-edge --constraint latency=8ms   take another point of the front",
        "haq finetune runs/digits-resnet-edge --epochs 9  train the result on",
        "haq bench runs/digits-resnet-edge                run it here: predicted against measured",
        "haq quantize --policy bits.json --qat-steps 300  apply a policy without a search",
        "haq compare --schemes linear,lsq --bits 2,3,4    schemes side by side",
        "haq sensitivity                                  which layers need their bits",
        "haq compare-agents --constraint latency=50%      ways of searching, side by side",
        "haq hardware edge                                an accelerator's parameters and sources",
        "haq profile --hardware edge                      what each layer costs, and what binds it",
        "haq measure --model resnet20 --data npz:cifar10  a cost table of this machine",
    ),
)
@click.version_option(__version__, prog_name="haq")
def cli() -> None:
    """Find the bit-width of every layer's weights and activations that keeps the most accuracy inside a budget."""


for _command in (
    pick,
    finetune,
    schemes,
    quantize,
    compare,
    hardware,
    profile,
    table,
    measure,
    bench,
    sensitivity,
    compare_agents,
):
    cli.add_command(_command)


@cli.command(
    epilog=examples(
        "haq search --constraint latency=10ms",
        "haq search --constraint latency=60% --constraint size=100kB",
        "haq search --model resnet20 --weights resnet20.pt --data npz:cifar10 --constraint latency=50%",
        "haq search --scheme kmeans --weights-only --constraint size=30%",
        "haq search --model my_net.py:build --data my_data.py:load --constraint energy=3mJ",
        "haq search --model hf:microsoft/resnet-50 --data imagefolder:pictures --constraint latency=60%",
        "haq search --pareto latency,size --trials 200",
        "haq search --resume runs/digits-resnet-edge",
    )
)
@search_options
@click.option(
    "--pareto",
    metavar="METRICS",
    help="Sweep budgets of these metrics in one run, such as latency,size, up to the constraints or to the uniform "
    "8-bit network's cost; evaluations are shared between the budgets.",
)
@click.option("--trials", default=DEFAULTS.trials, show_default=True, help="Policies to score.")
@click.option(
    "--qat-steps",
    default=DEFAULTS.qat_steps,
    show_default=True,
    help="Fine-tuning steps that a promising trial earns; 0 scores policies after calibration only.",
)
@click.option(
    "--finetune-steps",
    default=DEFAULTS.finetune_steps,
    show_default=True,
    help="Fine-tuning steps of the finalists and of the uniform network that they are compared with.",
)
@click.option(
    "--agent",
    default=DEFAULTS.agent,
    show_default=True,
    metavar="NAME",
    help="Who proposes: predictor, ddpg (beside it, learning in imagination), haq (the paper's), evolution, ilp, "
    "random or uniform; haq compare-agents shows them side by side.",
)
@click.option(
    "--trial-timeout",
    type=float,
    metavar="SECONDS",
    help="Give a trial up that takes longer; it is tried once more, then counted as failed.  [default: wait]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Run folder to make.")
@click.option(
    "--resume",
    "resumed",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Run folder of a search to go on with.",
)
@click.pass_context
def search(
    context: click.Context,
    /,
    out: Path | None,
    resumed: Path | None,
    **options: Any,
) -> None:
    """Search, fine-tune the winner, test it, and write a run folder.

    The search runs on this machine's cores. Ctrl-C lets the running trials end and reports what was found so far;
    pressed again it stops at once. Either way, and after a crash, --resume goes on.
    """
    if resumed is not None:
        given = [name for name in context.params if _given(context, name) and name != "resumed"]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} cannot be changed with --resume; the run folder says it")
        _search(None, resumed)
        return
    config = SearchConfig(**options)
    _search(config, out or free_folder(config))


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _search(config: SearchConfig | None, path: Path) -> None:
    if config is not None and path.exists():  # known before the slow imports
        raise ConfigError(f"{str(path)!r} exists; go on with `haq search --resume {path}`, or give another --out")
    from haq.cli.terminal import TerminalObserver, console

    with TerminalObserver() as observer:
        observer.say(f"run folder: {path}")
        from haq.report import write_report
        from haq.search import resume, run

        folder = run(config, path, observer) if config is not None else resume(path, observer)
    write_report(folder, console)


@cli.command(
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
    help="Page to write.  [default: report.html in RUN; of several, report-overlay.html in the first]",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
def report(runs: tuple[Path, ...], out: Path | None, opened: bool) -> None:
    """Print the comparison, the Pareto front and the per-layer widths of RUN, and write its report.html.

    Of several runs, print a table with a row each, and write a page that draws them together.
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


@cli.command(
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
    help="; ".join(f"{name}: {form.summary}" for name, form in FORMATS.items()) + ".",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write here.  [default: the terminal; for networks a file in RUN]",
)
def export(run: Path, form: str, output: Path | None) -> None:
    """Write the result of RUN for another program: the bits of every layer, or the quantized network itself.

    A format that holds the network opens the model and the data that the run names, and so runs their code.
    """
    from haq.exports import export_run
    from haq.runs import RunFolder

    folder = RunFolder.open(run)
    if form in FORMATS and FORMATS[form].file is not None:
        from haq.cli.terminal import TerminalObserver

        with TerminalObserver() as observer:
            written = export_run(folder, form, output, observer.progress)
    else:
        written = export_run(folder, form, output)
    click.echo(written, nl=not isinstance(written, str))
