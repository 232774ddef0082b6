"""BWN: binary weights with a scale, the first half of XNOR-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.binary import SignQuantizer, sign

__all__ = ["BWN", "BWNQuantizer"]


class BWNQuantizer(SignQuantizer):
    """α·sign(W) with α = mean |W| of the group, the least-squares solution (eq. 6).

    ∂C/∂W_i = ∂C/∂W̃_i·(1/n + α·1[|W_i| < 1]) (section 3.1), n values to a group.

    Args:
        values: The weight.
        bits: 1.
        granularity: Which values share α; the paper has one an output channel.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "channel") -> None:
        check_values(values)
        super().__init__(1, granularity, signed=True)

    def magnitudes(self, rows: Tensor) -> Tensor:
        """Returns mean |W|."""
        return rows.abs().mean(1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns α·sign(x) with the paper's gradient."""
        y: Tensor = _Scaled.apply(group(x, self.granularity))  # type: ignore[no-untyped-call]
        return ungroup(y, x, self.granularity)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return sign(rows) * rows.abs().mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        alpha = rows.abs().mean(1, keepdim=True)
        factor: Tensor = 1 / rows.shape[1] + alpha * (rows.abs() < 1)
        return grad * factor


BWN = Scheme(
    name="bwn",
    title="XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
    arxiv="1603.05279",
    equation="section 3.1, eq. 6 and the gradient below eq. 9",
    weights=BWNQuantizer,
    widths=(1,),
    kernels=("integer",),
)
