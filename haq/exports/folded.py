"""Batch norms folded into weight scales and biases, as deployed code computes them and the size model counts them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from haq.errors import ConfigError
from haq.exports.packing import coded_layers, slope_and_shift
from haq.layers import copied, quantizable_layers, replace_modules, run_sample
from haq.quant.folding import batch_norms_after
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["fold_norms"]

_SAME = 1e-3  # of the largest output


class _Stored(Quantizer):
    """Returns stored codes, whatever its input is."""

    def __init__(self, stored: QuantizedTensor) -> None:
        super().__init__(stored.bits, stored.granularity, signed=True)
        self.stored = stored

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.stored.dequantize()

    def encode(self, x: Tensor) -> QuantizedTensor:
        return self.stored


@torch.no_grad()
def fold_norms(network: nn.Module, sample: Tensor) -> nn.Module:
    """Returns a copy of a prepared network with its batch norms folded and its codes unchanged.

    The weights' scale is multiplied by the norm's slope, which may be negative, and the bias becomes
    shift + slope·bias.

    Args:
        network: In evaluation mode.
        sample: One input; it is run to find which layer feeds which batch norm.

    Raises:
        ConfigError: A batch norm cannot be folded: the codes before it do not have one scale per channel, or something
            else reads the layer's output.
    """
    folded = copied(network).eval().requires_grad_(False)
    names = {layer: name for name, layer in quantizable_layers(folded)}
    expected = run_sample(_unrounded(folded), sample)
    places: dict[nn.Module, nn.Module] = {}
    for layer, norm in batch_norms_after(folded, sample):
        slope, shift = slope_and_shift(norm)
        if isinstance(layer, Quantized) and not isinstance(layer.weight_quantizer, nn.Identity):
            stored = cast(Quantizer, layer.weight_quantizer).encode(layer.weight)
            layer.weight_quantizer = _Stored(_scaled(stored, slope, names[layer]))
        else:
            layer.weight = nn.Parameter(layer.weight * slope.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias = nn.Parameter(shift if layer.bias is None else shift + slope * layer.bias)
        places[norm] = nn.Identity()
    folded = replace_modules(folded, places)
    found = run_sample(_unrounded(folded), sample)
    if not torch.allclose(found, expected, rtol=_SAME, atol=_SAME * float(expected.abs().max())):
        raise ConfigError(
            "batch norms cannot be folded: a layer's output is read by more than its batch norm; export --format packed"
        )
    return folded


def _unrounded(network: nn.Module) -> nn.Module:
    """Returns a copy with inputs not quantized, because a difference in the last bit may move their codes."""
    unrounded = copied(network)
    for _, layer in coded_layers(unrounded):
        layer.input_quantizer = nn.Identity()
    return unrounded


def _scaled(stored: QuantizedTensor, slope: Tensor, name: str) -> QuantizedTensor:
    if stored.scale is None or stored.granularity not in ("tensor", "channel"):
        raise ConfigError(
            f"the batch norm after layer {name!r} cannot be folded, because the layer's codes do not have one scale "
            "per output channel; export --format packed"
        )
    zero = None if stored.zero_point is None else stored.zero_point.expand(len(slope)).clone()
    return replace(stored, granularity="channel", scale=stored.scale * slope, zero_point=zero)
