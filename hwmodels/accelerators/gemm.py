"""A layer as matrix products, as most accelerators run it, and what it reads and writes.

An embedding is no product: its K is 0, and what it costs is the rows that it reads and writes.
"""

from __future__ import annotations

from typing import NamedTuple

from haq.layers import LayerSpec

__all__ = ["Gemm", "ceil_div", "input_values", "output_values", "result_bits"]

_ROW_BITS = 8


class Gemm(NamedTuple):
    """`groups` products of an (m, k) weight matrix and a (k, n) activation matrix."""

    groups: int
    m: int
    k: int
    n: int

    @classmethod
    def of(cls, layer: LayerSpec, batch: int) -> Gemm:
        """Returns the products by im2col: m output channels, k inputs of a dot product, n output positions."""
        depth = 0 if layer.is_lookup else layer.reduction
        return cls(layer.groups, layer.out_channels // layer.groups, depth, batch * layer.positions)

    def packed(self, rows: int, depth: int) -> Gemm:
        """Joins groups into block-diagonal products, each of as many groups as fit into one tile.

        Args:
            rows: Height of a tile.
            depth: Inputs of a dot product in a tile.

        Examples:
            >>> Gemm(32, 1, 9, 100).packed(16, 256)
            Gemm(groups=2, m=16, k=144, n=100)
            >>> Gemm(2, 64, 9, 100).packed(16, 256)
            Gemm(groups=2, m=64, k=9, n=100)
        """
        joined = max(1, min(self.groups, rows // self.m, depth // max(1, self.k)))
        return Gemm(ceil_div(self.groups, joined), joined * self.m, joined * self.k, self.n)


def ceil_div(amount: int, unit: int) -> int:
    """Returns ⌈amount / unit⌉."""
    return -(-amount // unit)


def input_values(layer: LayerSpec, batch: int) -> int:
    """Returns how many activations a batch of the layer's calls reads; see `LayerSpec.values_read`."""
    return batch * layer.values_read


def result_bits(layer: LayerSpec, a_bits: int) -> int:
    """Returns the width of results: that of the layer's inputs, into which they are requantized.

    The inputs of an embedding are indices, which have no width to choose. Its results have 8 bits.

    Args:
        layer: The layer.
        a_bits: Width of its inputs.
    """
    return _ROW_BITS if layer.is_lookup else a_bits


def output_values(layer: LayerSpec, batch: int) -> int:
    """Returns how many results a batch of the layer's calls writes."""
    return batch * layer.values_written
