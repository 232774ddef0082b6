"""Options that several commands share, and how examples are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from haq.config import SearchConfig

__all__ = ["DEFAULTS", "examples", "network_options"]

DEFAULTS = SearchConfig(constraints=("latency=10ms",))


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
