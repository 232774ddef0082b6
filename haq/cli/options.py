"""Options that several commands share, and how examples are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from haq.config import SearchConfig, check_range
from haq.registry import SCHEMES, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DEFAULTS",
    "at_least",
    "examples",
    "naming_options",
    "network_options",
    "open_untrained_network",
    "plugins_of",
    "search_options",
]

DEFAULTS = SearchConfig(constraints=("latency=10ms",))


def plugins_of(registry: Registry[Any]) -> str:
    """Returns what plugins brought, to be added to a list of names; empty where they brought nothing."""
    return "".join(f", {name} (of {package})" for name, package in registry.plugins.items())


def examples(*lines: str) -> str:
    """Returns an epilog that shows command lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


_NETWORK = (
    click.option(
        "--model",
        default=DEFAULTS.model,
        show_default=True,
        metavar="MODEL",
        help="Built-in name; hf:NAME_OR_FOLDER, timm:NAME or torchvision:NAME; or file.py:function or "
        "package.module:function that returns a torch.nn.Module. The code that you name so is run.",
    ),
    click.option("--weights", metavar="FILE", help="State dict to load into the model (read without running code)."),
    click.option(
        "--data",
        default=DEFAULTS.data,
        show_default=True,
        metavar="DATA",
        help="digits; npz:FOLDER with train.npz and test.npz; imagefolder:DIR; hf:NAME_OR_FOLDER; text:FILE for a "
        "language model; or file.py:function. The code that you name so is run.",
    ),
)


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --model, --weights and --data."""
    for option in reversed(_NETWORK):
        command = option(command)
    return command


_RENAMED = (
    click.option("--model", metavar="MODEL", help="Where the run's model is now, if it has moved."),
    click.option("--weights", metavar="FILE", help="Where its weights are now, if they have moved."),
    click.option("--data", metavar="DATA", help="Where its data is now, if it has moved."),
)
_HARDWARE = click.option("--hardware", metavar="NAME", help="Where its hardware file is now, if it has moved.")


def naming_options(*, hardware: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --model, --weights, --data and perhaps --hardware, which say anew where those of a run are."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*_RENAMED, _HARDWARE) if hardware else _RENAMED):
            command = option(command)
        return command

    return add


def open_untrained_network(model: str, weights: str | None, data: str) -> tuple[nn.Module, Tensor]:
    """Returns the network, untrained where it is built in, and a sample, for commands to which only shapes matter."""
    from haq.runs.project import open_network

    # The shape of an image does not depend on the seed
    network, images = open_network(model, weights, data, DEFAULTS.val_images, 0, trained=False)
    return network, images.train.batch([0])[0]


def at_least(values: Mapping[str, tuple[int, int]]) -> None:
    """Refuses what is too small, or too large for what counts with it.

    Args:
        values: Option → its value, and the least one.

    Raises:
        ConfigError: A value is out of range.
    """
    for option, (value, least) in values.items():
        check_range(option, value, least)


_PROBLEM = (
    click.option(
        "--constraint",
        "constraints",
        multiple=True,
        metavar="METRIC=LIMIT",
        help="Budget to keep: latency, energy, size, ram, bops or bits (a weight, on average), as in latency=10ms, "
        "size=200kB, bits=2.5, or relative to the uniform 8-bit network, latency=60%. May be given several times.",
    ),
    click.option(
        "--hardware",
        default=DEFAULTS.hardware,
        show_default=True,
        metavar="NAME",
        help="What prices the layers: a name that haq hardware lists, a .yaml file, a cost table, .parquet or .csv, or "
        "file.py:NAME, a cost model of your own, whose code is run.",
    ),
    click.option(
        "--batch",
        type=int,
        help="Batch size that costs are for.  [default: the usual one of the hardware, 16 for edge]",
    ),
    click.option(
        "--bits",
        default="2-8",
        show_default=True,
        metavar="WIDTHS",
        help="Candidate widths, such as 2,3,4,6,8 or 2-8.",
    ),
    click.option(
        "--a-bits", metavar="WIDTHS", help="Candidate widths of activations, such as 8.  [default: those of weights]"
    ),
    click.option(
        "--scheme",
        default=DEFAULTS.scheme,
        show_default=True,
        metavar="NAME",
        help="What realises the widths: a name that haq schemes lists"
        + plugins_of(SCHEMES)
        + ", or file.py:NAME, a scheme of your own, whose code is run.",
    ),
    click.option(
        "--weights-only", is_flag=True, help="Search weights alone, for size budgets; activations stay float."
    ),
    click.option(
        "--pin-ends/--free-ends",
        default=DEFAULTS.pin_ends,
        show_default=True,
        help="Hold the first and last layer at 8 bits, or search them too; the next four rules win over this one.",
    ),
    click.option(
        "--pin",
        multiple=True,
        metavar="LAYERS=W/A",
        help="Hold layers at a pair of widths: 'head.*=8/8', or 'head.*=8' for the same. LAYERS are names with commas "
        "between them: whole paths, last parts of paths, or globs of whole paths. Rules may be given several times; of "
        "two for one layer the later one wins, and a pin wins over --bits-of.",
    ),
    click.option(
        "--float",
        multiple=True,
        metavar="LAYERS",
        help="Leave layers in floating point, such as 'lstm*'.",
    ),
    click.option(
        "--bits-of",
        multiple=True,
        metavar="LAYERS=WIDTHS",
        help="Other candidate widths for some layers: of weights, 'enc.*=4,8', or of both, 'enc.*=4,8/8'.",
    ),
    click.option(
        "--tie",
        multiple=True,
        metavar="LAYERS",
        help="Give layers the same widths: q_proj,k_proj,v_proj ties these three in each block; a glob of whole paths, "
        "such as 'enc.*.fc1', ties all that it matches.",
    ),
    click.option(
        "--val-images",
        default=DEFAULTS.val_images,
        show_default=True,
        help="Training images held out to score policies on (a fifth of them at most).",
    ),
    click.option(
        "--rank-by",
        default=DEFAULTS.rank_by,
        show_default=True,
        metavar="auto|top1|loss|kl",
        help="What to rank policies by; auto takes kl, the divergence from the float network, where nothing "
        "is fine-tuned or the float network makes almost no mistake, the loss for texts, and else top1.",
    ),
    click.option(
        "--workers", default=DEFAULTS.workers, show_default="number of cores", help="Trials at a time, one core each."
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="Head of a Ray cluster to run the trials on, or auto; give --workers as well.  [default: this machine]",
    ),
    click.option(
        "--gpus-per-trial",
        default=DEFAULTS.gpus_per_trial,
        show_default=True,
        help="GPUs of each trial; 0.25 lets four share one.",
    ),
    click.option(
        "--seed", default=DEFAULTS.seed, show_default=True, help="Same seed, same machine, one worker: same run."
    ),
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what poses a search: the budget, the network, the hardware, the widths, and how policies are scored."""
    constraint, *others = _PROBLEM
    for option in reversed(others):
        command = option(command)
    return constraint(network_options(command))
