"""Nested learned scale: the scale's gradient comes from the ratio of gradient to parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.functional import FLOOR_SLACK, code_range, mse_scale
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme

__all__ = ["NESTED", "NestedScaleQuantizer", "ratio_gradient"]


def ratio_gradient(gradient: Tensor, parameter: Tensor, threshold: float) -> Tensor:
    """Returns g_s = 0 where r = |∂L/∂P| / |P| ≥ λ, else −tanh(r − λ), in the shape of `parameter`.

    The scale may change if the loss hardly depends on its parameters; the penalties counteract this.

    Args:
        gradient: ∂L/∂P, any shape.
        parameter: P, same shape.
        threshold: λ.
    """
    ratio = gradient.abs() / parameter.abs().clamp_min(1e-12)
    return torch.where(ratio >= threshold, 0.0, -torch.tanh(ratio - threshold))


class NestedScaleQuantizer(Quantizer):
    """s·⌊P/s⌋ with a scale for every group, at any granularity, that is trained by `ratio_gradient`.

    The gradient of s is g_s·m, averaged over the group; ∂y/∂P is 1 inside the range of the codes. Three penalties, each
    a mean over groups, counteract it: the inverse scale 1/s, the bin count (max P − min P)/s, and the deviation from
    the original values, mean (P − s·⌊P/s⌋)² over mean P². Here the codes are limited to the width, which the paper
    leaves to the penalties.

    Args:
        values: A weight.
        bits: Width of a code.
        granularity: Which values share a scale.
        threshold: λ.
        multiplier: m.
        inverse_scale: Weight of the first penalty.
        bin_count: Weight of the second.
        deviation: Weight of the third.
    """

    def __init__(
        self,
        values: Tensor,
        bits: int,
        *,
        granularity: str = "channel",
        threshold: float = 1e-4,
        multiplier: float = 1e-3,
        inverse_scale: float = 0.0,
        bin_count: float = 0.0,
        deviation: float = 1e-3,
    ) -> None:
        super().__init__(bits, granularity, signed=True)
        self.threshold, self.multiplier = threshold, multiplier
        self.weights = (inverse_scale, bin_count, deviation)
        rows = group(check_values(values), granularity)
        self.scale_parameter = nn.Parameter(mse_scale(rows, max(bits, 2), signed=True))

    @property
    def scale(self) -> Tensor:
        """`(groups,)`, kept positive."""
        return self.scale_parameter.clamp_min(1e-12)

    @property
    def _range(self) -> tuple[int, int]:
        return code_range(self.bits, signed=True)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns s·⌊P/s⌋."""
        rows = group(x, self.granularity)
        y: Tensor = _Nested.apply(rows, self.scale, self._range, self.threshold, self.multiplier)  # type: ignore[no-untyped-call]
        return ungroup(y, x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the codes with scale s."""
        scale = self.scale.detach()
        rows = group(x.detach().float(), self.granularity)
        codes = _floor(rows, scale, self._range).to(torch.int32)
        return QuantizedTensor(ungroup(codes, x, self.granularity), self.bits, self.granularity, x.dtype, scale)

    def penalty(self, x: Tensor) -> Tensor:
        """Returns the weighted sum of the three penalties."""
        rows, scale = group(x, self.granularity).detach(), self.scale
        inverse = (1 / scale).mean()
        bins = ((rows.amax(1) - rows.amin(1)) / scale).mean()
        codes = _floor(rows, scale.detach(), self._range)
        away = (rows - codes * scale[:, None]).square().mean() / rows.square().mean().clamp_min(1e-12)
        return self.weights[0] * inverse + self.weights[1] * bins + self.weights[2] * away


def _floor(rows: Tensor, scale: Tensor, limits: tuple[int, int]) -> Tensor:
    return torch.floor(rows / scale[:, None] + FLOOR_SLACK).clamp_(*limits)


class _Nested(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, scale: Tensor, limits: tuple[int, int], threshold: float, multiplier: float
    ) -> Tensor:
        ctx.save_for_backward(rows, scale)
        ctx.limits, ctx.threshold, ctx.multiplier = limits, threshold, multiplier
        return _floor(rows, scale, limits) * scale[:, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale = ctx.saved_tensors
        low, high = ctx.limits
        ratio = rows / scale[:, None]
        inside = (ratio >= low) & (ratio < high + 1)
        grad_scale = ratio_gradient(grad, rows, ctx.threshold).mean(1) * ctx.multiplier
        return grad * inside, grad_scale, None, None, None


NESTED = Scheme(
    name="nested",
    title="Learnable scale quantization with custom gradients (Chinbat 2025)",
    arxiv=None,
    equation="codes ⌊P/s⌋, gradient g_s·m of the scale and three penalties; codes are held to the width",
    weights=NestedScaleQuantizer,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    trainable="scales",
    kernels=("integer",),
)
