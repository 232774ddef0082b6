"""The two ways to multiply codes by a layer's weights, prepared once for every input size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from haq.hwmodels.kernels.bitserial.cpu import Backend
from haq.hwmodels.kernels.bitserial.direct import CHANNELS, depthwise_weights, direct_function
from haq.hwmodels.kernels.bitserial.kernels import multiply, window_sums
from haq.hwmodels.kernels.bitserial.packing import pack, pack_weights
from haq.hwmodels.kernels.bitserial.plan import Layout, choose_tile, pair_tables
from haq.hwmodels.kernels.bitserial.tile import tile_function

__all__ = ["BitPlanes", "Channels", "Direct", "Product", "Run", "WeightGrid"]

Run = Callable[[NDArray[np.uint8], NDArray[Any]], None]
"""`run(codes, out)`: codes are padded and flat; `out` is `(pixels, M)`, float32 for the layer's output or int32 for the
accumulators."""

_DIRECT_PIXELS = 6  # measured; with 8, AVX2 would run out of registers


class WeightGrid(NamedTuple):
    """The meaning of unsigned weight codes u: the code q = step · u − offset, and the weight q − Z of a channel.

    With offset-binary codes, one kernel serves every kind of weight: Σ (step · u − offset − Z) · a is step · Σ u·a
    minus (offset + Z) · Σ a, and Σ a is a by-product of packing. So zero points cost nothing (Jacob et al. 2018,
    arXiv:1712.05877, eq. 7).

    Attributes:
        step: Distance from one code to the next.
        offset: How far u = 0 is below 0.
        zero_points: Z, the code that stands for 0 in each output channel, `(M,)`; `None` for a symmetric grid.
    """

    step: int
    offset: int
    zero_points: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, w_bits: int, signed: bool, zero_points: NDArray[np.int64] | None = None) -> WeightGrid:
        """Returns the grid of two's complement or unsigned codes; of {−1, +1} for one signed bit without zero points.

        Args:
            w_bits: Width of the codes.
            signed: Whether codes are two's complement.
            zero_points: Z of each output channel, `(M,)`, if the grid has zero points.
        """
        if not signed:
            return cls(1, 0, zero_points)
        return cls(2, 1) if w_bits == 1 and zero_points is None else cls(1, 2 ** (w_bits - 1), zero_points)

    def bounds(self, w_bits: int) -> tuple[int, int]:
        """Returns the smallest and largest code q."""
        return -self.offset, self.step * (2**w_bits - 1) - self.offset

    def reach(self, w_bits: int) -> int:
        """Returns the largest magnitude that a weight can have."""
        low, high = self.bounds(w_bits)
        if self.zero_points is None:
            return max(-low, high)
        return int(np.maximum(high - self.zero_points, self.zero_points - low).max())

    def offsets(self, channels: int) -> NDArray[np.int32]:
        """Returns how often each channel subtracts the sum of its activations, `(M,)`."""
        zeros = np.zeros(channels, np.int64) if self.zero_points is None else self.zero_points
        return (zeros + self.offset).astype(np.int32)

    def codes(self, weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the codes q of weights `(M, …)`."""
        zeros = self.zero_points
        return weights if zeros is None else weights + zeros.reshape(-1, *[1] * (weights.ndim - 1))

    def encode(self, weights: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the unsigned codes u of weights `(M, …)`."""
        return ((self.codes(weights) + self.offset) // self.step).astype(np.uint8)


class Channels(NamedTuple):
    """The terms of each output channel, (sum − offset · Σ a − constant) · scale + bias; each `(M,)`."""

    offset: NDArray[np.int32]
    constant: NDArray[np.int32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def blocks(self, groups: int, channels: int) -> NDArray[np.int32]:
        """Returns the four terms in blocks of `channels` channels of one group, padded with zeros.

        Returns:
            `(4, blocks, channels)`, int32; the floats keep their bits.
        """
        rows = np.stack([self.offset, self.constant, self.scale.view(np.int32), self.bias.view(np.int32)])
        rows = rows.reshape(4, groups, -1)
        filled = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % channels)))
        return np.ascontiguousarray(filled.reshape(4, -1, channels))


class Product(Protocol):
    """A layer's weights, ready for inputs of any size."""

    def prepare(self, batch: int, size: tuple[int, int]) -> Run:
        """Allocates the buffers for inputs of `(batch, *size, C)`; every call of the result reuses them."""
        ...


class BitPlanes:
    """Bit-serial multiplication.

    Args:
        weights: `(M, C / groups, kh, kw)`.
        layout: Layout of the layer.
        w_bits: Width of the weights.
        a_bits: Width of the activations.
        grid: Grid of the weights.
        channels: Terms of the output channels.
        backend: Backend whose tiles are used.
    """

    def __init__(
        self, weights: NDArray[np.int64], layout: Layout, w_bits: int, a_bits: int, grid: WeightGrid,
        channels: Channels, backend: Backend,
    ) -> None:  # fmt: skip
        self._layout, self._w_bits, self._a_bits = layout, w_bits, a_bits
        self._doublings = grid.step.bit_length() - 1
        self._tile = choose_tile(backend, w_bits, a_bits, layout.runs * layout.words)
        self._planes = pack_weights(grid.encode(weights), layout, w_bits, self._tile.channels)
        self._terms = channels.blocks(layout.groups, self._tile.channels)
        self._blocks = _blocks(len(weights), layout.groups, self._tile.channels, a_bits * layout.words * 8)

    def prepare(self, batch: int, size: tuple[int, int]) -> Run:
        """See `Product`."""
        layout, doublings = self._layout, self._doublings
        weights, terms, blocks = self._planes, self._terms, self._blocks
        (height, width), words = layout.padded(size), layout.words
        rows, row_codes = batch * height, width * layout.channels * layout.groups
        planes = np.empty((rows * layout.row_positions(size), self._a_bits, words), np.uint64)
        sums = np.empty(len(planes), np.int32)
        runs, windows = layout.run_positions(size), layout.window_positions(batch, size)
        window = np.empty((len(windows), layout.groups), np.int32)

        tile = self._tile._replace(pixels=min(self._tile.pixels, len(windows)))
        bases = _filled(windows, tile.pixels) * (self._a_bits * words * 8)
        tables = pair_tables(self._w_bits, self._a_bits, runs, words, tile.channels, tile.group)
        run_step, run_length = layout.run_step, layout.run_length

        def run(codes: NDArray[np.uint8], out: NDArray[Any]) -> None:
            pack(codes, planes, sums, rows, row_codes, run_step, run_length)
            window_sums(sums, windows, runs, window)
            address = tile_function(tile, out.dtype == np.float32).address
            multiply(
                address, tile.pixels, weights, planes, bases, *tables, len(tables.counts),
                blocks, doublings, window, terms, out,
            )  # fmt: skip

        return run


class Direct:
    """Depthwise multiplication, one integer product for each weight.

    Args:
        weights: `(C, 1, kh, kw)`.
        layout: Layout of the layer, with C groups of one channel.
        channels: Terms of the channels.
    """

    def __init__(self, weights: NDArray[np.int64], layout: Layout, channels: Channels) -> None:
        self._layout, self._weights = layout, depthwise_weights(weights)
        self._terms = channels.blocks(1, CHANNELS)
        self._blocks = _blocks(len(weights), 1, CHANNELS, 0)
        self._blocks[:, 3] = self._blocks[:, 0]  # a code is a byte

    def prepare(self, batch: int, size: tuple[int, int]) -> Run:
        """See `Product`."""
        weights, terms, blocks = self._weights, self._terms, self._blocks
        windows = self._layout.window_positions(batch, size)  # a position is a code, because a group has one channel
        pixels = min(_DIRECT_PIXELS, len(windows))
        bases = _filled(windows, pixels)
        taps = self._layout.run_positions(size).astype(np.int32)
        window, unused = np.zeros((len(windows), 1), np.int32), np.zeros(1, np.int32)

        def run(codes: NDArray[np.uint8], out: NDArray[Any]) -> None:
            address = direct_function(pixels, out.dtype == np.float32).address
            multiply(
                address, pixels, weights, codes, bases, unused, taps, unused, taps.size, blocks, 0, window, terms, out
            )

        return run


def _blocks(out_channels: int, groups: int, channels: int, group_bytes: int) -> NDArray[np.int64]:
    """Returns the table of blocks that `kernels.multiply` reads."""
    per_group = out_channels // groups
    return np.array(
        [
            (group * per_group + first, min(channels, per_group - first), group, group * group_bytes)
            for group in range(groups)
            for first in range(0, per_group, channels)
        ],
        np.int64,
    )


def _filled(values: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Repeats the last value up to the next multiple."""
    return np.pad(values, (0, -len(values) % multiple), mode="edge")
