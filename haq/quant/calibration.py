"""Quantizers for every layer and width, set up once from the float network and a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.inputs import fresh
from haq.layers import evaluating, quantizable_layers
from haq.quant.schemes import Scheme, get_scheme

__all__ = ["Calibration", "LayerQuantizers", "Samples", "calibrate", "input_samples"]

_VALUES_PER_LAYER = 32_768  # enough that the best clip of a layer's inputs moves by under 1 % between draws
_READS_PER_LAYER = 512
_READ_IMAGES = 4  # of each batch


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
            weights={
                width: chosen.weight_quantizer(layer.weight.detach(), width, samples[name].reads) for width in widths
            },
            inputs={width: chosen.input_quantizer(samples[name].values, width) for width in widths},
        )
        for name, layer in quantizable_layers(model)
        if name in samples
    }


@dataclass(frozen=True)
class Samples:
    """Of what a layer reads.

    Attributes:
        values: `(samples, n)`: of every sample some values, its smallest and its largest.
        reads: Columns that the layer's weight, as a matrix, is multiplied by, `(groups, n, columns)`.
    """

    values: Tensor
    reads: Tensor


def input_samples(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Samples]:
    """Returns samples of what each layer reads.

    Args:
        model: The float network.
        batches: Inputs, each `(N, C, H, W)`.
    """
    kept: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    inputs = list(batches)
    per_sample = max(8, _VALUES_PER_LAYER // max(sum(map(len, inputs)), 1))
    per_batch = -(-_READS_PER_LAYER // max(len(inputs), 1))
    rng = torch.Generator().manual_seed(0)

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().float()
        values = x.flatten(1)
        # An odd stride visits all channels and positions, whose counts are mostly powers of two
        stride = max(1, values.shape[1] // per_sample) | 1
        low, high = values.aminmax(dim=1, keepdim=True)
        columns = _columns(module, x[:_READ_IMAGES])
        chosen = torch.randint(columns.shape[2], (per_batch,), generator=rng)
        kept.setdefault(module, []).append((torch.cat([values[:, ::stride], low, high], 1), columns[:, :, chosen]))

    names: dict[nn.Module, str] = {module: name for name, module in quantizable_layers(model)}
    handles = [module.register_forward_pre_hook(keep) for module in names]
    try:
        with evaluating(model):
            for batch in inputs:
                model(fresh(batch))
    finally:
        for handle in handles:
            handle.remove()
    return {
        names[module]: Samples(torch.cat([values for values, _ in parts]), torch.cat([reads for _, reads in parts], 2))
        for module, parts in kept.items()
    }


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns the layer's inputs as the matrix product sees them, `(groups, n, columns)`."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)  # (N, C·kernel, positions)
    return patches.transpose(0, 1).reshape(layer.groups, patches.shape[1] // layer.groups, -1)
