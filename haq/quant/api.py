"""Quantizes one tensor with a scheme given by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from haq.errors import ConfigError
from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes import get_scheme

__all__ = ["quantize"]


def quantize(
    tensor: Tensor, bits: int, scheme: str = "linear", granularity: str = "channel", **options: Any
) -> QuantizedTensor:
    """Quantizes a weight after training.

    Args:
        tensor: Any shape; the first dimension counts as output channels.
        bits: Width of a code.
        scheme: One of `list_schemes()`.
        granularity: Which values share a scale or a codebook: `tensor`, `channel`, `row`, `column`, `group:n` or
            `element`.
        **options: Options of the scheme, such as `clip="minmax"` or `rounding="floor"`.

    Raises:
        ConfigError: The scheme, a width, the granularity or an option is unknown.
        DataError: The tensor is empty or has NaN or infinite values.

    Examples:
        >>> import torch
        >>> weight = torch.tensor([[0.9, -0.3, 0.1], [2.0, 1.1, -2.0]])
        >>> stored = quantize(weight, 3, clip="minmax")
        >>> stored.codes.tolist(), stored.size_bytes
        ([[3, -1, 0], [3, 2, -3]], 11)
    """
    chosen = get_scheme(scheme, granularity=granularity, **options)
    if bits not in chosen.widths:
        widths = ", ".join(map(str, chosen.widths))
        raise ConfigError(f"bits={bits}: scheme {scheme!r} is defined for {widths}")
    return chosen.weight_quantizer(check_values(tensor).to(tensor.dtype), bits).eval().encode(tensor)
