"""Stored form of a quantized tensor: integer codes, and the parameters that turn them back into numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.quantizers.granularity import group, ungroup

__all__ = ["QuantizedTensor"]

_PARAMETER_BYTES = 4


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes with either a scale, r = S·(q − Z), or a codebook, r = codebook[q].

    Attributes:
        codes: q, int32, in the shape of the tensor.
        bits: Width of a code; each group has at most 2^bits levels.
        granularity: Which codes share a scale or a codebook; see `haq.quant.quantizers.granularity`.
        dtype: Type of the tensor that was quantized.
        scale: S, `(groups,)`; `None` with a codebook.
        zero_point: Z, int32 `(groups,)`; `None` if it is 0.
        codebook: Levels, `(groups, levels)`; `None` with a scale.
    """

    codes: Tensor
    bits: int
    granularity: str
    dtype: torch.dtype = torch.float32
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    codebook: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Returns the numbers that the codes stand for, in the shape and dtype of the original."""
        codes = group(self.codes, self.granularity)
        if self.codebook is not None:
            values = torch.gather(self.codebook, 1, codes.long())
        else:
            assert self.scale is not None
            shifted = codes if self.zero_point is None else codes - self.zero_point[:, None]
            values = shifted * self.scale[:, None]
        return ungroup(values, self.codes, self.granularity).to(self.dtype)

    @property
    def size_bytes(self) -> int:
        """Size in bytes: packed codes, zero points (packed like codes), and 32-bit scales or codebooks."""
        packed = [-(-p.numel() * self.bits // 8) for p in (self.codes, self.zero_point) if p is not None]
        parameters = [p.numel() for p in (self.scale, self.codebook) if p is not None]
        return sum(packed) + _PARAMETER_BYTES * sum(parameters)
