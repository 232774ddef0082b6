"""The loops over channels and pixels, the same for every tile."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.compiling import jit
from haq.hwmodels.kernels.bitserial.epilogue import call_tile

__all__ = ["multiply", "window_sums"]

# numba's cache checks only this file: after an edit of `call_tile`, which is compiled into it, delete `__pycache__`.


@jit
def window_sums(
    sums: NDArray[np.int32], windows: NDArray[np.int64], runs: NDArray[np.int64], out: NDArray[np.int32]
) -> None:
    """Writes the sum of each window's codes.

    Args:
        sums: Sum of the codes of the run at every position.
        windows: First position of each window; may be longer than `pixels`.
        runs: Position of each run of a window, relative to the window.
        out: `(pixels, groups)`.
    """
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
        weights: Weights, with the blocks in the first dimension.
        inputs: Bit planes, or codes.
        bases: Offset in bytes of every pixel's window, padded to a multiple of `tile_pixels`.
        w_offsets: See `epilogue.Arguments`.
        a_offsets: See `epilogue.Arguments`.
        counts: See `epilogue.Arguments`.
        diagonals: See `epilogue.Arguments`.
        blocks: First output channel, number of channels, group, and offset of the inputs in bytes; `(blocks, 4)`.
        doublings: See `epilogue.Arguments`.
        window: Sum of each window's codes; `(pixels, groups)`.
        channel_terms: Offset, constant, and the bits of the float32 scale and bias; `(4, blocks, channels)`.
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
