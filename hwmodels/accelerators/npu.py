"""Fixed-point neural processors: one array of 8-bit multipliers, weights streamed from flash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, input_values, output_values, result_bits
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Npu"]

_MULTIPLIER_BITS = 8


@dataclass(frozen=True)
class Npu:
    """An array of 8 × 8-bit multipliers for P output positions, M output channels and K inputs per cycle.

    Narrower operands do not run faster: 4-bit weights are unpacked on their way into the array, so they only save flash
    traffic. Each 16-bit operand takes two turns. Samples follow one another, and each streams the weights again.
    In cycles, for one sample:

    - compute: groups · ⌈positions / P⌉ · ⌈channels / M⌉ · ⌈inputs / K⌉ · turns, with channels and inputs of a group. A
      depthwise layer uses one of the K multipliers of each channel: ⌈positions / P⌉ · ⌈channels / M⌉ · kernel area;
    - weights: their bits through the flash port;
    - activations: inputs once for every `pass_channels` output channels of a group, results once, through the port of
      the on-chip memory.

    The three overlap, so the slowest sets the pace.

    Energy is that of the multipliers in use and of every bit that is moved.

    Not modelled: commands, filling the array, memory latency, and weight compression beyond packing.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        positions: P.
        channels: M.
        inputs: K.
        pass_channels: Output channels whose sums the array can hold at once.
        clock_mhz: Clock of the array.
        flash_bytes_per_cycle: Bandwidth of the memory with the weights.
        sram_bytes_per_cycle: Bandwidth of the memory with the activations.
        mac_pj: Energy of one 8 × 8-bit multiply-accumulate.
        flash_pj_per_bit: Energy of reading one bit of weights.
        sram_pj_per_bit: Energy of moving one bit of activations.

    References:
        Arm: Ethos-U55, a processor of this kind; Vela, its compiler, whose performance model distinguishes the same
        bounds. Neither gives all that is needed here; the hardware file names what was chosen.
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    positions: int = field(metadata={"unit": "positions"})
    channels: int = field(metadata={"unit": "channels"})
    inputs: int = field(metadata={"unit": "inputs"})
    pass_channels: int = field(metadata={"unit": "channels"})
    clock_mhz: float = field(metadata={"unit": "MHz"})
    flash_bytes_per_cycle: float = field(metadata={"unit": "B/cycle"})
    sram_bytes_per_cycle: float = field(metadata={"unit": "B/cycle"})
    mac_pj: float = field(metadata={"unit": "pJ"})
    flash_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})
    sram_pj_per_bit: float = field(metadata={"unit": "pJ/bit"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of both memories together, because they work at the same time."""
        return (self.flash_bytes_per_cycle + self.sram_bytes_per_cycle) * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of a full array."""
        return self.positions * self.channels * self.inputs * self.clock_mhz * 1e6 / _turns(bits)

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        gemm = Gemm.of(layer, 1)
        cycles = batch * _turns(bits) * self._cycles(layer, gemm)
        weights = batch * layer.weights_read(1) * w_bits
        rereads = ceil_div(gemm.m, self.pass_channels)
        results = output_values(layer, batch) * result_bits(layer, a_bits)
        activations = input_values(layer, batch) * rereads * a_bits + results

        memory = max(weights / 8 / self.flash_bytes_per_cycle, activations / 8 / self.sram_bytes_per_cycle)
        energy_pj = (
            batch * layer.macs * _turns(bits) * self.mac_pj
            + weights * self.flash_pj_per_bit
            + activations * self.sram_pj_per_bit
        )
        values = {
            "latency_ms": max(cycles, memory) / (self.clock_mhz * 1e3),
            "energy_mj": energy_pj * 1e-9,
            **counted(layer, bits),
        }
        return LayerCost(
            values,
            compute_ms=cycles / (self.clock_mhz * 1e3),
            memory_ms=memory / (self.clock_mhz * 1e3),
            memory_bytes=(weights + activations) / 8,
        )

    def _cycles(self, layer: LayerSpec, gemm: Gemm) -> int:
        """Returns the cycles of one turn of one sample."""
        positions = ceil_div(gemm.n, self.positions)
        if layer.kind == "depthwise":
            return positions * ceil_div(layer.out_channels, self.channels) * gemm.k
        return gemm.groups * positions * ceil_div(gemm.m, self.channels) * ceil_div(gemm.k, self.inputs)


def _turns(bits: LayerBits) -> int:
    widths = (bits.w_bits or _MULTIPLIER_BITS, bits.a_bits or _MULTIPLIER_BITS)
    return ceil_div(widths[0], _MULTIPLIER_BITS) * ceil_div(widths[1], _MULTIPLIER_BITS)
