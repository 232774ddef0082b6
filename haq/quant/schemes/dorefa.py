"""DoReFa-Net: weights, activations and gradients with few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import UniformQuantizer, round_through, uniform
from haq.quant.schemes.base import Scheme

__all__ = ["DOREFA", "DoReFaWeights", "GradientQuantizer", "quantize_k"]


def quantize_k(r: Tensor, bits: int) -> Tensor:
    """Rounds numbers in [0, 1] to multiples of 1/(2^k − 1), straight-through (eq. 5 and 6)."""
    steps: int = 2**bits - 1
    return round_through(r * steps) / steps


class DoReFaWeights(Quantizer):
    """2·quantize_k(tanh(w) / (2·max |tanh W|) + ½) − 1 (eq. 9), times a size for the group.

    The paper trains from scratch and leaves levels in [−1, 1]. A pretrained network needs the magnitude of its weights,
    so levels are multiplied by the least-squares factor; `scaled=False` is the paper's form. One bit is E|W|·sign(w)
    (eq. 7), which is also the least-squares factor.

    Args:
        values: The weight.
        bits: Width of a code.
        granularity: Which values share a maximum; the paper has one per tensor.
        scaled: Whether levels keep the size of the weights.
    """

    is_projection = False  # the hyperbolic tangent bends the grid

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor", scaled: bool = True) -> None:
        super().__init__(bits, granularity, signed=True)
        rows = group(check_values(values), granularity)
        with torch.no_grad():
            levels = self._rounded(rows)
            size = (levels * rows).sum(1) / levels.square().sum(1).clamp_min(1e-12)
        self.register_buffer("size", size if scaled else torch.ones_like(size))

    def _rounded(self, rows: Tensor) -> Tensor:
        """Returns odd multiples of 1/(2^k − 1) between −1 and 1 for `(groups, n)` values."""
        if self.bits == 1:
            sign = torch.where(rows >= 0, 1.0, -1.0)
            return rows + (sign - rows).detach()
        bent = torch.tanh(rows)
        largest = bent.detach().abs().amax(1, keepdim=True).clamp_min(1e-12)
        return 2 * quantize_k(bent / (2 * largest) + 0.5, self.bits) - 1

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the rounded weights."""
        return ungroup(
            self._rounded(group(x, self.granularity)) * self.get_buffer("size")[:, None], x, self.granularity
        )

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns odd codes −(2^k − 1), …, 2^k − 1 with scale size / (2^k − 1)."""
        steps = 2**self.bits - 1
        codes = torch.round(self._rounded(group(x.detach().float(), self.granularity)) * steps).to(torch.int32)
        scale = self.get_buffer("size") / steps
        return QuantizedTensor(ungroup(codes, x, self.granularity), self.bits, self.granularity, x.dtype, scale)


def dorefa_inputs(values: Tensor, bits: int, *, granularity: str = "tensor", limit: float | None = None) -> Quantizer:
    """Returns quantize_k(clip(x / limit, 0, 1))·limit (eq. 11).

    Args:
        values: Samples of activations.
        bits: Width of a code.
        granularity: `tensor`.
        limit: Upper end of the clip; 1 is the paper's bounded activation. By default the end that minimises the squared
            error of the samples, because activations of a pretrained network are not bounded by 1.
    """
    if limit is None:
        return uniform(values, bits, granularity="tensor", learned=False)
    return UniformQuantizer(bits, torch.tensor([limit / (2**bits - 1)]), signed=False, learned=False)


class GradientQuantizer(nn.Module):
    """Passes activations on unchanged, and rounds their gradient stochastically to `bits` bits (eq. 12).

    f(dr) = 2·m·[quantize_k(dr / (2·m) + ½ + N(k)) − ½] with m = max |dr| over one sample and N(k) = σ/(2^k − 1),
    σ uniform in [−½, ½]: stochastic rounding, whose expectation is the gradient itself.

    Args:
        bits: Width of gradients.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        y: Tensor = _RoundGradient.apply(x, self.bits)  # type: ignore[no-untyped-call]
        return y


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        steps = 2**ctx.bits - 1
        largest = grad.abs().amax(tuple(range(1, grad.dim())), keepdim=True).clamp_min(1e-30)
        noise = (torch.rand_like(grad) - 0.5) / steps
        unit = (grad / (2 * largest) + 0.5 + noise).mul_(steps).round_().clamp_(0, steps).div_(steps)
        return 2 * largest * (unit - 0.5), None


DOREFA = Scheme(
    name="dorefa",
    title="DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients",
    arxiv="1606.06160",
    equation="eq. 7, 9, 11 and 12; levels and clip keep the size of a pretrained network's weights and activations",
    weights=DoReFaWeights,
    inputs=dorefa_inputs,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    covers="both, gradients",
    kernels=("integer",),
)
