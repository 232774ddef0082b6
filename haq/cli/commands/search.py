"""`haq search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haq.cli.commands.report_and_export import reported
from haq.cli.options import DEFAULTS, examples, plugins_of, search_options
from haq.cli.output import Result, output_options
from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.io.output_paths import check_folder, free_folder
from haq.policy import BitPolicy
from haq.registry import AGENTS
from haq.runs.relocation import Named

__all__ = ["search"]

_NAMED = {"model", "weights", "data", "hardware"}  # what may lie elsewhere when a search is resumed


@click.command(
    epilog=examples(
        "haq search --constraint latency=10ms",
        "haq search --constraint latency=60% --constraint size=100kB",
        "haq search --model resnet20 --weights resnet20.pt --data npz:cifar10 --constraint latency=50%",
        "haq search --scheme kmeans --weights-only --constraint size=30%",
        "haq search --model my_net.py:build --data my_data.py:load --constraint energy=3mJ",
        "haq search --model hf:microsoft/resnet-50 --data imagefolder:pictures --constraint latency=60%",
        "haq search --constraint size=40% --pin linear=8/8 --bits-of 'layer1.*=4,8' --tie conv1,conv2",
        "haq search --pareto latency,size --trials 200",
        "haq search --config runs/digits-resnet-edge/config.yaml --seed 1",
        "haq search --resume runs/digits-resnet-edge",
    )
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Options as YAML: a run's config.yaml, to repeat it, or a file of your own. What stands on the command line "
    "wins. The code that the file names is run.",
)
@search_options
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Widths to score first: what haq export writes, or a run's best.json; lowered where they exceed the budget.",
)
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
    "--ptq",
    default="sequential",
    show_default=True,
    metavar="PASSES",
    help="Post-training passes of the finalists, before fine-tuning: as for haq quantize, or auto or none.",
)
@click.option(
    "--agent",
    default=DEFAULTS.agent,
    show_default=True,
    metavar="NAME",
    help="Who proposes: predictor, ddpg (beside it, learning in imagination), haq (the paper's, for "
    "hundreds of trials), evolution, ilp, random or uniform"
    + plugins_of(AGENTS)
    + "; or file.py:NAME, an agent of your own, whose code is run. haq compare-agents shows agents side by side.",
)
@click.option(
    "--trial-timeout",
    type=float,
    metavar="SECONDS",
    help="Give a trial up that takes longer; it is tried once more, then counted as failed.  [default: wait]",
)
@click.option(
    "--time-limit",
    metavar="TIME",
    help="Start no trial after this time, such as 90s, 10m or 2h, and report what was found; --resume continues for as "
    "long again.  [default: until all trials are done]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Run folder to make.")
@click.option(
    "--resume",
    "resumed",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Run folder of a search to resume.",
)
@output_options
@click.pass_context
def search(
    context: click.Context,
    /,
    out: Path | None,
    resumed: Path | None,
    config_file: Path | None,
    start: Path | None,
    **options: Any,
) -> Result:
    """Search, fine-tune the winner, test it, and write a run folder.

    The search runs on this machine's cores. Ctrl-C lets the running trials end and reports what was found so far;
    pressed again it stops at once. Either way, and after a crash, --resume continues it. With --quiet only the folder
    is printed.

    --resume refuses a network, data or options other than those that the search began with. If these lie elsewhere
    now, give --model, --weights, --data or --hardware beside it.
    """
    if resumed is not None:
        asking = [option for option in context.command.params if option.name in context.params]  # not how to print
        given = [option for option in asking if _given(context, option) and option.name != "resumed"]
        named = {str(option.name): options[option.name] for option in given if option.name in _NAMED}
        if others := [option for option in given if option.name not in named]:
            raise ConfigError(
                f"{others[0].opts[0]} cannot be changed with --resume; leave it out, the run folder says it"
            )
        return _search(None, resumed, Named(**named))
    if start is not None:
        options["start"] = BitPolicy.load(start)
    if config_file is None:
        config = SearchConfig(**options)
    else:
        changed = {option.name for option in context.command.params if _given(context, option)}
        config = SearchConfig.load(config_file, {name: options[name] for name in options if name in changed})
    return _search(config, out or free_folder(config.run_name))


def _given(context: click.Context, option: click.Parameter) -> bool:
    return context.get_parameter_source(option.name or "") == click.core.ParameterSource.COMMANDLINE


def _search(config: SearchConfig | None, path: Path, named: Named | None = None) -> Result:
    if config is not None:  # known before the slow imports
        check_folder(path, "haq search")
    from haq.cli.terminal import TerminalObserver, console

    with TerminalObserver() as observer:
        observer.progress("prepare", 0, 1)  # imports take seconds
        from haq.report import write_report
        from haq.search import resume, run

        folder = run(**config.options(), out=path, observer=observer) if config else resume(path, observer, named)
    page = write_report(folder, console)
    return Result(lambda: reported([folder], page), (str(path),))
