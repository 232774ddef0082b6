"""Quantizers for every layer and width, set up once from the float network and a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.layers import evaluating, quantizable_layers
from haq.quant.schemes import Scheme, get_scheme

__all__ = ["Calibration", "LayerQuantizers", "calibrate", "input_samples"]

_VALUES_PER_LAYER = 32_768  # enough that the best clip of a layer's inputs moves by under 1 % between draws


@dataclass(frozen=True)
class LayerQuantizers:
    """Quantizers of one layer by width, to be copied into networks.

    Attributes:
        weights: Width → quantizer of the weight.
        inputs: Width → quantizer of the input.
    """

    weights: Mapping[int, nn.Module]
    inputs: Mapping[int, nn.Module]


Calibration = Mapping[str, LayerQuantizers]
"""Layer name → its quantizers."""


def calibrate(
    model: nn.Module, batches: Iterable[Tensor], bits: Iterable[int], scheme: str | Scheme = "linear"
) -> Calibration:
    """Sets up the quantizers of all layers from their weights and the values that they read.

    Every policy over the same widths can then be prepared without running the float network again.

    Args:
        model: The float network.
        batches: Inputs, each `(N, C, H, W)`.
        bits: Widths to set up.
        scheme: What weights and activations are quantized with.

    Returns:
        Quantizers of the layers that the batches reach.
    """
    chosen = get_scheme(scheme) if isinstance(scheme, str) else scheme
    widths = sorted(set(bits))
    samples = input_samples(model, batches)
    return {
        name: LayerQuantizers(
            weights={width: chosen.weight_quantizer(layer.weight.detach(), width) for width in widths},
            inputs={width: chosen.input_quantizer(samples[name], width) for width in widths},
        )
        for name, layer in quantizable_layers(model)
        if name in samples
    }


def input_samples(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns values that each layer reads, `(samples, n)`: of every sample some, its smallest and its largest.

    Args:
        model: The float network.
        batches: Inputs, each `(N, C, H, W)`.
    """
    kept: dict[nn.Module, list[Tensor]] = {}
    inputs = list(batches)
    per_sample = max(8, _VALUES_PER_LAYER // max(sum(map(len, inputs)), 1))

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].detach().flatten(1).float()
        # An odd stride visits all channels and positions, whose counts are mostly powers of two
        stride = max(1, values.shape[1] // per_sample) | 1
        low, high = values.aminmax(dim=1, keepdim=True)
        kept.setdefault(module, []).append(torch.cat([values[:, ::stride], low, high], 1))

    names: dict[nn.Module, str] = {module: name for name, module in quantizable_layers(model)}
    handles = [module.register_forward_pre_hook(keep) for module in names]
    try:
        with evaluating(model):
            for batch in inputs:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {names[module]: torch.cat(parts) for module, parts in kept.items()}
