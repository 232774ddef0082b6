"""BinaryConnect: weights −1 and +1, rounded deterministically or stochastically."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import check_values
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.binary import SignQuantizer, sign, sign_through

__all__ = ["BINARYCONNECT", "BinaryConnectQuantizer"]


class BinaryConnectQuantizer(SignQuantizer):
    """sign(w) (eq. 1), or in training +1 with probability σ(w) = clip((w + 1)/2, 0, 1) (eq. 2 and 3).

    There is no scale, so a trained batch norm must follow the layer. Weights beyond ±1 get no gradient, which has the
    same effect as clipping them after the update (section 2.4).

    Args:
        values: The weight.
        bits: 1.
        granularity: Has no effect.
        stochastic: Whether training rounds stochastically; evaluation is deterministic (section 2.6, method 1).
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor", stochastic: bool = False) -> None:
        check_values(values)
        super().__init__(1, granularity, signed=True)
        self.stochastic = stochastic

    def signs(self, rows: Tensor) -> Tensor:
        """Returns −1 and +1."""
        if not (self.stochastic and self.training and torch.is_grad_enabled()):
            return sign_through(rows)
        chance = ((rows.detach() + 1) / 2).clamp(0, 1)
        drawn = sign(chance - torch.rand_like(chance))
        limited = rows.clamp(-1, 1)
        return drawn + (limited - limited.detach())


BINARYCONNECT = Scheme(
    name="binaryconnect",
    title="BinaryConnect: Training Deep Neural Networks with binary weights during propagations",
    arxiv="1511.00363",
    equation="eq. 1–3; option stochastic",
    weights=BinaryConnectQuantizer,
    widths=(1,),
    kernels=("integer",),
)
