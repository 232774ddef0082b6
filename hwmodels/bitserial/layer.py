"""Convolutions and fully connected layers computed bit-serially, float in and float out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq.errors import HardwareError
from haq.hwmodels.bitserial.cpu import get_backend
from haq.hwmodels.bitserial.packing import SLACK, quantize
from haq.hwmodels.bitserial.plan import Layout
from haq.hwmodels.bitserial.products import BitPlanes, Channels, Direct, Product, Run, WeightGrid

__all__ = ["BitSerialLayer"]

_MAX_BITS = 8
_INT32_MAX = np.iinfo(np.int32).max

Pair = tuple[int, int]


@dataclass(frozen=True)
class _Workspace:
    """Buffers for one shape of input.

    Attributes:
        rows: Shape of the input with its columns and channels in one dimension.
        codes: Padded codes, flat, with slack behind the last.
        padded: The same codes, `(N, PH, PW · C)`.
        inside: The same codes without padding, `(N, H, W, C)`.
        left: First code of a row that is not padding.
        pixels: Output pixels.
        out_shape: Shape of the output.
        run: Multiplies the codes.
    """

    rows: tuple[int, int, int]
    codes: NDArray[np.uint8]
    padded: NDArray[np.uint8]
    inside: NDArray[np.uint8]
    left: int
    pixels: int
    out_shape: tuple[int, ...]
    run: Run


class BitSerialLayer:
    """One layer with integer weights and activations of 1 to 8 bits each, on one thread.

    The accumulator of an output is Σ W · (q − Z) over its window, exact in int32; padding stands for 0, so it has code
    Z. The output is accumulator · scale + bias in float32. Tensors are channels last: `(N, H, W, C)`, or `(N, K)` for
    a fully connected layer. A depthwise convolution is multiplied directly, all others bit by bit.

    Buffers are kept for every shape of input that was seen. A layer is not for several threads at once.

    Args:
        codes: Weights W as integers, `(M, K)` or `(M, C / groups, kh, kw)`. Signed ones are two's complement, of one
            bit {−1, +1}.
        w_bits: Width of the weights.
        a_bits: Width of the activations' codes q, which are unsigned.
        signed_weights: Whether weights may be negative.
        a_zero_point: Z, the code that stands for 0; for codes that were signed, 2^(a_bits − 1).
        stride: Of the windows; height first, as everywhere.
        padding: Pixels on each side.
        dilation: Distance between taps.
        groups: Number of groups.
        scale: Factor of each output channel's accumulator, `(M,)`; ones if not given.
        bias: Added to each output channel, `(M,)`; zeros if not given.
        a_scale: Step of the activations: q stands for a_scale · (q − Z).
        backend: `avx512`, `avx2`, `neon` or `plain`; the fastest that this CPU runs if not given.
        name: What error messages call the layer.

    Raises:
        HardwareError: An argument does not fit the others, or an accumulator could leave int32.

    Examples:
        >>> layer = BitSerialLayer([[1, -2, 3], [-4, 0, 2]], w_bits=3, a_bits=2, a_scale=0.5)
        >>> layer.accumulate(np.array([[3, 0, 1]], np.uint8))
        array([[  6, -10]], dtype=int32)
        >>> layer(np.array([[1.5, -1.0, 0.25]], np.float32))
        array([[  3., -12.]], dtype=float32)
    """

    def __init__(
        self,
        codes: ArrayLike,
        w_bits: int,
        a_bits: int,
        signed_weights: bool = True,
        a_zero_point: int = 0,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        a_scale: float = 1.0,
        backend: str | None = None,
        name: str = "layer",
    ) -> None:
        self.name, self.w_bits, self.a_bits, self.a_zero_point = name, w_bits, a_bits, a_zero_point
        self.backend = get_backend(backend).name
        grid = WeightGrid.of(w_bits, signed_weights)
        weights = self._checked(np.asarray(codes), grid, groups)
        self._linear = weights.ndim == 2
        weights = weights.reshape(*weights.shape, 1, 1) if self._linear else weights
        self.out_channels, channels, *kernel = weights.shape
        self._layout = Layout(channels, (kernel[0], kernel[1]), stride, padding, dilation, groups)
        self._check_range(weights[0].size, grid)
        self._check_geometry()

        with np.errstate(all="ignore"):
            inverse = np.float32(1) / np.float32(a_scale)
        if not (0 < inverse < math.inf):  # false for NaN
            raise self._error(f"a_scale={a_scale!r} must be positive, and finite in float32 as must its inverse")
        self._grid_arguments = inverse, np.float32(a_zero_point), np.float32(2**a_bits - 1)
        constant = (a_zero_point * weights.sum((1, 2, 3))).astype(np.int32)
        finish = Channels(constant, self._per_channel("scale", scale, 1.0), self._per_channel("bias", bias, 0.0))
        self._product: Product
        if groups > 1 and channels == 1 and groups == self.out_channels:
            self._product = Direct(weights, self._layout, finish)
        else:
            self._product = BitPlanes(weights, self._layout, w_bits, a_bits, grid, finish, get_backend(backend))
        self._workspaces: dict[tuple[int, ...], _Workspace] = {}

    def __call__(self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Quantizes, multiplies and requantizes.

        Codes are those of `haq.quant.functional.quantize_affine`: clip(round(x / a_scale) + Z), ties to even. NaN gets
        code 0.

        Args:
            x: `(N, H, W, C)` or `(N, K)`.
            out: Array for the result, contiguous; allocated if not given.

        Returns:
            `(N, OH, OW, M)` or `(N, M)`.

        Raises:
            HardwareError: `x` or `out` has the wrong shape or type.
        """
        x = np.ascontiguousarray(x, np.float32)
        work = self._workspaces.get(x.shape) or self._prepare(x.shape)
        quantize(x.reshape(work.rows), work.padded, *self._grid_arguments, self._layout.padding[0], work.left)
        return self._run(work, out, np.float32)

    def accumulate(self, codes: NDArray[np.uint8], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Returns the accumulators of activation codes.

        Args:
            codes: `(N, H, W, C)` or `(N, K)`, each at most 2^a_bits − 1.
            out: Array for the result, contiguous; allocated if not given.

        Returns:
            `(N, OH, OW, M)` or `(N, M)`.

        Raises:
            HardwareError: An array has the wrong shape or type, or a code is too large.
        """
        if codes.dtype != np.uint8:
            raise self._error(f"codes of type {codes.dtype}; give uint8")
        work = self._workspaces.get(codes.shape) or self._prepare(codes.shape)
        if (largest := int(codes.max())) >= 2**self.a_bits:
            raise self._error(f"code {largest} needs more than a_bits={self.a_bits}; give codes up to the width")
        work.inside[...] = codes.reshape(work.inside.shape)
        return self._run(work, out, np.int32)

    def _run(self, work: _Workspace, out: Any, dtype: type) -> NDArray[Any]:
        if out is None:
            out = np.empty(work.out_shape, dtype)
        elif out.shape != work.out_shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise self._error(
                f"out is {out.dtype} of shape {out.shape}; give a contiguous array of {dtype.__name__} and shape "
                f"{work.out_shape}"
            )
        work.run(work.codes, out.reshape(work.pixels, self.out_channels))
        result: NDArray[Any] = out
        return result

    def _prepare(self, shape: tuple[int, ...]) -> _Workspace:
        layout = self._layout
        channels = layout.channels * layout.groups
        wanted = f"(N, {channels})" if self._linear else f"(N, H, W, {channels}), channels last"
        if len(shape) != (2 if self._linear else 4) or shape[-1] != channels or 0 in shape:
            raise self._error(f"input of shape {shape}; give {wanted}")
        batch, height, width = (1, 1, shape[0]) if self._linear else shape[:3]
        out_height, out_width = layout.out_size((height, width))
        if min(out_height, out_width) < 1:
            raise self._error(f"kernel {layout.kernel} does not fit into an input of shape {shape}; give a larger one")

        tall, wide = layout.padded((height, width))
        codes = np.full(batch * tall * wide * channels + SLACK, self.a_zero_point, np.uint8)
        padded = codes[:-SLACK].reshape(batch, tall, wide, channels)
        top, left = layout.padding
        work = _Workspace(
            rows=(batch, height, width * channels),
            codes=codes,
            padded=padded.reshape(batch, tall, wide * channels),
            inside=padded[:, top : top + height, left : left + width],
            left=left * channels,
            pixels=batch * out_height * out_width,
            out_shape=(*((shape[0],) if self._linear else (batch, out_height, out_width)), self.out_channels),
            run=self._product.prepare(batch, (height, width)),
        )
        self._workspaces[shape] = work
        return work

    def _checked(self, weights: NDArray[Any], grid: WeightGrid, groups: int) -> NDArray[np.int64]:
        for what in ("w_bits", "a_bits"):
            if not 1 <= getattr(self, what) <= _MAX_BITS:
                raise self._error(f"{what}={getattr(self, what)}; bit-serial kernels take 1 to {_MAX_BITS}")
        if weights.ndim not in (2, 4) or weights.size == 0 or not np.issubdtype(weights.dtype, np.integer):
            raise self._error(
                f"weights are {weights.dtype} of shape {weights.shape}; give integers, (M, K) or (M, C/groups, kh, kw)"
            )
        low, high = grid.bounds(self.w_bits)
        least, most = int(weights.min()), int(weights.max())
        if least < low or most > high or ((weights.astype(np.int64) - low) % grid.step).any():
            allowed = f"{low} or {high}" if grid.step == 2 else f"{low} to {high}"
            raise self._error(f"weights lie between {least} and {most}; w_bits={self.w_bits} allows {allowed}")
        if groups < 1 or len(weights) % groups or (weights.ndim == 2 and groups > 1):
            raise self._error(f"groups={groups} does not divide {len(weights)} output channels of a convolution")
        return weights.astype(np.int64)

    def _check_range(self, reduction: int, grid: WeightGrid) -> None:
        top = 2**self.a_bits - 1
        if not 0 <= self.a_zero_point <= top:
            raise self._error(f"a_zero_point={self.a_zero_point} is no code of a_bits={self.a_bits}; give 0 to {top}")
        largest_weight = max(abs(bound) for bound in grid.bounds(self.w_bits))
        largest = reduction * largest_weight * max(self.a_zero_point, top - self.a_zero_point)
        if largest > _INT32_MAX:
            raise self._error(
                f"K={reduction} at w_bits={self.w_bits}, a_bits={self.a_bits} can sum up to {largest}, beyond int32; "
                f"choose lower widths or split the layer"
            )

    def _check_geometry(self) -> None:
        for what, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if min(pair := getattr(self._layout, what)) < least or len(pair) != 2:
                raise self._error(f"{what}={pair} must be two numbers of at least {least}")

    def _per_channel(self, what: str, values: ArrayLike | None, default: float) -> NDArray[np.float32]:
        if values is None:
            return np.full(self.out_channels, default, np.float32)
        array = np.ascontiguousarray(values, np.float32)
        if array.shape != (self.out_channels,):
            raise self._error(
                f"{what} of shape {array.shape}; give one for each of {self.out_channels} output channels"
            )
        return array

    def _error(self, message: str) -> HardwareError:
        return HardwareError(f"layer {self.name!r}: {message}")
