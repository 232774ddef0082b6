"""Arithmetic of integer-only inference: grids, fixed-point factors and exact products of integer matrices.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv:1712.05877, sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
from torch import Tensor, nn

from haq.quant.quantizers.functional import Rounding, code_range, is_binary, quantize_affine
from haq.torch_internals import int8_product

__all__ = ["PRODUCT_BITS", "Grid", "Rescale", "fixed_point", "matmul"]

PRODUCT_BITS = 62
"""A sum times its factor stays below 2^62, so that adding half a step cannot overflow 64 bits."""

_MANTISSA_BITS = 31  # without the sign; 32 bits in total
_LARGEST_SHIFT = 62


@dataclass(frozen=True)
class Grid:
    """Meaning of the codes of one tensor: r = S·(q − Z) (eq. 1).

    Attributes:
        bits: Width of a code.
        signed: Whether codes are signed.
        scale: S, a float32 number.
        zero_point: Z; `None` for a symmetric grid.
        rounding: How a value is rounded to a code.
    """

    bits: int
    signed: bool
    scale: float
    zero_point: int | None = None
    rounding: Rounding = "nearest"

    @property
    def binary(self) -> bool:
        """Whether the codes are {−1, +1}."""
        return self.zero_point is None and is_binary(self.bits, self.signed)

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return (-1, 1) if self.binary else code_range(self.bits, self.signed)

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return self.zero_point or 0

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds the codes."""
        low, high = self.range
        for dtype in (torch.int8, torch.uint8, torch.int16):
            if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
                return dtype
        return torch.int32

    def encode(self, x: Tensor) -> Tensor:
        """Returns the codes of real numbers, same shape, in the grid's dtype."""
        scale = torch.tensor(self.scale, dtype=torch.float32)
        zero = None if self.zero_point is None else torch.tensor(self.zero_point, dtype=torch.int32)
        return quantize_affine(x.float(), scale, self.bits, self.signed, zero, self.rounding).to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the float32 numbers that codes stand for."""
        return (codes.to(torch.int32) - self.zero).to(torch.float32) * self.scale

    def code(self, value: float) -> int:
        """Returns the code of a single number, which may be infinite."""
        return int(self.encode(torch.tensor([value])))

    def steps(self, codes: Tensor, others: Tensor) -> int:
        """Returns the largest difference between two tensors of codes, in levels."""
        gap = (codes.to(torch.int64) - others.to(torch.int64)).abs()
        return int(gap.max()) // (2 if self.binary else 1) if gap.numel() else 0


def fixed_point(factors: Tensor, mantissa_bits: int = _MANTISSA_BITS) -> tuple[Tensor, Tensor]:
    """Returns integers m and s with m·2^−s ≈ factor (Jacob et al. 2018, eq. 5 and 6, whose M₀ is m·2^−31).

    |m| is at least 2^(mantissa_bits − 1), so that the relative error is at most 2^−mantissa_bits. Factors may be
    negative, as those of a batch norm are. Factors below 2^(mantissa_bits − 62) lose bits instead of shifting further;
    factors from 2^mantissa_bits on saturate.

    Args:
        factors: Any shape, finite.
        mantissa_bits: Bits of |m|; the sign of m takes one more.

    Returns:
        m and s, int64 tensors of the same shape; s is from 0 to 62.

    Examples:
        >>> fixed_point(torch.tensor([0.75, -3.0]))
        (tensor([ 1610612736, -1610612736]), tensor([31, 29]))
    """
    largest = 2**mantissa_bits - 1
    factors = factors.to(torch.float64).clamp(-largest, largest)
    exponent = torch.frexp(factors).exponent.to(torch.int64)  # |factor| in [2^(exponent − 1), 2^exponent)
    shift = (mantissa_bits - exponent).clamp_max(_LARGEST_SHIFT)
    mantissa = torch.round(torch.ldexp(factors, shift)).to(torch.int64)
    full = mantissa.abs() == 2**mantissa_bits  # rounded up to the next power of two
    return torch.where(full, mantissa // 2, mantissa), torch.where(full, shift - 1, shift)


class Rescale(nn.Module):
    """Turns sums of integers into codes: q = clamp(Z + ⌊Σ tₖ·mₖ·2^−s + ½⌋).

    There is one rounding, to the nearest code, with ties up (towards +∞). A grid that rounds down has no ½, and for
    {−1, +1} the result is the sign. PyTorch's fake quantization rounds ties to even, so the two may differ by one step
    on an exact tie.

    Args:
        factors: Value of one unit of each term in steps of `grid`, `(terms, channels)` or `(terms, 1)` float64.
        grid: Grid of the result.
        clip: Smallest and largest code, for an activation function; by default the grid's range.
        term_bits: Width of the largest term; above 31 bits, fewer are left for the mantissa.
    """

    mantissa: Tensor
    shift: Tensor
    offset: Tensor

    def __init__(
        self, factors: Tensor, grid: Grid, clip: tuple[int, int] | None = None, term_bits: int = _MANTISSA_BITS
    ) -> None:
        super().__init__()
        self.grid, self.clip = grid, clip or grid.range
        spare = PRODUCT_BITS - math.ceil(math.log2(len(factors))) - term_bits
        # The terms share the shift of the largest factor, so that they can be added before the rounding
        _, shift = fixed_point(factors.abs().amax(0), min(_MANTISSA_BITS, spare))
        largest = 2 ** min(_MANTISSA_BITS, spare)
        mantissa = torch.ldexp(factors.to(torch.float64), shift).round().clamp(-largest, largest).to(torch.int64)
        half = torch.where(shift > 0, 1 << (shift - 1).clamp_min(0), 0)
        self.register_buffer("mantissa", mantissa)
        self.register_buffer("shift", shift)
        self.register_buffer("offset", half if grid.rounding == "nearest" else torch.zeros_like(half))

    def forward(self, *terms: Tensor) -> Tensor:
        """Returns codes of the sum; the last dimension of the terms is the channels."""
        total = terms[0] * self.mantissa[0]
        for term, mantissa in zip(terms[1:], self.mantissa[1:], strict=True):
            total += term * mantissa
        low, high = self.clip
        if self.grid.binary:
            return torch.where(total >= 0, 1, -1).clamp_(low, high).to(self.grid.dtype)
        total.add_(self.offset).bitwise_right_shift_(self.shift)
        if self.grid.zero:
            total.add_(self.grid.zero)
        return total.clamp_(low, high).to(self.grid.dtype)


def matmul(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x·weightᵀ, exact if sums fit `dtype`.

    Args:
        x: Integers, `(rows, n)`.
        weight: Integers, `(channels, n)`.
        dtype: Type of the sums, int32 or int64.

    Returns:
        Sums, `(rows, channels)`.
    """
    if x.dtype == weight.dtype == torch.int8 and dtype == torch.int32 and x.shape[1] > 1 and _int8_pays():
        return int8_product(x, weight.t())
    return x.to(dtype) @ weight.to(dtype).t()


@cache
def _int8_pays() -> bool:
    """Whether `torch._int_mm` exists, does not saturate and takes less time than an int32 product.

    With AVX-512 VNNI it is about 20 times as fast; with only AVX2 it took 8 times as long. Instructions before VNNI add
    pairs of products in 16 bits, which may saturate. With PyTorch 2.13 on x86, inner lengths of 1 give wrong sums, so
    `matmul` does not use it for them.
    """
    try:
        for length in (2, 9, 64, 577):
            x = torch.full((17, length), -128, dtype=torch.int8)
            weight = torch.where(torch.arange(9)[:, None] % 2 > 0, 127, -128).expand(9, length).to(torch.int8)
            if not torch.equal(int8_product(x, weight.t()).long(), x.long() @ weight.long().t()):
                return False
    except (AttributeError, RuntimeError):  # the private function is missing, or not built for this processor
        return False
    x, weight = torch.zeros(256, 256, dtype=torch.int8), torch.zeros(64, 256, dtype=torch.int8)
    narrow = _least_time(lambda: int8_product(x, weight.t()))
    return narrow < _least_time(lambda: x.to(torch.int32) @ weight.to(torch.int32).t())


def _least_time(product: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(5):
        start = perf_counter()
        product()
        times.append(perf_counter() - start)
    return min(times)
