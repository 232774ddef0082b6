"""Shared parts of the binary schemes: signs, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["SignQuantizer", "sign", "sign_through"]


class SignQuantizer(Quantizer):
    """Rounds to {−α, +α}; a subclass defines α and how the gradient passes."""

    def magnitudes(self, rows: Tensor) -> Tensor:
        """Returns α of each group for values `(groups, n)`; all 1 unless overridden."""
        return rows.new_ones(len(rows))

    def signs(self, rows: Tensor) -> Tensor:
        """Returns −1 and +1, with gradients."""
        return sign_through(rows)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns α·sign(x)."""
        rows = group(x, self.granularity)
        return ungroup(self.signs(rows) * self.magnitudes(rows)[:, None], x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes −1 and +1 with scale α."""
        rows = group(x.detach().float(), self.granularity)
        codes = ungroup(self.signs(rows).to(torch.int32), x, self.granularity)
        return QuantizedTensor(codes, 1, self.granularity, x.dtype, self.magnitudes(rows).detach())


def sign(x: Tensor) -> Tensor:
    """Returns −1 or +1; 0 counts as positive."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def sign_through(x: Tensor, reach: float = 1.0) -> Tensor:
    """Returns the sign, with gradient 1 where |x| ≤ reach and 0 elsewhere (BNN, arXiv:1602.02830, eq. 4)."""
    y: Tensor = _Sign.apply(x, reach)  # type: ignore[no-untyped-call]
    return y


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.reach = reach
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= ctx.reach), None
