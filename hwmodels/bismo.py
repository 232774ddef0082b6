"""Bit-serial matrix multiplication on an FPGA: the BISMO overlay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from haq.hwmodels.footprint import bops, size_bytes
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Bismo"]


class _Gemm(NamedTuple):
    """A layer as `groups` products of an (m, k) weight matrix and a (k, n) activation matrix."""

    groups: int
    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Bismo:
    """An array of D_m × D_n dot-product units; each takes D_k binary products a cycle.

    A layer becomes one matrix product per group by im2col: M output channels, K inputs of a dot product, N output
    positions of the whole batch. Three stages work at once, so the slowest sets the pace; in cycles, per group:

    - execute: ⌈M / D_m⌉ · ⌈N / D_n⌉ · ⌈K / D_k⌉ · w · a, one cycle for a pair of bit planes of a tile;
    - fetch: (M · w + N · a) · ⌈K / D_k⌉ · D_k bits through the read port, each operand once and padded to whole steps;
    - result: M · N accumulators through the write port, which BISMO has beside the read port.

    What cannot overlap is added once a layer, since the groups of a layer follow each other without a gap: the fetch
    of the first step's operands, (D_m + D_n) · D_k bits, and the write of the last tile's D_m · D_n accumulators.

    Energy is that of the array while it executes, padding included because idle units are clocked too, plus that of
    DRAM for every bit fetched or written. `tops_per_watt` is usually measured at the board: it then already holds
    static power and idle DRAM for as long as the array executes, but nothing covers them while a layer waits for
    memory, so the energy of fetch-bound layers is a lower bound.

    Not modelled: on-chip buffers too small to hold what is fetched once, DRAM latency, converting activations to bit
    planes, and requantizing results before they are written.

    Attributes:
        name: As in `Hardware`, like `pairs` and `limits`.
        rows: D_m.
        depth: D_k.
        columns: D_n.
        clock_mhz: Clock of the overlay and its memory ports.
        dram_bits_per_cycle: Width of the read port.
        result_bits_per_cycle: Width of the write port.
        accumulator_bits: Width of one result.
        tops_per_watt: Binary operations per joule, in 10¹²; a binary multiply-accumulate is two.
        dram_pj_per_bit: Energy of moving one bit to or from DRAM.

    References:
        Umuroglu, Rasnayake, Själander: BISMO: A Scalable Bit-Serial Matrix Multiplication Overlay for Reconfigurable
        Computing, FPL 2018, arXiv:1806.08862. Names D_m, D_k, D_n and the three stages are theirs.
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    rows: int = field(metadata={"unit": "units"})
    depth: int = field(metadata={"unit": "bits"})
    columns: int = field(metadata={"unit": "units"})
    clock_mhz: float = field(metadata={"unit": "MHz"})
    dram_bits_per_cycle: int = field(metadata={"unit": "bits/cycle"})
    result_bits_per_cycle: int = field(metadata={"unit": "bits/cycle"})
    accumulator_bits: int = field(metadata={"unit": "bits"})
    tops_per_watt: float = field(metadata={"unit": "TOPS/W"})
    dram_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})

    @property
    def bytes_per_second(self) -> float:
        """Of the read port."""
        return self.dram_bits_per_cycle / 8 * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Of a full array: one pair of bit planes a cycle."""
        binary = self.rows * self.depth * self.columns * self.clock_mhz * 1e6
        return binary / ((bits.w_bits or 1) * (bits.a_bits or 1))

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        gemm = _Gemm(layer.groups, layer.out_channels // layer.groups, layer.reduction, batch * layer.positions)
        steps = self._execute_cycles(gemm, w_bits, a_bits)
        fetched, written = self._fetched_bits(gemm, w_bits, a_bits), self._written_bits(gemm)

        memory = max(fetched / self.dram_bits_per_cycle, written / self.result_bits_per_cycle)
        prologue = (self.rows + self.columns) * self.depth / self.dram_bits_per_cycle
        epilogue = self.rows * self.columns * self.accumulator_bits / self.result_bits_per_cycle
        operations = 2 * steps * self.rows * self.columns * self.depth
        energy_pj = operations / self.tops_per_watt + (fetched + written) * self.dram_pj_per_bit
        return LayerCost(
            latency_ms=(prologue + max(steps, memory) + epilogue) / (self.clock_mhz * 1e3),
            energy_mj=energy_pj * 1e-9,
            size_bytes=size_bytes(layer, bits),
            bops=bops(layer, bits),
            compute_ms=steps / (self.clock_mhz * 1e3),
            memory_ms=memory / (self.clock_mhz * 1e3),
            memory_bytes=(fetched + written) / 8,
        )

    def _execute_cycles(self, gemm: _Gemm, w_bits: int, a_bits: int) -> int:
        tiles = _ceil(gemm.m, self.rows) * _ceil(gemm.n, self.columns)
        return gemm.groups * tiles * _ceil(gemm.k, self.depth) * w_bits * a_bits

    def _fetched_bits(self, gemm: _Gemm, w_bits: int, a_bits: int) -> int:
        return gemm.groups * _ceil(gemm.k, self.depth) * self.depth * (gemm.m * w_bits + gemm.n * a_bits)

    def _written_bits(self, gemm: _Gemm) -> int:
        return gemm.groups * gemm.m * gemm.n * self.accumulator_bits


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)
