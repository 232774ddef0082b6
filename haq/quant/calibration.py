"""Scales for every layer and width, found once from the float network and a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.layers import evaluating, quantizable_layers
from haq.quant.functional import mse_scale

__all__ = ["Calibration", "LayerScales", "calibrate"]

_SAMPLES_PER_LAYER = 32_768  # enough that the best clip of a layer's inputs moves by under 1 % between draws


@dataclass(frozen=True)
class LayerScales:
    """Scales of one layer.

    Attributes:
        weights: Width → `(out_channels,)`.
        inputs: Width → `(1,)`.
        signed_inputs: Whether the layer ever read a negative value.
    """

    weights: Mapping[int, Tensor]
    inputs: Mapping[int, Tensor]
    signed_inputs: bool


Calibration = Mapping[str, LayerScales]
"""Layer name → its scales."""


def calibrate(model: nn.Module, batches: Iterable[Tensor], bits: Iterable[int]) -> Calibration:
    """Finds the scales that minimise the squared error, of weights per output channel and of inputs per tensor.

    Every policy over the same widths can then be prepared without running the float network again.

    Args:
        model: The float network, batch norms folded.
        batches: Inputs, each `(N, C, H, W)`.
        bits: Widths to find scales for.

    Returns:
        Scales of the layers that the batches reach.
    """
    widths = sorted(set(bits))
    samples = _input_samples(model, batches)
    scales = {}
    for name, layer in quantizable_layers(model):
        if name not in samples:
            continue
        rows = layer.weight.detach().flatten(1)
        values = samples[name][None]
        signed = bool((values < 0).any())
        scales[name] = LayerScales(
            weights={width: mse_scale(rows, width, signed=True) for width in widths},
            inputs={width: mse_scale(values, width, signed) for width in widths},
            signed_inputs=signed,
        )
    return scales


def _input_samples(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns about `_SAMPLES_PER_LAYER` input values of each layer, with its smallest and largest among them."""
    kept: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].detach().flatten().float()
        # An odd stride visits all channels and positions, whose counts are mostly powers of two
        stride = max(1, values.numel() * batch_count // _SAMPLES_PER_LAYER) | 1
        kept.setdefault(module, []).append(
            torch.cat([values[::stride], values.aminmax().min[None], values.max()[None]])
        )

    names: dict[nn.Module, str] = {module: name for name, module in quantizable_layers(model)}
    inputs = list(batches)
    batch_count = len(inputs)
    handles = [module.register_forward_pre_hook(keep) for module in names]
    try:
        with evaluating(model):
            for batch in inputs:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {names[module]: torch.cat(parts) for module, parts in kept.items()}
