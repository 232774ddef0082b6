"""The network that a run wrote, with the float network and the data that it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from haq.data import ImageData
from haq.errors import ConfigError
from haq.policy import BitPolicy
from haq.quant.modules import Quantized
from haq.quant.preparation import load_quantized
from haq.quant.reach import reached
from haq.quant.schemes import resolve_scheme
from haq.runs import RunFolder
from haq.runs.project import open_project
from haq.runs.relocation import Named, config_of

__all__ = ["RunNetwork", "check_widths", "open_quantized"]


@dataclass(frozen=True, eq=False)
class RunNetwork:
    """What a run started from, and what it wrote.

    Attributes:
        model: The float network, in evaluation mode, proven to be reached by quantizers.
        network: Fake-quantized, likewise.
        data: All splits.
    """

    model: nn.Module
    network: nn.Module
    data: ImageData


def open_quantized(
    run: RunFolder, policy: BitPolicy, progress: Callable[[int, int], None], named: Named | None = None
) -> RunNetwork:
    """Opens the network of a run that has ended.

    Args:
        run: Its model and data are opened, which runs the code that they name.
        policy: What the network must agree with.
        progress: Is told when the built-in network has to be trained again.
        named: What takes the place of the model and data that the run names.

    Raises:
        ConfigError: The run has no network, or one of another run or policy.
        ModelError: The network does not fit the model, or the model is not the run's.
        DataError: The data cannot be read, or is not the run's.
    """
    file = run.network_file()
    config = config_of(run, named)
    resolve_scheme(config.scheme, named.object("scheme") if named else None)
    project = open_project(config, progress, run, named)
    model, _ = reached(project.model, project.data.train.batch([0])[0])
    network = load_quantized(file, model)
    check_widths(run, policy, network)
    return RunNetwork(model, network, project.data)


def check_widths(run: RunFolder, policy: BitPolicy, network: nn.Module) -> None:
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
