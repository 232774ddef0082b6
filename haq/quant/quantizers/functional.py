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
    "code_range",
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
"""Tolerance when rounding down, in steps: in float32 a value on the grid may come out slightly below it."""

_SMALLEST_SCALE = 2.0**-100  # its inverse and its square are normal numbers, or nearly, in float32
_AT_ONCE = 2**17  # values that are rounded to several grids in one operator
_SMALLEST_LEVEL = 1e-12  # ±α does not contain 0, so zeros get an α near 0


def is_binary(bits: int, signed: bool) -> bool:
    """Whether the codes of a symmetric grid are {−1, +1}."""
    return bits == 1 and signed


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Returns the smallest and largest code, signed ones in two's complement; see `integer_range` for {−1, +1}.

    Examples:
        >>> code_range(4, signed=True), code_range(4, signed=False), code_range(1, signed=True)
        ((-8, 7), (0, 15), (-1, 0))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Returns the smallest and largest code of a symmetric grid; one signed bit is {−1, +1}.

    Examples:
        >>> integer_range(4, signed=True), integer_range(4, signed=False), integer_range(1, signed=True)
        ((-8, 7), (0, 15), (-1, 1))
    """
    if is_binary(bits, signed):
        return -1, 1
    return code_range(bits, signed)


def quantize_affine(
    x: Tensor,
    scale: Tensor,
    bits: int,
    signed: bool,
    zero_point: Tensor | None = None,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Returns int32 codes q = clamp(round(x / S) + Z), in the shape of `x`.

    Rounding to nearest takes ties to even, on x·(1/S) in float32, like PyTorch's fused operators.

    Args:
        x: Any shape.
        scale: S, positive; must broadcast to `x`.
        bits: Width of the codes.
        signed: Whether the codes are signed.
        zero_point: Z, int32; must broadcast to `x`. `None` for a symmetric grid.
        rounding: `nearest` or `floor`.
    """
    if zero_point is None and is_binary(bits, signed):
        return torch.where(x >= 0, 1, -1).to(torch.int32)
    low, high = code_range(bits, signed)
    scaled = x * (1.0 / scale)
    codes = torch.round(scaled) if rounding == "nearest" else torch.floor(scaled + FLOOR_SLACK)
    return (codes if zero_point is None else codes + zero_point).clamp_(low, high).to(torch.int32)


def fill_empty(scale: Tensor) -> Tensor:
    """Replaces the scale 0 of groups of zeros by the largest scale of all groups, or by 1 if all are 0.

    Any step can represent zeros, but a tiny one causes trouble elsewhere: integer kernels store a bias in steps of
    S_w·S_x (Jacob et al. 2018, arXiv:1712.05877, section 2.4), and 32 bits are too few if the step is near 0.

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
    """Returns the scale that maps the larger side of the clip to the largest code; `(groups,)`, positive.

    Args:
        low: Lower end of the clip, `(groups,)`.
        high: Upper end of the clip, `(groups,)`.
        bits: Width of the codes.
        signed: Whether the codes are signed; if not, `low` is ignored.
        power_of_two: Whether to round scales up to powers of two.
    """
    largest = torch.maximum(high, -low) if signed else high
    scale = fill_empty((largest / max(integer_range(bits, signed)[1], 1)).clamp_min(0))
    return torch.exp2(torch.ceil(torch.log2(scale) - 1e-6)) if power_of_two else scale


def affine_scale(low: Tensor, high: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Returns the scale and zero point of the asymmetric grid over a clip, widened so that it contains 0 exactly.

    S = (r_max − r_min) / (2^bits − 1) and Z = round(q_min − r_min / S) (Jacob et al. 2018, arXiv:1712.05877, eq. 1).

    Args:
        low: r_min, lower end of the clip, `(groups,)`.
        high: r_max, upper end of the clip, `(groups,)`.
        bits: Width of the codes.
        signed: Whether the codes are signed.

    Returns:
        S, float32 `(groups,)`, and Z, int32 `(groups,)`.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = fill_empty((high - low) / (2**bits - 1))
    smallest, largest = code_range(bits, signed)
    zero_point = torch.round(smallest - low / scale).clamp_(smallest, largest)
    return scale, zero_point.to(torch.int32)


def minmax_scale(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Returns the smallest scale of each row that clips nothing on the positive side.

    Args:
        x: Values, `(rows, n)`.
        bits: Width of the codes.
        signed: Whether negative values are kept.

    Returns:
        Scales, `(rows,)`, positive. For {−1, +1} it is mean |x|, which minimises the squared error (XNOR-Net, eq. 6).
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

    The clip is searched between a tenth of the largest magnitude and the whole; the best one for a Gaussian at 2 bits
    is near a quarter. Low widths are only usable with clipping (Banner et al. 2019, arXiv:1810.05723, section 4).

    Args:
        x: Values, `(rows, n)`.
        bits: Width of the codes.
        signed: Whether negative values are kept.
        candidates: Number of evenly spaced clips to try.
        power_of_two: Whether scales must be powers of two.

    Returns:
        Scales, `(rows,)`, positive.
    """
    if len(parts := _rows_in_cache(x)) > 1:
        return torch.cat([mse_scale(part, bits, signed, candidates, power_of_two) for part in parts])
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


def _rows_in_cache(x: Tensor) -> tuple[Tensor, ...]:
    """Cuts many values into parts of whole rows, which are searched apart: each row has its own scale."""
    return torch.split(x, max(2, _AT_ONCE // max(x.shape[1], 1))) if x.numel() > 2 * _AT_ONCE else (x,)


def _portions(fractions: list[float], x: Tensor) -> list[Tensor]:
    """Splits fractions into parts, `(n, 1)` each, that are evaluated at once: few operators, but all in the cache."""
    count = max(1, _AT_ONCE // max(x.numel(), 1))
    return [torch.tensor(fractions[i : i + count], dtype=x.dtype)[:, None] for i in range(0, len(fractions), count)]


def _errors(x: Tensor, scale: Tensor, low: int, high: int, zero_point: Tensor | None = None) -> Tensor:
    """Returns the mean squared error of each row on each of several grids, `(grids, rows)`.

    Args:
        x: Values, `(rows, n)`.
        scale: Scales, `(grids, rows)`.
        low: Smallest code.
        high: Largest code.
        zero_point: Zero points, `(grids, rows)`; `None` for symmetric grids.
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
    """Returns the scale and zero point of each row that minimise the mean squared error of quantization.

    Both ends of the range are shrunk together first, then each one separately.

    Args:
        x: Values, `(rows, n)`.
        bits: Width of the codes.
        signed: Whether the codes are signed.
        candidates: Number of clips to try each time, between a tenth and the whole.

    Returns:
        Scales, float32 `(rows,)`, and zero points, int32 `(rows,)`.
    """
    if len(parts := _rows_in_cache(x)) > 1:
        scales, zero_points = zip(*(mse_affine(part, bits, signed, candidates) for part in parts), strict=True)
        return torch.cat(scales), torch.cat(zero_points)
    low, high = x.amin(1), x.amax(1)
    least = torch.full_like(low, float("inf"))
    best_low, best_high = low, high
    smallest, largest = code_range(bits, signed)
    for moved_low, moved_high in ((True, True), (True, False), (False, True)):
        start_low, start_high = best_low, best_high
        for part in _portions(torch.linspace(1.0, 0.1, candidates).tolist(), x):
            tried_low = low * part if moved_low else start_low.expand(len(part), -1)
            tried_high = high * part if moved_high else start_high.expand(len(part), -1)
            scale, zero_point = affine_scale(tried_low, tried_high, bits, signed)
            error, chosen = _errors(x, scale, smallest, largest, zero_point).min(0)
            better, chosen = error < least, chosen[None]
            best_low = torch.where(better, tried_low.gather(0, chosen)[0], best_low)
            best_high = torch.where(better, tried_high.gather(0, chosen)[0], best_high)
            least = torch.where(better, error, least)
    return affine_scale(best_low, best_high, bits, signed)
