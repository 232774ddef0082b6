"""The network that a run wrote, ready to be exported."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.data import get_data
from haq.errors import ConfigError
from haq.models import open_model
from haq.policy import BitPolicy
from haq.quant.modules import Quantized
from haq.quant.preparation import load_quantized
from haq.runs import RunFolder

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


def open_run(run: RunFolder, policy: BitPolicy, progress: Callable[[str, int, int], None]) -> Opened:
    """Opens the network of a run that has ended.

    Args:
        run: Its model and data are opened, which runs the code that they name.
        policy: What the network must agree with.
        progress: Is told when the built-in network has to be trained again.

    Raises:
        ConfigError: The run has no network, or one of another policy.
        ModelError: The network does not fit the run's model.
        DataError: The data cannot be read.
    """
    config = run.read_config()
    if not run.model.is_file():
        raise ConfigError(f"{run.path} has no model.pt; finish it with `haq search --resume {run.path}`")
    data = get_data(config.data, config.val_images, config.seed)
    model = open_model(config.model, config.weights, data, lambda done, total: progress("train float", done, total))
    network = load_quantized(run.model, model)
    _check(run, policy, network)
    return Opened(network, data.test.batch([0])[0], _norms(network) < _norms(model))


def _check(run: RunFolder, policy: BitPolicy, network: nn.Module) -> None:
    """Raises `ConfigError` where model.pt and best.json name other layers or widths."""
    held = {
        name: tuple(getattr(quantizer, "bits", None) for quantizer in (layer.weight_quantizer, layer.input_quantizer))
        for name, layer in network.named_modules()
        if isinstance(layer, Quantized)
    }
    for name in [*policy, *held]:
        bits = policy.get(name)
        asked = (bits.w_bits, bits.a_bits) if bits else None
        if held.get(name) != asked:
            raise ConfigError(
                f"layer {name!r} has (w_bits, a_bits) {asked} in {run.path / 'best.json'}, but {held.get(name)} in "
                f"model.pt; the files are of different searches, so finish it with `haq search --resume {run.path}`"
            )


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


@contextmanager
def quiet() -> Iterator[None]:
    """Runs its block without warnings and logged ones: of packages, about what a user can do nothing about."""
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
        ConfigError: It is not installed; the message names the extra that brings it.
    """
    try:
        with quiet():
            return import_module(name)
    except ImportError as error:
        missing = (error.name or name).split(".")[0]
        raise ConfigError(
            f"--format {extra} needs the package {missing!r}, which is not installed; pip install 'haq[{extra}]'"
        ) from None
