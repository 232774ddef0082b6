"""Lists the layers that a network calls, in the order of the calls, with a description of each."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Size, Tensor, nn

from haq.errors import ModelError
from haq.layers.own_forward import window_of
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
        One spec for each `nn.Conv2d` (and subclass) and `nn.Linear` that was called, under its name in
        `reachable(model)`. A module called several times is one layer whose MACs add up.

    Raises:
        ModelError: The model fails on the sample, calls no quantizable layer, or has layers that cannot be reached.
    """
    specs: dict[str, LayerSpec] = {}
    network = reachable(model, sample)
    names = {module: name for name, module in quantizable_layers(network)}

    def record(module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor) -> None:
        name = names[module]
        spec = _spec(name, module, x, y)
        if (seen := specs.get(name)) is not None:
            spec = replace(seen, macs=seen.macs + spec.macs)
        specs[name] = spec

    with watched(names, after=record):
        run_sample(network, sample)
    if not specs:
        raise ModelError(
            f"{type(model).__name__} calls no layer that can be quantized; a model needs at least one Conv2d or Linear"
        )
    return list(specs.values())


def _spec(name: str, module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor) -> LayerSpec:
    biases = 0 if module.bias is None else module.bias.numel()
    params = module.weight.numel()
    if isinstance(module, nn.Linear):
        rows = math.prod(x.shape[:-1])  # windows and tokens may be folded into the batch dimension, which starts as 1
        return LayerSpec(
            name, "linear", module.in_features, module.out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1,
            (rows, 1), (rows, 1), rows * params, params, biases,
        )  # fmt: skip
    stride, (left, _, top, _), dilation = window_of(module)  # right and bottom may get one more, which is ignored
    kernel, padding = _pair(module.kernel_size), (top, left)
    in_size, out_size = _pair(x.shape[-2:]), _pair(y.shape[-2:])
    return LayerSpec(
        name, _kind(module), module.in_channels, module.out_channels, kernel, stride, padding, dilation,
        module.groups, in_size, out_size, math.prod(y.shape[:-3]) * out_size[0] * out_size[1] * params, params, biases,
    )  # fmt: skip


def _kind(module: nn.Conv2d) -> str:
    if module.groups == 1:
        return "conv"
    return "depthwise" if module.groups == module.in_channels else "grouped"


def _pair(values: tuple[int, ...] | Size) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)
