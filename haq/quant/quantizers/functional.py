"""Pure functions between real numbers and integer codes; quantizers and integer kernels share them.

The grid is uniform: r = S·(q − Z) (Jacob et al. 2018, arXiv:1712.05877, eq. 1), with Z = 0 on a symmetric one.
Signed codes are two's complement, unsigned ones start at 0. One bit, signed and symmetric, is the exception: {−1, +1},
because two's complement would leave {−1, 0} (Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "FLOOR_SLACK",
    "Rounding",
    "affine_scale",
    "fill_empty",
    "integer_range",
    "is_binary",
    "minmax_scale",
    "mse_affine",
    "mse_scale",
    "quantize_affine",
    "symmetric_scale",
]

Rounding = Literal["nearest", "floor"]

FLOOR_SLACK = 1e-5
"""A value on the grid may come out of float32 a hair below it; so much of a step is forgiven when rounding down."""

_SMALLEST_SCALE = 2.0**-100  # its inverse and its square are normal numbers, or nearly, in float32
_AT_ONCE = 2**17  # values that are rounded to several grids in one operator
_SMALLEST_LEVEL = 1e-12  # ±α has no 0, so that the α of zeros can only be near it


def is_binary(bits: int, signed: bool) -> bool:
    """Whether the codes of a symmetric grid are {−1, +1}."""
    return bits == 1 and signed


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Returns the smallest and largest code of a symmetric grid.

    Examples:
        >>> integer_range(4, signed=True), integer_range(4, signed=False), integer_range(1, signed=True)
        ((-8, 7), (0, 15), (-1, 1))
    """
    if is_binary(bits, signed):
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize_affine(
    x: Tensor,
    scale: Tensor,
    bits: int,
    signed: bool,
    zero_point: Tensor | None = None,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Returns int32 codes q = clamp(round(x / S) + Z), shape of `x`; `scale` and `zero_point` must broadcast to it.

    Rounding to nearest takes ties to even, on x·(1/S) in float32, as PyTorch's fused operators do.
    """
    if zero_point is None and is_binary(bits, signed):
        return torch.where(x >= 0, 1, -1).to(torch.int32)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scaled = x * (1.0 / scale)
    codes = torch.round(scaled) if rounding == "nearest" else torch.floor(scaled + FLOOR_SLACK)
    return (codes if zero_point is None else codes + zero_point).clamp_(low, high).to(torch.int32)


def fill_empty(scale: Tensor) -> Tensor:
    """Returns the scales with those of groups of zeros, 0, replaced by the largest of all, or by 1 where all are 0.

    Any step represents zeros. A tiny one does harm elsewhere: integer kernels hold a bias in steps of S_w·S_x (Jacob et
    al. 2018, arXiv:1712.05877, section 2.4), and 32 bits are too few for a bias beside a step near 0.

    Args:
        scale: `(groups,)`, not negative.

    Examples:
        >>> fill_empty(torch.tensor([0.25, 0.0, 0.5])), fill_empty(torch.tensor([0.0]))
        (tensor([0.2500, 0.5000, 0.5000]), tensor([1.]))
    """
    empty = scale < _SMALLEST_SCALE
    largest = scale.amax()
    return torch.where(empty, torch.where(largest < _SMALLEST_SCALE, torch.ones_like(largest), largest), scale)


def symmetric_scale(low: Tensor, high: Tensor, bits: int, signed: bool, power_of_two: bool = False) -> Tensor:
    """Returns the scale that makes the larger side of the clip the largest code; `(groups,)`, positive."""
    largest = torch.maximum(high, -low) if signed else high
    scale = fill_empty((largest / max(integer_range(bits, signed)[1], 1)).clamp_min(0))
    return torch.exp2(torch.ceil(torch.log2(scale) - 1e-6)) if power_of_two else scale


def affine_scale(low: Tensor, high: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Returns scale and zero point of the asymmetric grid over the clip, widened to hold 0 exactly.

    S = (r_max − r_min) / (2^bits − 1) and Z = round(q_min − r_min / S) (Jacob et al. 2018, arXiv:1712.05877, eq. 1).
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = fill_empty((high - low) / (2**bits - 1))
    smallest = -(2 ** (bits - 1)) if signed else 0
    zero_point = torch.round(smallest - low / scale).clamp_(smallest, smallest + 2**bits - 1)
    return scale, zero_point.to(torch.int32)


def minmax_scale(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Returns the smallest scale of each row that clips nothing on the positive side.

    Args:
        x: `(rows, n)`.
        bits: Width.
        signed: Whether negative values are kept.

    Returns:
        `(rows,)`, positive. For {−1, +1} it is mean |x|, which minimises the squared error (XNOR-Net, eq. 6).
    """
    if is_binary(bits, signed):
        return x.abs().mean(1).clamp_min(_SMALLEST_LEVEL)
    magnitude = x.abs().amax(1)
    return symmetric_scale(-magnitude, magnitude, bits, signed)


def mse_scale(
    x: Tensor,
    bits: int,
    signed: bool,
    candidates: int = 46,
    power_of_two: bool = False,
) -> Tensor:
    """Returns the scale of each row that minimises the mean squared error of quantization.

    The clip is searched between a tenth and the whole of the largest magnitude; at 2 bits a Gaussian's best one lies
    near a quarter of it. Clipping is what makes low widths usable (Banner et al. 2019, arXiv:1810.05723, section 4).

    Args:
        x: `(rows, n)`.
        bits: Width.
        signed: Whether negative values are kept.
        candidates: Number of clips tried, evenly spaced.
        power_of_two: Whether scales must be powers of two.

    Returns:
        `(rows,)`, positive.
    """
    whole = minmax_scale(x, bits, signed)
    fractions = torch.linspace(1.0, 0.1, candidates).tolist()
    if power_of_two:
        whole, fractions = torch.exp2(torch.ceil(torch.log2(whole))), [2.0**-k for k in range(5)]
    elif is_binary(bits, signed):
        return whole
    low, high = integer_range(bits, signed)
    if is_binary(bits, signed):
        tried = [whole * fraction for fraction in fractions]
        errors = torch.stack([(torch.where(x >= 0, s[:, None], -s[:, None]) - x).square_().mean(1) for s in tried])
        return torch.stack(tried).gather(0, errors.argmin(0)[None])[0]
    best, least = whole.clone(), torch.full_like(whole, float("inf"))
    for part in _portions(fractions, x):
        scales = whole * part
        error, chosen = _errors(x, scales, low, high).min(0)
        better = error < least
        best = torch.where(better, scales.gather(0, chosen[None])[0], best)
        least = torch.where(better, error, least)
    return best


def _portions(fractions: list[float], x: Tensor) -> list[Tensor]:
    """Cuts fractions, `(n, 1)`, so that `x` times each stays in the cache: small operators cost their start."""
    count = max(1, _AT_ONCE // max(x.numel(), 1))
    return [torch.tensor(fractions[i : i + count], dtype=x.dtype)[:, None] for i in range(0, len(fractions), count)]


def _errors(x: Tensor, scale: Tensor, low: int, high: int, zero_point: Tensor | None = None) -> Tensor:
    """Returns the mean squared error of each row on each of several grids, `(grids, rows)`.

    Args:
        x: `(rows, n)`.
        scale: `(grids, rows)`.
        low: Smallest code.
        high: Largest code.
        zero_point: `(grids, rows)`.
    """
    step = scale[..., None]
    codes = (x * (1.0 / step)).round_()
    if zero_point is None:
        codes.clamp_(low, high)
    else:
        zero = zero_point[..., None]
        codes.add_(zero).clamp_(low, high).sub_(zero)
    return codes.mul_(step).sub_(x).square_().mean(2)


def mse_affine(x: Tensor, bits: int, signed: bool, candidates: int = 46) -> tuple[Tensor, Tensor]:
    """Returns scale and zero point of each row that minimise the squared error.

    Both ends of the range are shrunk alike first, then each alone.

    Args:
        x: `(rows, n)`.
        bits: Width.
        signed: Whether codes are signed.
        candidates: Number of clips tried each time, between a tenth and the whole.
    """
    low, high = x.amin(1), x.amax(1)
    least = torch.full_like(low, float("inf"))
    best_low, best_high = low, high
    smallest = -(2 ** (bits - 1)) if signed else 0
    for moved_low, moved_high in ((True, True), (True, False), (False, True)):
        start_low, start_high = best_low, best_high
        for part in _portions(torch.linspace(1.0, 0.1, candidates).tolist(), x):
            tried_low = low * part if moved_low else start_low.expand(len(part), -1)
            tried_high = high * part if moved_high else start_high.expand(len(part), -1)
            scale, zero_point = affine_scale(tried_low, tried_high, bits, signed)
            error, chosen = _errors(x, scale, smallest, smallest + 2**bits - 1, zero_point).min(0)
            better, chosen = error < least, chosen[None]
            best_low = torch.where(better, tried_low.gather(0, chosen)[0], best_low)
            best_high = torch.where(better, tried_high.gather(0, chosen)[0], best_high)
            least = torch.where(better, error, least)
    return affine_scale(best_low, best_high, bits, signed)
