"""Convolutions and fully connected layers computed bit-serially, float in and float out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq.hwmodels.kernels.bitserial.cpu import get_backend
from haq.hwmodels.kernels.bitserial.definition import define
from haq.hwmodels.kernels.bitserial.packing import SLACK, quantize
from haq.hwmodels.kernels.bitserial.products import BitPlanes, Channels, Direct, Product, Run

__all__ = ["BitSerialLayer"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class _Workspace:
    """Buffers for one shape of input.

    Attributes:
        rows: Shape of the input with its columns and channels in one dimension.
        codes: Padded codes, flat, with slack after the last.
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

    The accumulator of an output is Σ (W − Z_w) · (q − Z) over its window, exact in int32; padding stands for 0, so it
    has code Z. The output is accumulator · scale + bias in float32. Tensors are channels last: `(N, H, W, C)`, or
    `(N, K)` for a fully connected layer. A depthwise convolution is multiplied directly, all others bit by bit.

    Buffers are kept for every input shape. Do not call a layer from several threads at once.

    Args:
        codes: Weights W as integers, `(M, K)` or `(M, C / groups, kh, kw)`. Signed weights are two's complement, or
            {−1, +1} for one bit.
        w_bits: Width of the weights.
        a_bits: Width of the activations' codes q, which are unsigned.
        signed_weights: Whether weights may be negative.
        a_zero_point: Z, the code that stands for 0; 2^(a_bits − 1) for codes that were signed before.
        stride: Stride of the windows; height first, as in all pairs.
        padding: Pixels on each side.
        dilation: Distance between taps.
        groups: Number of groups.
        scale: Factor of each output channel's accumulator, `(M,)`; ones if not given.
        bias: Added to each output channel, `(M,)`; zeros if not given.
        a_scale: Step of the activations: q stands for a_scale · (q − Z).
        w_zero_points: Z_w, the weight code that stands for 0 in each output channel, `(M,)`; zeros if not given. If
            given, signed weights of one bit are two's complement too, {−1, 0}.
        backend: `avx512`, `avx2`, `neon` or `plain`; the fastest that this CPU runs if not given.
        name: Name of the layer in error messages.

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
        w_zero_points: ArrayLike | None = None,
        backend: str | None = None,
        name: str = "layer",
    ) -> None:
        self.name, self.w_bits, self.a_bits, self.a_zero_point = name, w_bits, a_bits, a_zero_point
        self.backend = get_backend(backend).name
        definition, weights = define(
            codes, w_bits, a_bits, signed_weights, a_zero_point, stride, padding, dilation, groups, scale, bias,
            a_scale, w_zero_points, name,
        )  # fmt: skip
        self._definition, self._layout, self.out_channels = definition, definition.layout, definition.out_channels
        self._grid_arguments = np.float32(1) / definition.a_scale, np.float32(a_zero_point), np.float32(2**a_bits - 1)
        constant = (a_zero_point * weights.sum((1, 2, 3))).astype(np.int32)
        offsets = definition.grid.offsets(definition.out_channels)
        finish = Channels(offsets, constant, definition.scale, definition.bias)
        self._product: Product
        if definition.depthwise:
            self._product = Direct(weights, self._layout, finish)
        else:
            self._product = BitPlanes(
                weights, self._layout, w_bits, a_bits, definition.grid, finish, get_backend(backend)
            )
        self._workspaces: dict[tuple[int, ...], _Workspace] = {}

    def __call__(self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Quantizes, multiplies and requantizes.

        Codes are those of `haq.quant.quantizers.functional.quantize_affine`: clip(round(x / a_scale) + Z), ties to
        even. NaN gets code 0.

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
            raise self._definition.error(f"codes of type {codes.dtype}; give uint8")
        work = self._workspaces.get(codes.shape) or self._prepare(codes.shape)
        if (largest := int(codes.max())) >= 2**self.a_bits:
            raise self._definition.error(
                f"code {largest} needs more than a_bits={self.a_bits}; give codes up to the width"
            )
        work.inside[...] = codes.reshape(work.inside.shape)
        return self._run(work, out, np.int32)

    def _run(self, work: _Workspace, out: Any, dtype: type) -> NDArray[Any]:
        if out is None:
            out = np.empty(work.out_shape, dtype)
        elif out.shape != work.out_shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise self._definition.error(
                f"out is {out.dtype} of shape {out.shape}; give a contiguous array of {dtype.__name__} and shape "
                f"{work.out_shape}"
            )
        work.run(work.codes, out.reshape(work.pixels, self.out_channels))
        result: NDArray[Any] = out
        return result

    def _prepare(self, shape: tuple[int, ...]) -> _Workspace:
        layout = self._layout
        channels = layout.channels * layout.groups
        out_height, out_width = self._definition.out_size(shape)
        linear = self._definition.linear
        batch, height, width = (1, 1, shape[0]) if linear else shape[:3]

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
            out_shape=(*((shape[0],) if linear else (batch, out_height, out_width)), self.out_channels),
            run=self._product.prepare(batch, (height, width)),
        )
        self._workspaces[shape] = work
        return work
