"""TTQ: trained ternary quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.twn import ternary_codes

__all__ = ["TTQ", "TTQQuantizer"]


class TTQQuantizer(Quantizer):
    """{−W_n, 0, +W_p} with two trained scales and Δ = t·max |W| (eq. 6 and 9).

    ∂L/∂W_p is the sum of the gradients of the positive weights, ∂L/∂W_n minus that of the negative ones (eq. 7). The
    latent weight's gradient is W_p·g, g or W_n·g, depending on its code (eq. 8). The scales start as the mean
    magnitudes of the weights that they replace.

    Args:
        values: The weight.
        bits: 2.
        granularity: Which values share the scales; the paper has one pair per layer.
        threshold: t; the paper uses 0.05 for CIFAR-10.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor", threshold: float = 0.05) -> None:
        super().__init__(2, granularity, signed=True)
        self.threshold = threshold
        rows = group(check_values(values), granularity)
        codes = self._codes(rows)
        self.positive = nn.Parameter(_mean_where(rows, codes > 0))
        self.negative = nn.Parameter(_mean_where(-rows, codes < 0))

    def _codes(self, rows: Tensor) -> Tensor:
        return ternary_codes(rows, self.threshold * rows.abs().amax(1))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the ternary weights."""
        rows = group(x, self.granularity)
        y: Tensor = _Ternary.apply(rows, self.positive, self.negative, self._codes(rows.detach()))  # type: ignore[no-untyped-call]
        return ungroup(y, x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes 0, 1, 2 with the codebook (−W_n, 0, W_p)."""
        codes = self._codes(group(x.detach().float(), self.granularity)) + 1
        zero = torch.zeros_like(self.positive)
        codebook = torch.stack([-self.negative, zero, self.positive], 1).detach()
        codes = ungroup(codes, x, self.granularity)
        return QuantizedTensor(codes, 2, self.granularity, x.dtype, codebook=codebook)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum(1) / chosen.sum(1).clamp_min(1)


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, positive: Tensor, negative: Tensor, codes: Tensor) -> Tensor:
        factor = torch.where(codes > 0, positive[:, None], torch.where(codes < 0, negative[:, None], 1.0))
        ctx.save_for_backward(codes, factor)
        return codes * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, factor = ctx.saved_tensors
        return grad * factor, (grad * (codes > 0)).sum(1), -(grad * (codes < 0)).sum(1), None


TTQ = Scheme(
    name="ttq",
    title="Trained Ternary Quantization",
    arxiv="1612.01064",
    equation="eq. 6–9; option threshold",
    weights=TTQQuantizer,
    widths=(2,),
    trainable="W_p, W_n",
    kernels=("lookup",),
)
