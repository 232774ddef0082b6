"""Depthwise convolution by integer products: with one channel per group, bit planes have nothing to share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from haq.hwmodels.kernels.bitserial.epilogue import Arguments, compile_tile, write_output

__all__ = ["CHANNELS", "depthwise_weights", "direct_function"]

CHANNELS = 16
"""Channels of a tile. A tile may read beyond the last channel of the input and ignores what it finds there."""


def _emit(builder: Any, tile: Arguments, pixels: int, floating: bool) -> None:
    b, word, int32 = builder, ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(int32, CHANNELS)

    def load(address: Any, width: int) -> Any:
        narrow = ir.VectorType(ir.IntType(width), CHANNELS)
        value = b.load(b.inttoptr(address, narrow.as_pointer()))
        value.align = width // 8
        return value

    bases, taps = b.inttoptr(tile.bases, word.as_pointer()), b.inttoptr(tile.a_offsets, int32.as_pointer())
    windows = [b.add(tile.inputs, b.load(b.gep(bases, [word(pixel)]))) for pixel in range(pixels)]
    zero = ir.Constant(vector, [0] * CHANNELS)
    totals = [cgutils.alloca_once_value(b, zero) for _ in windows]
    for total in totals:
        b.store(zero, total)
    with cgutils.for_range(b, tile.diagonals) as loop:
        weight = b.sext(load(b.add(tile.weights, b.mul(loop.index, word(2 * CHANNELS))), 16), vector)
        tap = b.sext(b.load(b.gep(taps, [loop.index])), word)
        for window, total in zip(windows, totals, strict=True):
            code = b.zext(load(b.add(window, tap), 8), vector)
            b.store(b.add(b.load(total), b.mul(weight, code)), total)
    write_output(b, tile, [[b.load(total)] for total in totals], CHANNELS, floating, offset=False)


@cache
def direct_function(pixels: int, floating: bool) -> Any:
    """Compiles a tile of `CHANNELS` channels at `pixels` pixels; see `compile_tile`.

    Its `weights` are one block from `depthwise_weights`, its `inputs` are the codes from the block's first channel on,
    `a_offsets` is the offset of each tap in its window, and `diagonals` is the number of taps. `w_offsets` and `counts`
    are not read.
    """
    return compile_tile(lambda builder, arguments: _emit(builder, arguments, pixels, floating))


def depthwise_weights(weights: NDArray[np.int64]) -> NDArray[np.int16]:
    """Arranges weights of `(C, 1, kh, kw)` for the kernel: `(blocks, taps, CHANNELS)`, padded with zeros."""
    channels = len(weights)
    blocks = -(-channels // CHANNELS)
    arranged = np.zeros((blocks * CHANNELS, weights[0].size), np.int16)
    arranged[:channels] = weights.reshape(channels, -1)
    return np.ascontiguousarray(arranged.reshape(blocks, CHANNELS, -1).transpose(0, 2, 1))
