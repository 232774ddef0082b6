"""TWN: ternary weights."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme

__all__ = ["TWN", "TWNQuantizer", "ternary_codes"]


def ternary_codes(rows: Tensor, thresholds: Tensor) -> Tensor:
    """Returns −1, 0 or +1 for each value, as int32 `(groups, n)`, given thresholds `(groups,)`."""
    limit = thresholds[:, None]
    return (rows > limit).to(torch.int32) - (rows < -limit).to(torch.int32)


class TWNQuantizer(Quantizer):
    """{−α, 0, +α} with Δ = 0.7·mean |W| and α = mean of |W| beyond Δ (eq. 4–6), recomputed in every step.

    Args:
        values: The weight.
        bits: 2.
        granularity: Which values share Δ and α; the paper has one pair per layer.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        check_values(values)
        super().__init__(2, granularity, signed=True)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes −1, 0, +1 with scale α."""
        rows = group(x.detach().float(), self.granularity)
        magnitude = rows.abs()
        codes = ternary_codes(rows, 0.7 * magnitude.mean(1))
        kept = codes != 0
        alpha = (magnitude * kept).sum(1) / kept.sum(1).clamp_min(1)
        return QuantizedTensor(ungroup(codes, x, self.granularity), 2, self.granularity, x.dtype, alpha)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns α·code; the gradient passes straight through."""
        return self.encode(x).dequantize() + (x - x.detach())


TWN = Scheme(
    name="twn",
    title="Ternary Weight Networks",
    arxiv="1605.04711",
    equation="eq. 4–6",
    weights=TWNQuantizer,
    widths=(2,),
    kernels=("integer",),
)
