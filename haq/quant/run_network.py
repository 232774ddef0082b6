"""Opens the quantized network of a run, with the float network and the data that the run started from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from haq.data import ImageData
from haq.errors import ConfigError
from haq.policy import BitPolicy
from haq.progress import Observer
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
    """The networks and the data of a run.

    Attributes:
        model: The float network, in evaluation mode and checked by `reached`.
        network: The fake-quantized network, in evaluation mode.
        data: All splits.
    """

    model: nn.Module
    network: nn.Module
    data: ImageData


def open_quantized(
    run: RunFolder, policy: BitPolicy, observer: Observer | None = None, named: Named | None = None
) -> RunNetwork:
    """Opens the network of a finished run.

    Args:
        run: The run; its model and data are opened, which runs the user's code that they name.
        policy: Policy that the network must match.
        observer: Receives progress if the built-in network must be trained again.
        named: Model and data to use instead of those that the run names.

    Raises:
        ConfigError: The run has no network, or one of another run or policy.
        ModelError: The network does not fit the model, or the model is not the run's.
        DataError: The data cannot be read, or is not the run's.
    """
    file = run.network_file()
    config = config_of(run, named)
    resolve_scheme(config.scheme, named.object("scheme") if named else None)
    project = open_project(config, observer, run, named)
    model, _ = reached(project.model, project.data.train.batch([0])[0])
    network = load_quantized(file, model)
    check_widths(run, policy, network)
    return RunNetwork(model, network, project.data)


def check_widths(run: RunFolder, policy: BitPolicy, network: nn.Module) -> None:
    """Checks that model.pt and best.json hold the same layers and widths.

    Args:
        run: Run folder, for messages.
        policy: Policy from best.json.
        network: Network from model.pt.

    Raises:
        ConfigError: A layer has other widths in one of them, or is missing.
    """
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
                f"model.pt; the files are from different searches; finish it with `haq search --resume {run.path}`"
            )
