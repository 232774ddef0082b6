"""Lists the layers that a network calls, in the order of the calls, with a description of each."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.kinds import kind_of
from haq.layers.reaching import reachable
from haq.layers.running import Sample, quantizable_layers, run_sample, watched
from haq.layers.spec import LayerSpec

__all__ = ["trace"]


def trace(model: nn.Module, sample: Sample) -> list[LayerSpec]:
    """Lists the layers of `model` in the order of their first call.

    Args:
        model: Any module; it runs in evaluation mode and without gradients.
        sample: One input with a batch dimension of 1, such as `(1, C, H, W)` for an image or `(1, T)` for tokens, or a
            tuple of positional inputs.

    Returns:
        One spec for each layer that was called, under its name in `reachable(model)`. A module called several times is
        one layer whose MACs or lookups add up.

    Raises:
        ModelError: The model fails on the sample, calls no quantizable layer, or has layers that cannot be reached.
    """
    specs: dict[str, LayerSpec] = {}
    network = reachable(model, sample)
    names = {module: name for name, module in quantizable_layers(network)}

    def record(module: nn.Module, x: Tensor, y: Tensor) -> None:
        name = names[module]
        spec = kind_of(module).describe(name, module, x, y)
        specs[name] = _added(specs[name], spec) if name in specs else spec

    with watched(names, after=record):
        run_sample(network, sample)
    if not specs:
        raise ModelError(
            f"{type(model).__name__} calls no layer that can be quantized; a model needs a convolution, a linear layer "
            "or an embedding"
        )
    return list(specs.values())


def _added(seen: LayerSpec, call: LayerSpec) -> LayerSpec:
    """Returns a layer with one more call."""
    if not seen.is_lookup:
        return replace(seen, macs=seen.macs + call.macs)
    read, written = seen.in_size[0] + call.in_size[0], seen.out_size[0] + call.out_size[0]
    return replace(seen, in_size=(read, 1), out_size=(written, 1))
