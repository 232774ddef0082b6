"""Quantized layers computed bit-serially in PyTorch: bit planes on the int8 matrix units of a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.hwmodels.kernels.bitserial.definition import Definition
from haq.quant.integer.pooling import Window
from haq.quant.quantizers.functional import quantize_affine
from haq.torch_internals import int8_product

__all__ = ["PlaneLayer"]

_MULTIPLE = 16  # bytes; cuBLAS wants rows of matrices aligned to them, and PyTorch refuses all but multiples of 8
_LEAST_ROWS = 32  # PyTorch refuses 16 and fewer
_FLOAT32_EXACT = 2**24


class PlaneLayer(nn.Module):
    """One layer with integer weights and activations of 1 to 8 bits each, on the module's device.

    Inputs and outputs have the shapes of `BitSerialLayer`, and the results are the same bit for bit. Codes are split
    into bit planes, one byte per bit, and windows are gathered from them (im2col). One int8 matrix product
    (`torch._int_mm`) then covers every pair of a weight plane and an activation plane, so its work grows with
    w_bits · a_bits, as on hardware for single bits. A GPU with int8 units gains nothing from this: a product of the
    codes themselves would cost the same at all widths.

    Grouped convolutions, whose products are too small for matrix units, are multiplied directly, in floating point
    that is wide enough to be exact; their time depends little on the widths, or not at all.

    Args:
        definition: What to compute, from `define`.
        weights: `(M, C / groups, kh, kw)`, from `define`.

    Examples:
        >>> from haq.hwmodels.kernels.bitserial.definition import define
        >>> layer = PlaneLayer(*define([[1, -2, 3], [-4, 0, 2]], w_bits=3, a_bits=2, a_scale=0.5))
        >>> layer(torch.tensor([[1.5, -1.0, 0.25]]))
        tensor([[  3., -12.]])
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, definition: Definition, weights: NDArray[np.int64]) -> None:
        super().__init__()
        self._definition = definition
        kind = _Planes if definition.layout.groups == 1 else _Direct
        self.product = kind(definition, weights)
        self.register_buffer("scale", torch.from_numpy(definition.scale))
        self.register_buffer("bias", torch.from_numpy(definition.bias))
        # These numbers stay on the CPU, because every operation on the device launches a kernel
        self._a_scale = torch.tensor(float(definition.a_scale), dtype=torch.float32)
        self._zero_point = torch.tensor(definition.a_zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Quantizes, multiplies and requantizes.

        Args:
            x: `(N, H, W, C)` or `(N, K)`, float32.

        Returns:
            `(N, OH, OW, M)` or `(N, M)`.

        Raises:
            HardwareError: `x` has the wrong shape, or the bit planes do not fit into the device's memory.
        """
        bits = self._definition.a_bits
        sums = self.accumulate(quantize_affine(x, self._a_scale, bits, False, self._zero_point).to(torch.uint8))
        return sums.to(torch.float32).mul_(self.scale).add_(self.bias)  # rounded twice, as on the CPU

    def accumulate(self, codes: Tensor) -> Tensor:
        """Returns the int32 accumulators of activation codes; shapes and errors are those of `forward`.

        Args:
            codes: uint8, each at most 2^a_bits − 1.
        """
        definition = self._definition
        size = definition.out_size(tuple(codes.shape))
        maps = codes[:, :, None, None] if definition.linear else codes.permute(0, 3, 1, 2)
        try:
            sums: Tensor = self.product(maps)
        except torch.OutOfMemoryError:
            raise definition.error(
                f"the bit planes of an input of shape {tuple(codes.shape)} do not fit into the memory of "
                f"{codes.device}; use a smaller batch"
            ) from None
        return sums if definition.linear else sums.view(len(codes), *size, -1)


class _Planes(nn.Module):
    """All pairs of bit planes in one product.

    Signed weights of one bit are a plane of −1 and +1; other signed weights are two's complement, whose highest bit
    counts negative. Zero points are multiplied by the sum of a window's codes, which comes from a row of ones beside
    the planes. Intermediate sums may wrap around in int32: the final sum fits, and arithmetic modulo 2^32 is exact.
    """

    weights: Tensor
    shifts: Tensor
    factors: Tensor
    constant: Tensor
    zero_points: Tensor | None
    places: Tensor

    def __init__(self, definition: Definition, weights: NDArray[np.int64]) -> None:
        super().__init__()
        w_bits, a_bits = definition.w_bits, definition.a_bits
        self._window, self._zero = _window(definition), definition.a_zero_point
        matrix = torch.from_numpy(weights).permute(0, 2, 3, 1).flatten(1)  # (M, K)
        planes, w_factors, grid = matrix[None], torch.ones(1, dtype=torch.int32), definition.grid
        zeros = None if grid.zero_points is None else torch.from_numpy(grid.zero_points)
        if grid.step == 1:
            codes = matrix if zeros is None else matrix + zeros[:, None]
            planes = (codes >> torch.arange(w_bits)[:, None, None]) & 1
            w_factors = 2 ** torch.arange(w_bits, dtype=torch.int32)
            w_factors[-1] *= -1 if grid.offset else 1
        a_factors = 2 ** torch.arange(a_bits, dtype=torch.int32)
        rows = planes.flatten(0, 1).to(torch.int8)
        self.register_buffer("weights", _aligned(rows if zeros is None else F.pad(rows, (0, 0, 0, 1), value=1)))
        self.register_buffer("shifts", torch.arange(a_bits, dtype=torch.uint8)[:, None, None, None, None])
        self.register_buffer("factors", a_factors[:, None, None, None] * w_factors[:, None])
        self.register_buffer("constant", (matrix.sum(1) * definition.a_zero_point).to(torch.int32))
        self.register_buffer("zero_points", None if zeros is None else zeros.to(torch.int32))
        self.register_buffer("places", a_factors[:, None])

    def forward(self, codes: Tensor) -> Tensor:
        """Returns accumulators, `(N · OH · OW, M)`, of codes, `(N, C, H, W)`."""
        planes = ((self._window.pad(codes, self._zero) >> self.shifts) & 1).view(torch.int8)
        windows = self._window.of(planes.flatten(0, 1)).flatten(3).flatten(0, 2)  # (a · N · OH · OW, K)
        products = int8_product(_aligned(windows, _LEAST_ROWS), self.weights.t())  # transposed, as cuBLAS wants it
        a_bits, _, w_bits, channels = *self.factors.shape[:3], len(self.constant)
        pairs = products[: len(windows), : w_bits * channels].view(a_bits, -1, w_bits, channels)
        sums: Tensor = pairs.mul_(self.factors).sum((0, 2), dtype=torch.int32).sub_(self.constant)
        if self.zero_points is not None:
            ones = products[: len(windows), w_bits * channels].view(a_bits, -1)
            totals = (ones * self.places).sum(0, dtype=torch.int32)
            sums.sub_(totals[:, None] * self.zero_points)
        return sums


class _Direct(nn.Module):
    """Multiplies the codes of every group directly, as whole numbers in floating point, without rounding."""

    weights: Tensor

    def __init__(self, definition: Definition, weights: NDArray[np.int64]) -> None:
        super().__init__()
        self._window, self._zero = _window(definition), definition.a_zero_point
        matrices = torch.from_numpy(weights).permute(0, 2, 3, 1).reshape(definition.layout.groups, -1, weights[0].size)
        dtype = torch.float32 if definition.largest <= _FLOAT32_EXACT else torch.float64
        self.register_buffer("weights", matrices.transpose(1, 2).contiguous().to(dtype))  # (groups, K, M / groups)

    def forward(self, codes: Tensor) -> Tensor:
        """Returns accumulators, `(N · OH · OW, M)`, of codes, `(N, C, H, W)`."""
        values = self._window.pad(codes, self._zero).to(self.weights.dtype) - self._zero
        windows = self._window.of(values)
        windows = windows.view(*windows.shape[:5], len(self.weights), -1).movedim(5, 0)
        sums = torch.bmm(windows.flatten(4).flatten(1, 3), self.weights)  # (groups, N · OH · OW, M / groups)
        return sums.transpose(0, 1).to(torch.int32, memory_format=torch.contiguous_format).flatten(1)


def _window(definition: Definition) -> Window:
    layout, (top, left) = definition.layout, definition.layout.padding
    return Window(layout.kernel, layout.stride, layout.dilation, (left, left, top, top))


def _aligned(matrix: Tensor, least_rows: int = 0) -> Tensor:
    """Returns a contiguous matrix, padded with zeros until both sizes are multiples of `_MULTIPLE`."""
    rows, columns = matrix.shape
    missing = (0, -columns % _MULTIPLE, 0, max(rows + -rows % _MULTIPLE, least_rows) - rows)
    return F.pad(matrix, missing) if any(missing) else matrix.contiguous()
