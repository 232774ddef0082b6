"""Quantizers whose levels are a table; the code is the index of a level."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["CodebookQuantizer", "nearest_level"]


class CodebookQuantizer(Quantizer):
    """Replaces every value by the nearest level of its group.

    ∂y/∂x is 1 (straight-through), or 0 outside the range of the levels if `clips` is set. A level's gradient is the sum
    over the values that it replaces (Deep Compression, Han et al. 2016, arXiv:1510.00149, eq. 3).
    """

    clips = False

    def levels(self) -> Tensor:
        """Returns the levels of each group in ascending order, `(groups, levels)`, with gradients."""
        raise NotImplementedError

    def indices(self, rows: Tensor, levels: Tensor) -> Tensor:
        """Returns the index of the level for each value, int64 `(groups, n)`: by default the nearest level."""
        return nearest_level(rows, levels)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the nearest levels."""
        rows = group(x, self.granularity)
        levels = self.levels()
        chosen = torch.gather(levels, 1, self.indices(rows.detach(), levels.detach()))
        through = rows.clamp(levels[:, :1].detach(), levels[:, -1:].detach()) if self.clips else rows
        return ungroup(chosen + (through - through.detach()), x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the indices of the levels, with the levels as codebook."""
        levels = self.levels().detach()
        indices = self.indices(group(x.detach().float(), self.granularity), levels)
        codes = ungroup(indices.to(torch.int32), x, self.granularity)
        return QuantizedTensor(codes, self.bits, self.granularity, x.dtype, codebook=levels)


def nearest_level(rows: Tensor, levels: Tensor) -> Tensor:
    """Returns the index of the level nearest to each value.

    Args:
        rows: `(groups, n)`.
        levels: `(groups, k)`, ascending.

    Returns:
        Indices, int64 `(groups, n)`; the lower one of two equally near levels.
    """
    boundaries = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    if len(levels) == 1:
        return torch.bucketize(rows, boundaries[0])
    return torch.searchsorted(boundaries, rows.contiguous())
