"""Quantizers in a form that other programs understand: integer codes with a scale and a zero point.

Schemes without such a form, such as codebooks, are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from haq.errors import ConfigError
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.functional import is_binary
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes.lsq import LSQQuantizer
from haq.quant.schemes.pact import PACTQuantizer

__all__ = ["InputGrid", "input_grid", "weight_codes"]


@dataclass(frozen=True)
class InputGrid:
    """The grid of a layer's input, r = S·(q − Z) with q from `low` to `high`; a binary grid has only −1 and +1.

    Attributes:
        bits: Width of a code.
        low: Smallest code.
        high: Largest code.
        scale: S, a float32 number.
        zero: Z.
        binary: Whether the codes are −1 and +1.
    """

    bits: int
    low: int
    high: int
    scale: float
    zero: int = 0
    binary: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest number."""
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale


def input_grid(name: str, layer: Quantized, scheme: str) -> InputGrid | None:
    """Returns the grid of a layer's input, or `None` if the input stays in floating point.

    Args:
        name: Name of the layer, for messages.
        layer: The layer.
        scheme: Name of its scheme, for messages.

    Raises:
        ConfigError: The input's quantizer is not one uniform grid with rounding to nearest.
    """
    quantizer = layer.input_quantizer
    if isinstance(quantizer, nn.Identity):
        return None
    if not isinstance(quantizer, UniformQuantizer | LSQQuantizer | PACTQuantizer) or quantizer.granularity != "tensor":
        raise ConfigError(
            f"scheme {scheme!r} quantizes the input of layer {name!r} with {type(quantizer).__name__}, which is not "
            "one uniform grid; search with --scheme linear, or with --weights-only"
        )
    if getattr(quantizer, "rounding", "nearest") != "nearest":
        raise ConfigError(
            f"the input of layer {name!r} is rounded down, and exported files round to nearest; "
            "quantize with --option rounding=nearest"
        )
    bits, scale = quantizer.bits, float(quantizer.scale.detach())
    zero_point = getattr(quantizer, "zero_point", None)
    if zero_point is None and is_binary(bits, quantizer.signed):
        return InputGrid(bits, -1, 1, scale, binary=True)
    if isinstance(quantizer, PACTQuantizer) and quantizer.signed:
        return InputGrid(bits, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1, scale)
    low, zero = -(2 ** (bits - 1)) if quantizer.signed else 0, 0 if zero_point is None else int(zero_point)
    if bits == 1:  # any two codes, even {−1, 0}, are written as 0 and 1: elsewhere a signed bit means −1 and +1
        low, zero = 0, zero - low
    return InputGrid(bits, low, low + 2**bits - 1, scale, zero)


def weight_codes(name: str, layer: Quantized, scheme: str) -> QuantizedTensor | None:
    """Returns the codes of a layer's weights with their scales, or `None` if the weights stay in floating point.

    Args:
        name: Name of the layer, for messages.
        layer: The layer.
        scheme: Name of its scheme, for messages.

    Raises:
        ConfigError: The weights have no scale, because the scheme has a table of levels or floating-point numbers.
    """
    quantizer = layer.weight_quantizer
    if isinstance(quantizer, nn.Identity):
        return None
    with torch.no_grad():
        stored = cast(Quantizer, quantizer).encode(layer.weight)
    if stored.scale is None:
        if stored.codebook is not None:
            what, fix = "a table of levels", "export --format packed, which keeps tables"
        else:
            what, fix = "16-bit floating point", "convert the float network in PyTorch"
        raise ConfigError(
            f"scheme {scheme!r} stores the weights of layer {name!r} as {what}, but this format only has uniform "
            f"grids; search with --scheme linear, or {fix}"
        )
    return stored
