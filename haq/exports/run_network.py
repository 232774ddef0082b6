"""Opening the network of a run for export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import Tensor, nn

from haq.errors import ConfigError
from haq.policy import BitPolicy
from haq.progress import Observer
from haq.quant.run_network import open_quantized
from haq.runs import RunFolder
from haq.runs.relocation import Named
from haq.torch_internals import BatchNorm

__all__ = ["Opened", "open_run", "quiet", "require"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A run's network.

    Attributes:
        network: Fake-quantized, in evaluation mode.
        sample: One input, `(1, C, H, W)`.
        folded: Whether its batch norms were folded before it was quantized.
    """

    network: nn.Module
    sample: Tensor
    folded: bool


def open_run(run: RunFolder, policy: BitPolicy, observer: Observer | None = None, named: Named | None = None) -> Opened:
    """Opens the network of a run that has ended; see `haq.quant.run_network.open_quantized`.

    Args:
        run: Its model and data are opened, which runs the code that they name.
        policy: Widths that the network must have.
        observer: Receives progress if the built-in network has to be trained again.
        named: Replacements for the model and data that the run names.
    """
    opened = open_quantized(run, policy, observer, named)
    return Opened(opened.network, opened.data.test.batch([0])[0], _norms(opened.network) < _norms(opened.model))


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, BatchNorm) for module in network.modules())


@contextmanager
def quiet() -> Iterator[None]:
    """Hides warnings and logs of packages during its block, because a user can do nothing about them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require(name: str, extra: str) -> ModuleType:
    """Imports a package that only some formats need.

    Raises:
        ConfigError: It is not installed; the message names the extra that installs it.
    """
    try:
        with quiet():
            return import_module(name)
    except ImportError as error:
        missing = (error.name or name).split(".")[0]
        raise ConfigError(
            f"--format {extra} needs the package {missing!r}, which is not installed; pip install 'haq[{extra}]'"
        ) from None
