"""The loops over channels and pixels, for every tile alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.compiling import jit
from haq.hwmodels.kernels.bitserial.epilogue import call_tile

__all__ = ["multiply", "window_sums"]

# numba's cache looks at this file only: after an edit of `call_tile`, which is compiled into it, delete `__pycache__`.


@jit
def window_sums(
    sums: NDArray[np.int32], windows: NDArray[np.int64], runs: NDArray[np.int64], out: NDArray[np.int32]
) -> None:
    """Writes the sum of each window's codes; `out` is `(pixels, groups)`, `windows` may be longer."""
    pixels, groups = out.shape
    for pixel in range(pixels):
        for group in range(groups):
            total = 0
            for run in range(runs.size):
                total += sums[windows[pixel] + group + runs[run]]
            out[pixel, group] = total


@jit
def multiply(
    tile: int,
    tile_pixels: int,
    weights: NDArray[Any],
    inputs: NDArray[Any],
    bases: NDArray[np.int64],
    w_offsets: NDArray[np.int32],
    a_offsets: NDArray[np.int32],
    counts: NDArray[np.int32],
    diagonals: int,
    blocks: NDArray[np.int64],
    doublings: int,
    window: NDArray[np.int32],
    channel_terms: NDArray[np.int32],
    out: NDArray[Any],
) -> None:
    """Runs a tile over all blocks of channels and all pixels.

    Args:
        tile: Address of the tile's code.
        tile_pixels: Pixels of a tile.
        weights: Of every block, in the first dimension.
        inputs: Bit planes, or codes.
        bases: Offset in bytes of every pixel's window, filled up to a multiple of `tile_pixels`.
        w_offsets: See `epilogue.Arguments`, as for the following three.
        a_offsets: See there.
        counts: See there.
        diagonals: See there.
        blocks: First output channel, number of channels, group, and offset of the inputs in bytes; `(blocks, 4)`.
        doublings: Of the tile's sums.
        window: Sum of each window's codes; `(pixels, groups)`.
        channel_terms: Offset, constant, scale and bias, the last two being float32; `(4, blocks, channels)`.
        out: `(pixels, M)`.
    """
    pixels, groups = window.shape
    out_channels = out.shape[1]
    for block in range(len(blocks)):
        low, channels, group, offset = blocks[block]
        for start in range(0, pixels, tile_pixels):
            call_tile(
                tile, weights[block].ctypes.data, inputs.ctypes.data + offset, bases.ctypes.data + 8 * start,
                w_offsets.ctypes.data, a_offsets.ctypes.data, counts.ctypes.data, diagonals,
                doublings, window.ctypes.data + 4 * (start * groups + group), 4 * groups,
                channel_terms[0, block].ctypes.data, channel_terms[1, block].ctypes.data,
                channel_terms[2, block].ctypes.data, channel_terms[3, block].ctypes.data,
                out.ctypes.data + 4 * (start * out_channels + low), 4 * out_channels, channels, pixels - start,
            )  # fmt: skip
