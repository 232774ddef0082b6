"""Spatial fusion of 2-bit multipliers: the Bit Fusion accelerator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, input_values, output_values, result_bits
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["BitFusion"]

_WHOLE = 8  # bits of both operands of a product that takes all 16 bricks of a unit
_SUM_BITS = 32


@dataclass(frozen=True)
class BitFusion:
    """A systolic array of fusion units, each of 16 bricks that multiply 2 bits by 2 bits.

    In each cycle, the bricks of a unit make one product of 8 by 8 bits, two of 4 by 8, four of 4 by 4, or sixteen of 2
    by 2: p = 64 / (w · a). A 16-bit operand takes two cycles for its halves. Other widths are rounded up to 2, 4, 8 or
    16.

    A layer becomes one matrix product per group, as for `Bismo`, with small groups joined into block-diagonal ones.
    Inputs enter at the R rows, which divide the K inputs of a dot product, p for each unit. The C columns divide the M
    output channels, and their partial sums run down to the output buffer. In cycles:

    - compute: ⌈M / C⌉ · ⌈K / (R · p)⌉ · N per product, times 2 for each 16-bit operand;
    - memory: all bits that pass the one port of the DRAM. Inputs are read as they lie in memory, not expanded by
      im2col; results have the width of the inputs. Operands that do not fit into their buffer are read again: the
      cheaper of W + A · ⌈W / weight buffer⌉ and A + W · ⌈A / input buffer⌉.

    The two overlap, because the buffers are double, and the slower one sets the pace.

    The energy counts every unit in every compute cycle, including idle ones; a weight read for each product; an
    input read for each product of a unit in the first of the C columns that share it; a partial sum read and written
    for each step over K; and DRAM.

    Not modelled: filling and draining the array, filling the buffers (less than one percent of the energy of the DRAM
    access that it follows), buffer space lost to double buffering, DRAM latency, and pooling and activation units.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        rows: R.
        columns: C.
        clock_mhz: Clock of array and DRAM port.
        dram_bits_per_cycle: Width of the port.
        weight_buffer_bytes: Total size of the weight buffers.
        input_buffer_bytes: Total size of the input buffers.
        unit_pj: Energy of one fusion unit in one cycle, in any configuration.
        weight_pj_per_bit: Energy of reading one bit of a weight buffer.
        input_pj_per_bit: Energy of reading one bit of an input buffer.
        sum_pj_per_bit: Energy of reading and writing one bit of an output buffer.
        dram_pj_per_bit: Energy of moving one bit to or from DRAM.

    References:
        Sharma, Park, Suda, Lai, Chau, Chandra, Esmaeilzadeh: Bit Fusion: Bit-Level Dynamically Composable Architecture
        for Accelerating Deep Neural Networks, ISCA 2018, arXiv:1712.01507.
        Their simulator, github.com/hsharma35/bitfusion, counts compute cycles by the same formula.
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    rows: int = field(metadata={"unit": "units"})
    columns: int = field(metadata={"unit": "units"})
    clock_mhz: float = field(metadata={"unit": "MHz"})
    dram_bits_per_cycle: int = field(metadata={"unit": "bits/cycle"})
    weight_buffer_bytes: int = field(metadata={"unit": "B"})
    input_buffer_bytes: int = field(metadata={"unit": "B"})
    unit_pj: float = field(metadata={"unit": "pJ"})
    weight_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})
    input_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})
    sum_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})
    dram_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the DRAM port."""
        return self.dram_bits_per_cycle / 8 * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of a full array."""
        w_bits, a_bits = _fused(bits.w_bits or _WHOLE), _fused(bits.a_bits or _WHOLE)
        per_cycle = self.rows * self.columns * _products(w_bits, a_bits) / (_turns(w_bits) * _turns(a_bits))
        return per_cycle * self.clock_mhz * 1e6

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        check_pair(self, layer, bits)
        w_bits, a_bits = _fused(bits.w_bits or _WHOLE), _fused(bits.a_bits or _WHOLE)
        turns = _turns(w_bits) * _turns(a_bits)
        depth = self.rows * _products(w_bits, a_bits)
        gemm = Gemm.of(layer, batch).packed(self.columns, depth)
        passes, steps = ceil_div(gemm.m, self.columns), ceil_div(gemm.k, depth)
        cycles = gemm.groups * passes * steps * gemm.n * turns
        moved = self._moved_bits(layer, w_bits, a_bits, batch)

        weight_bits = batch * layer.macs * w_bits * _turns(a_bits)
        input_bits = gemm.groups * gemm.n * gemm.k * passes * a_bits * _turns(w_bits)
        sum_bits = gemm.groups * gemm.n * gemm.m * steps * turns * _SUM_BITS
        energy_pj = (
            cycles * self.rows * self.columns * self.unit_pj
            + weight_bits * self.weight_pj_per_bit
            + input_bits * self.input_pj_per_bit
            + sum_bits * self.sum_pj_per_bit
            + moved * self.dram_pj_per_bit
        )
        compute_ms = cycles / (self.clock_mhz * 1e3)
        memory_ms = moved / self.dram_bits_per_cycle / (self.clock_mhz * 1e3)
        values = {
            "latency_ms": max(compute_ms, memory_ms),
            "energy_mj": energy_pj * 1e-9,
            **counted(layer, bits),
        }
        return LayerCost(values, compute_ms=compute_ms, memory_ms=memory_ms, memory_bytes=moved / 8)

    def _moved_bits(self, layer: LayerSpec, w_bits: int, a_bits: int, batch: int) -> int:
        weights, inputs = layer.weights_read(batch) * w_bits, input_values(layer, batch) * a_bits
        # Each group has its own operands, and groups run one after the other
        weight_turns = ceil_div(weights, layer.groups * self.weight_buffer_bytes * 8)
        input_turns = ceil_div(inputs, layer.groups * self.input_buffer_bytes * 8)
        read = min(weights + inputs * weight_turns, inputs + weights * max(1, input_turns))
        return read + output_values(layer, batch) * _fused(result_bits(layer, a_bits))


def _fused(bits: int) -> int:
    """Rounds up to a width that bricks can be fused to."""
    return next(width for width in (2, 4, 8, 16) if bits <= width)


def _turns(bits: int) -> int:
    """Returns how many cycles an operand takes in a unit."""
    return max(1, bits // _WHOLE)


def _products(w_bits: int, a_bits: int) -> int:
    """Returns the products that a unit makes in a cycle; of a 16-bit operand, those of one half."""
    return _WHOLE**2 // (min(w_bits, _WHOLE) * min(a_bits, _WHOLE))
