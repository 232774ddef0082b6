"""Pure functions between real numbers and integer codes; quantizers and integer kernels share them.

The grid is uniform and symmetric: r = S·q with zero point 0 (Jacob et al. 2018, arXiv:1712.05877, eq. 1 with Z = 0).
Signed codes are two's complement, unsigned ones start at 0. One bit, signed, is the exception: {−1, +1}, because
two's complement would leave {−1, 0} (Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize", "integer_range", "is_binary", "minmax_scale", "mse_scale", "quantize"]

_SMALLEST_SCALE = 1e-12  # a channel of zeros needs some positive step


def is_binary(bits: int, signed: bool) -> bool:
    """Whether the codes are {−1, +1}."""
    return bits == 1 and signed


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Returns the smallest and largest code.

    Examples:
        >>> integer_range(4, signed=True), integer_range(4, signed=False), integer_range(1, signed=True)
        ((-8, 7), (0, 15), (-1, 1))
    """
    if is_binary(bits, signed):
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """Returns int32 codes q = clamp(round(x / S)), shape of `x`; `scale` must broadcast to it.

    Rounding is to nearest, ties to even, on x·(1/S) in float32, as PyTorch's fused operators do.
    """
    if is_binary(bits, signed):
        return torch.where(x >= 0, 1, -1).to(torch.int32)
    low, high = integer_range(bits, signed)
    return torch.round(x * (1.0 / scale)).clamp_(low, high).to(torch.int32)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Returns S·q as float32, shape of `codes`; `scale` must broadcast to it."""
    return codes.to(torch.float32) * scale


def minmax_scale(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Returns the smallest scale of each row that clips nothing on the positive side.

    Args:
        x: `(rows, n)`.
        bits: Width.
        signed: Whether negative values are kept.

    Returns:
        `(rows,)`, positive. For {−1, +1} it is mean |x|, which minimises the squared error (XNOR-Net, eq. 6).
    """
    magnitude = x.abs().mean(1) if is_binary(bits, signed) else x.abs().amax(1) / max(integer_range(bits, signed)[1], 1)
    return magnitude.clamp_min(_SMALLEST_SCALE)


def mse_scale(x: Tensor, bits: int, signed: bool, candidates: int = 46) -> Tensor:
    """Returns the scale of each row that minimises the mean squared error of quantization.

    The clip is searched between a tenth and the whole of the largest magnitude; at 2 bits a Gaussian's best one lies
    near a quarter of it. Clipping is what makes low widths usable (Banner et al. 2019, arXiv:1810.05723, section 4).

    Args:
        x: `(rows, n)`.
        bits: Width.
        signed: Whether negative values are kept.
        candidates: Number of clips tried, evenly spaced.

    Returns:
        `(rows,)`, positive.
    """
    whole = minmax_scale(x, bits, signed)
    if is_binary(bits, signed):
        return whole
    low, high = integer_range(bits, signed)
    best, least = whole.clone(), torch.full_like(whole, float("inf"))
    for fraction in torch.linspace(1.0, 0.1, candidates).tolist():
        scale = whole * fraction
        step = scale[:, None]
        error = (x / step).round_().clamp_(low, high).mul_(step).sub_(x).square_().mean(1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best
