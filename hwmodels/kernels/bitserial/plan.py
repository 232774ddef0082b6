"""How a layer's windows lie in memory, and which pairs of words belong to each diagonal of bit planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.errors import HardwareError
from haq.hwmodels.kernels.bitserial.cpu import Backend
from haq.hwmodels.kernels.bitserial.tile import TREE, TileShape

__all__ = ["WORD_BITS", "Layout", "Tables", "choose_tile", "pair_tables"]

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

WORD_BITS = 64
_PIXELS = 4
_DIAGONAL_COST = 2  # cost of ending a diagonal in the tree, in words


class Tables(NamedTuple):
    """The pairs of words that are combined, diagonal by diagonal.

    Attributes:
        w_offsets: Offset of each weight word from the first word of its block, in bytes; `(steps,)`.
        a_offsets: Offset of each activation word from the first word of its pixel, in bytes; `(steps,)`.
        counts: Groups of words on each diagonal; `(w_bits + a_bits − 1,)`.
    """

    w_offsets: Int32Array
    a_offsets: Int32Array
    counts: Int32Array


def choose_tile(backend: Backend, w_bits: int, a_bits: int, words: int) -> TileShape:
    """Returns the cheapest shape of tile.

    In measurements, eight accumulators hid the latency of counting and let every loaded word be used several times. The
    tree keeps five vectors for each accumulator, so it has half as many accumulators.

    Args:
        backend: Backend that runs the tile.
        w_bits: Weight planes.
        a_bits: Activation planes.
        words: Words of a window in one plane.
    """
    pairs = [min(d, w_bits - 1) - max(0, d - a_bits + 1) + 1 for d in range(w_bits + a_bits - 1)]
    padded = sum(-(-count * words // TREE) * TREE + _DIAGONAL_COST for count in pairs)
    if padded < w_bits * a_bits * words * backend.tree_gain:
        return TileShape(backend.lanes, 1, _PIXELS, TREE)
    return TileShape(backend.lanes, 2, _PIXELS, 1)


def pair_tables(w_bits: int, a_bits: int, runs: Int64Array, words: int, channels: int, group: int) -> Tables:
    """Lists the pairs of words whose ones are counted.

    Args:
        w_bits: Weight planes.
        a_bits: Activation planes.
        runs: First position of each run of a window, relative to the window; `(runs,)`.
        words: Words of a run in one plane.
        channels: Output channels of a tile, whose weight words lie side by side.
        group: Every diagonal is padded to a multiple of this, with the zero weight word after the last plane.

    Raises:
        HardwareError: A window spans more than 2 GiB of planes.
    """
    per_plane = len(runs) * words
    w_plane = np.arange(per_plane)
    a_plane = (runs[:, None] * (a_bits * words) + np.arange(words)).ravel()
    w_words, a_words, counts = [], [], []
    for diagonal in range(w_bits + a_bits - 1):
        i = np.arange(max(0, diagonal - a_bits + 1), min(w_bits - 1, diagonal) + 1)[:, None]
        filling = np.zeros(-i.size * per_plane % group, np.int64)
        w_words += [(i * per_plane + w_plane).ravel(), filling + w_bits * per_plane]
        a_words += [((diagonal - i) * words + a_plane).ravel(), filling]
        counts.append((i.size * per_plane + filling.size) // group)
    w_bytes, a_bytes = np.concatenate(w_words) * (8 * channels), np.concatenate(a_words) * 8
    largest = max(int(w_bytes.max()), int(a_bytes.max()))
    if largest > np.iinfo(np.int32).max:
        raise HardwareError(f"a window spans {largest} bytes of bit planes, more than int32 offsets reach; split it")
    return Tables(w_bytes.astype(np.int32), a_bytes.astype(np.int32), np.array(counts, np.int32))


@dataclass(frozen=True)
class Layout:
    """How a convolution reads its input, for inputs of any size.

    Codes are stored channels last, `(N, H, W, C)`, with their padding. A window is cut into runs of neighbouring codes:
    one for each tap, or, if that fills words better, one for each row of taps (16 channels and a 3×3 kernel: three runs
    of 48 bits instead of nine of 16). A run is packed once for every position where it may start, and is then shared
    by all windows and rows that contain it; there is no im2col.

    Attributes:
        channels: Input channels of one group.
        kernel: Height and width.
        stride: Height and width.
        padding: Pixels on each side.
        dilation: Distance between taps.
        groups: Number of groups.
    """

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def joined(self) -> bool:
        """Whether a run is a row of taps."""
        width = self.kernel[1]
        neighbours = self.groups == 1 and self.dilation[1] == 1  # other groups or skipped pixels lie between the taps
        return neighbours and _ceil(width * self.channels, WORD_BITS) < width * _ceil(self.channels, WORD_BITS)

    @property
    def run_length(self) -> int:
        """Codes of a run."""
        return self.channels * (self.kernel[1] if self.joined else 1)

    @property
    def words(self) -> int:
        """Words of a run in one plane."""
        return _ceil(self.run_length, WORD_BITS)

    @property
    def runs(self) -> int:
        """Runs of a window."""
        return self.kernel[0] * (1 if self.joined else self.kernel[1])

    @property
    def run_step(self) -> int:
        """Codes from one position to the next."""
        return self.channels * (self.stride[1] if self.joined else 1)

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of an input with its padding."""
        return size[0] + 2 * self.padding[0], size[1] + 2 * self.padding[1]

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the output; not positive if the kernel does not fit into the input."""
        height, width = (
            (padded - dilation * (kernel - 1) - 1) // stride + 1
            for padded, dilation, kernel, stride in zip(
                self.padded(size), self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    def row_positions(self, size: tuple[int, int]) -> int:
        """Returns the number of positions in a row of the input, over all groups."""
        return self.out_size(size)[1] if self.joined else self.padded(size)[1] * self.groups

    def run_positions(self, size: tuple[int, int]) -> Int64Array:
        """Returns each run's position, relative to the first of its window; `(runs,)`."""
        rows = np.arange(self.kernel[0]) * self.dilation[0] * self.row_positions(size)
        columns = np.arange(1 if self.joined else self.kernel[1]) * self.dilation[1] * self.groups
        return (rows[:, None] + columns).ravel()

    def window_positions(self, batch: int, size: tuple[int, int]) -> Int64Array:
        """Returns the first position of every output pixel's window, in the first group; `(N · OH · OW,)`."""
        height, width = self.out_size(size)
        step = 1 if self.joined else self.stride[1] * self.groups
        rows = np.arange(batch)[:, None] * self.padded(size)[0] + np.arange(height) * self.stride[0]
        return (rows.reshape(-1, 1) * self.row_positions(size) + np.arange(width) * step).ravel()


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)
