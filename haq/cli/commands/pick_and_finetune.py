"""Commands for a run after its search: `haq pick` and `haq finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from haq.cli.commands.report_and_export import reported
from haq.cli.options import examples, naming_options
from haq.cli.output import Result, output_options
from haq.cli.terminal import TerminalObserver, console
from haq.errors import ConfigError
from haq.runs.relocation import Named

__all__ = ["finetune", "pick"]


@click.command(
    epilog=examples(
        "haq pick runs/digits-resnet-edge-latency-10ms --constraint latency=8ms",
        "haq pick runs/digits-resnet-edge-latency-10ms --constraint size=60kB --finetune-steps 0",
        "haq search --resume runs/digits-resnet-edge-latency-8ms    resume one that was interrupted",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="The new budget, as for haq search. May be given several times.",
)
@click.option(
    "--finetune-steps",
    type=int,
    metavar="N",
    help="Fine-tuning steps of the picked policies and of the uniform networks that they are compared with.  "
    "[default: as in the search]",
)
@click.option("--ptq", metavar="PASSES", help="Post-training passes, as for haq search.  [default: as in the search]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Run folder to make.  [default: beside RUN, named for the budget]",
)
@naming_options(hardware=True)
@output_options
def pick(
    run: Path,
    constraints: tuple[str, ...],
    finetune_steps: int | None,
    ptq: str | None,
    out: Path | None,
    **named: str | None,
) -> Result:
    """Take another point of RUN: the best policies that meet another budget, without a new search.

    These and the best uniform networks of the budget are fine-tuned in the same way and tested, as at the end of a
    search. The new run folder can be reported, exported, measured and fine-tuned like any other.
    """
    with TerminalObserver() as observer:
        from haq.report import write_report
        from haq.search import pick as take

        result = take(run, constraints, out, finetune_steps, observer, Named(**named), ptq)
    page = write_report(result, console)
    return Result(lambda: reported([result], page), (str(result.path),))


@click.command(
    epilog=examples(
        "haq finetune runs/digits-resnet-edge-latency-10ms --epochs 20",
        "haq finetune runs/digits-resnet-edge-latency-10ms --epochs 20 --policy bits.json --no-distill",
        "haq finetune --resume runs/digits-resnet-edge-latency-10ms-finetuned",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN", required=False)
@click.option("--epochs", type=int, metavar="N", help="Passes over the training samples.  [required]")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Other widths within the budget of RUN, as haq export writes them.  [default: those that RUN chose]",
)
@click.option(
    "--lr",
    type=float,
    metavar="RATE",
    help="Initial learning rate of the weights; it falls to zero along a cosine.  [default: by the widths, as in a "
    "search]",
)
@click.option(
    "--distill/--no-distill",
    default=True,
    show_default=True,
    help="Learn the outputs of the float network, or the labels.",
)
@click.option("--batch", default=64, show_default=True, help="Samples per step.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the samples.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Run folder to make.  [default: RUN-finetuned]",
)
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="FOLDER", help="Fine-tuning to resume.")
@naming_options(hardware=True)
@output_options
def finetune(
    run: Path | None,
    epochs: int | None,
    policy: Path | None,
    lr: float | None,
    distill: bool,
    batch: int,
    seed: int,
    out: Path | None,
    resumed: Path | None,
    **named: str | None,
) -> Result:
    """Continue training the network of RUN, and write it into a new run folder.

    The weights of the epoch that does best on the validation samples are kept. A checkpoint is written every epoch, or
    every minute if epochs are longer. Ctrl-C stops the training; --resume continues it to the same result. TensorBoard
    logs are in FOLDER/tensorboard.
    """
    if resumed is None and (run is None or epochs is None):
        raise ConfigError("give RUN and --epochs N, such as --epochs 20; or --resume FOLDER")
    if resumed is not None and (run is not None or any(v is not None for v in (epochs, policy, lr, out))):
        raise ConfigError("--resume takes no RUN and no other options; the folder holds them")
    with TerminalObserver() as observer:
        from haq.report import write_report
        from haq.search import finetune as train
        from haq.search import resume_finetune

        if resumed is not None:
            result = resume_finetune(resumed, observer, Named(**named))
        else:
            assert run is not None
            assert epochs is not None
            options = {"lr": lr, "distill": distill, "batch": batch, "seed": seed}
            result = train(run, epochs, out, policy, observer, Named(**named), **options)
    page = write_report(result, console)
    return Result(lambda: reported([result], page), (str(result.path),))
