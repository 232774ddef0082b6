"""Bit-serial matrix multiplication on an FPGA: the BISMO overlay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, result_bits
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Bismo"]


@dataclass(frozen=True)
class Bismo:
    """An array of D_m × D_n dot-product units; each computes D_k binary products per cycle.

    A layer becomes one matrix product per group by im2col: M output channels, K inputs of a dot product, N output
    positions of the whole batch. Groups smaller than a tile, such as those of a depthwise convolution, are joined into
    block-diagonal products of at most D_m rows and D_k inputs; their zeros are fetched and multiplied like any number.
    Three stages work at the same time, so the slowest sets the pace. In cycles, per product:

    - execute: ⌈M / D_m⌉ · ⌈N / D_n⌉ · ⌈K / D_k⌉ · w · a, one cycle for a pair of bit planes of a tile;
    - fetch: W = M · w · ⌈K / D_k⌉ · D_k bits of weights and A = N · a · ⌈K / D_k⌉ · D_k of activations, padded to
      whole steps, through the read port. Operands that the buffers do not hold are fetched again: with r tiles of
      rows or c of columns in a buffer, the cheaper of W + A · ⌈tiles of rows / r⌉ and A + W · ⌈tiles of columns / c⌉;
      or both operands for every tile, where not even one tile of all K inputs fits;
    - result: M · N results through the write port, which BISMO has beside the read port. Each is as wide as the
      activations, into whose width it is requantized, or `result_bits` where that is more.

    Two parts cannot overlap: the fetch of the first step's operands, (D_m + D_n) · D_k bits, and the write of the last
    tile's D_m · D_n results. They count once per layer, since its products follow each other without a gap.

    Energy is that of the array while it executes, padding included because idle units are clocked too, plus that of
    DRAM for every bit fetched or written. `tops_per_watt` is usually measured at the board: it then already holds
    static power and idle DRAM while the array executes, but not while a layer waits for memory, so the energy of
    fetch-bound layers is a lower bound.

    Not modelled: DRAM latency, converting activations to bit planes, the time of requantizing, and results that are
    read at another width than they were written at.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        rows: D_m.
        depth: D_k.
        columns: D_n.
        clock_mhz: Clock of the overlay and its memory ports.
        dram_bits_per_cycle: Width of the read port.
        result_bits_per_cycle: Width of the write port.
        buffer_entries: Words of D_k bits that each row and each column of the array has on chip.
        result_bits: Narrowest result: the width of the accumulator if results are written as they are, and 1 if they
            are requantized to the width of the activations.
        tops_per_watt: Binary operations per joule, in 10¹²; a binary multiply-accumulate is two.
        dram_pj_per_bit: Energy of moving one bit to or from DRAM.

    References:
        Umuroglu, Rasnayake, Själander: BISMO: A Scalable Bit-Serial Matrix Multiplication Overlay for Reconfigurable
        Computing, FPL 2018, arXiv:1806.08862. The names D_m, D_k, D_n and the three stages are from this paper.
        Umuroglu, Conficconi, Rasnayake, Preusser, Själander: Optimizing Bit-Serial Matrix Multiplication for
        Reconfigurable Computing, ACM TRETS 12(3), 2019, arXiv:1901.00370. The same overlay on the Ultra96.
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
    buffer_entries: int = field(metadata={"unit": "words"})
    result_bits: int = field(metadata={"unit": "bits"})
    tops_per_watt: float = field(metadata={"unit": "TOPS/W"})
    dram_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the read port."""
        return self.dram_bits_per_cycle / 8 * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of a full array: one pair of bit planes per cycle."""
        binary = self.rows * self.depth * self.columns * self.clock_mhz * 1e6
        return binary / ((bits.w_bits or 1) * (bits.a_bits or 1))

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        gemm = Gemm.of(layer, batch).packed(self.rows, self.depth)
        written_bits = max(result_bits(layer, a_bits), self.result_bits)
        steps = self._execute_cycles(gemm, w_bits, a_bits)
        looked_up = layer.weights_read(batch) * w_bits
        fetched = looked_up if layer.is_lookup else gemm.groups * self._fetched_bits(gemm, w_bits, a_bits)
        written = layer.out_channels * gemm.n * written_bits

        memory = max(fetched / self.dram_bits_per_cycle, written / self.result_bits_per_cycle)
        prologue = (self.rows + self.columns) * self.depth / self.dram_bits_per_cycle
        epilogue = self.rows * self.columns * written_bits / self.result_bits_per_cycle
        operations = 2 * steps * self.rows * self.columns * self.depth
        energy_pj = operations / self.tops_per_watt + (fetched + written) * self.dram_pj_per_bit
        values = {
            "latency_ms": (prologue + max(steps, memory) + epilogue) / (self.clock_mhz * 1e3),
            "energy_mj": energy_pj * 1e-9,
            **counted(layer, bits),
        }
        return LayerCost(
            values,
            compute_ms=steps / (self.clock_mhz * 1e3),
            memory_ms=memory / (self.clock_mhz * 1e3),
            memory_bytes=(fetched + written) / 8,
        )

    def _execute_cycles(self, gemm: Gemm, w_bits: int, a_bits: int) -> int:
        tiles = ceil_div(gemm.m, self.rows) * ceil_div(gemm.n, self.columns)
        return gemm.groups * tiles * ceil_div(gemm.k, self.depth) * w_bits * a_bits

    def _fetched_bits(self, gemm: Gemm, w_bits: int, a_bits: int) -> int:
        """Returns the bits that one product fetches; operands that the buffers do not hold are fetched again."""
        steps = ceil_div(gemm.k, self.depth)
        weights, activations = gemm.m * w_bits * steps * self.depth, gemm.n * a_bits * steps * self.depth
        row_tiles, column_tiles = ceil_div(gemm.m, self.rows), ceil_div(gemm.n, self.columns)
        held_rows, held_columns = self.buffer_entries // (steps * w_bits), self.buffer_entries // (steps * a_bits)
        if not (held_rows and held_columns):
            return weights * column_tiles + activations * row_tiles
        return min(
            weights + activations * ceil_div(row_tiles, held_rows),
            activations + weights * ceil_div(column_tiles, held_columns),
        )
