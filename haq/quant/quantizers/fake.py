"""Fake quantization with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from haq.quant.quantizers.functional import FLOOR_SLACK, Rounding, code_range, is_binary

__all__ = ["fake_quantize"]

_ops = torch.ops.aten


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    bits: int,
    signed: bool,
    axis: int | None = None,
    zero_point: Tensor | None = None,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Rounds `x` to the grid S·(q − Z) and back, same shape, with gradients for `x` and `scale`.

    ∂y/∂x is 1 inside the clip and 0 outside (Bengio et al. 2013, arXiv:1308.3432). ∂y/∂S is q − Z − x/S inside and the
    clipped q − Z outside (LSQ, Esser et al. 2020, arXiv:1902.08153, eq. 3, without its gradient scale, which an
    adaptive optimiser cancels); for the clip α = S·q_max above it this is PACT's ∂y/∂α = 1 (Choi et al. 2018,
    arXiv:1805.06085, eq. 3). For {−1, +1}, ∂y/∂x is 1 everywhere (XNOR-Net's weights).

    Args:
        x: Any shape.
        scale: S, `(1,)`, or `(x.shape[axis],)` if `axis` is given; positive.
        bits: Width of the codes.
        signed: Whether the codes are signed.
        axis: Dimension with its own scale for every index; `None` for one scale.
        zero_point: Z, int32, same shape as `scale`; `None` for a symmetric grid.
        rounding: `nearest` (PyTorch's fused operators) or `floor`.
    """
    if zero_point is None and is_binary(bits, signed):
        binary: Tensor = _Binarize.apply(x, scale, axis)  # type: ignore[no-untyped-call]
        return binary
    low, high = code_range(bits, signed)
    if rounding == "nearest" and not torch.is_grad_enabled():
        return _rounded(x, scale, zero_point, low, high, axis)
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    result: Tensor = _FakeQuantize.apply(x, scale, zero, low, high, axis, rounding)  # type: ignore[no-untyped-call]
    return result


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int, axis: int | None) -> Tensor:
    """Returns bit for bit the same as the fused operators, in vectorised passes, three times as fast on a CPU."""
    step = scale if axis is None else _along(scale, x, axis)
    codes = (x * (1.0 / step)).round_()
    if zero_point is None:
        return codes.clamp_(low, high).mul_(step)
    zero = zero_point if axis is None else _along(zero_point, x, axis)
    return codes.add_(zero).clamp_(low, high).sub_(zero).mul_(step)


class _FakeQuantize(torch.autograd.Function):
    """Uses the fused forward that also returns the clip mask; the scale's gradient is then two dot products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, axis: int | None, rounding: Rounding
    ) -> Tensor:
        if rounding == "floor":
            step, offset = (scale, zero) if axis is None else (_along(scale, x, axis), _along(zero, x, axis))
            unclipped = torch.floor(x / step + FLOOR_SLACK) + offset
            y, inside = (unclipped.clamp(low, high) - offset) * step, (unclipped >= low) & (unclipped <= high)
        elif axis is None:
            y, inside = _ops.fake_quantize_per_tensor_affine_cachemask(x, scale.item(), int(zero), low, high)
        else:
            y, inside = _ops.fake_quantize_per_channel_affine_cachemask(x, scale, zero, axis, low, high)
        ctx.save_for_backward(x, y, inside, scale)
        ctx.axis = axis
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, inside, scale = ctx.saved_tensors
        grad_x = grad * inside
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # Σ g·(q − Z − x/S) inside and Σ g·(q − Z) outside, both times S/S: (q − Z)·S is y
            grad_scale = (_sum(grad, y, ctx.axis) - _sum(grad_x, x, ctx.axis)) / scale
        return grad_x, grad_scale, None, None, None, None, None


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
        sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        ctx.save_for_backward(sign)
        ctx.axis = axis
        return sign * (scale if axis is None else _along(scale, x, axis))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (sign,) = ctx.saved_tensors
        return grad, _sum(grad, sign, ctx.axis) if ctx.needs_input_grad[1] else None, None


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Reshapes values, one for every index of `axis`, so that they broadcast over `x`."""
    return values.view([-1 if d == axis else 1 for d in range(x.dim())])


def _sum(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """Returns the sum of products, over everything or over all dimensions except `axis`."""
    if axis is None:
        return torch.dot(a.reshape(-1), b.reshape(-1)).view(1)
    return (a * b).sum([d for d in range(a.dim()) if d != axis])
