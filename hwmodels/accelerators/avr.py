"""8-bit AVR microcontrollers with a hardware multiplier, such as the ATmega328P."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import output_values
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Avr"]


@dataclass(frozen=True)
class Avr:
    """A core with 8-bit registers: weights packed in flash, activations in SRAM, one product at a time.

    One multiply-accumulate takes, in cycles:

    - a load of its activation, ⌈a / 8⌉ bytes, and w / 8 of a load from flash;
    - unpacking the weight where it has fewer than 8 bits;
    - multiplying, except by a 1-bit weight, whose sign decides between adding and subtracting;
    - adding to a 32-bit sum, byte by byte, and the loop.

    Then every result is requantized. Nothing overlaps. No im2col is needed, so there is no buffer. Fewer weight bits
    save flash first. They save time only where unpacking costs less than the loads it saves, or where no multiplication
    is left.

    A layer whose weights alone do not fit into flash is refused, because nothing else can deliver them.

    Energy is the power of the running chip for that time.

    Not modelled: padding and addresses at the borders of an image, and the program's own flash and memory.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        clock_mhz: Clock of the core.
        flash_load_cycles: LPM, one byte of weights.
        sram_load_cycles: LD, one byte of activations.
        unpack_cycles: Shifting, masking and extending the sign of a weight that shares its byte.
        multiply_cycles: MULS.
        accumulate_cycles: ADD and ADC over the bytes of a sum.
        loop_cycles: Counting and branching.
        requantize_cycles: Scaling, rounding, clipping and storing one result.
        power_mw: Power of the running chip.

    References:
        Microchip: ATmega48A/PA/88A/PA/168A/PA/328/P data sheet, and AVR Instruction Set Manual DS40002198, for the
        cycles of each instruction (column AVRe).
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    clock_mhz: float = field(metadata={"unit": "MHz"})
    flash_load_cycles: float = field(metadata={"unit": "cycles"})
    sram_load_cycles: float = field(metadata={"unit": "cycles"})
    unpack_cycles: float = field(metadata={"unit": "cycles"})
    multiply_cycles: float = field(metadata={"unit": "cycles"})
    accumulate_cycles: float = field(metadata={"unit": "cycles"})
    loop_cycles: float = field(metadata={"unit": "cycles"})
    requantize_cycles: float = field(metadata={"unit": "cycles"})
    power_mw: float = field(metadata={"unit": "mW"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of loads from flash and SRAM, in the proportion of 8-bit operands."""
        return 2 / (self.flash_load_cycles + self.sram_load_cycles) * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of the arithmetic alone, without loads."""
        return self.clock_mhz * 1e6 / self._arithmetic_cycles(bits.w_bits or 8)

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        macs, results = batch * layer.macs, output_values(layer, batch)
        looked_up = results if layer.is_lookup else 0
        unpacked = looked_up * self._unpack_cycles(w_bits)
        arithmetic = macs * self._arithmetic_cycles(w_bits) + unpacked + results * self.requantize_cycles
        weight_bytes, activation_bytes = (macs + looked_up) * w_bits / 8, macs * a_bits / 8
        loads = weight_bytes * self.flash_load_cycles + activation_bytes * self.sram_load_cycles
        compute_ms, memory_ms = (cycles / (self.clock_mhz * 1e3) for cycles in (arithmetic, loads))
        values = {
            "latency_ms": compute_ms + memory_ms,
            "energy_mj": (compute_ms + memory_ms) * self.power_mw * 1e-3,
            **counted(layer, bits),
        }
        return LayerCost(
            values,
            compute_ms=compute_ms,
            memory_ms=memory_ms,
            memory_bytes=weight_bytes + activation_bytes,
        )

    def _arithmetic_cycles(self, w_bits: int) -> float:
        multiply = self.multiply_cycles if w_bits > 1 else 0.0
        return self._unpack_cycles(w_bits) + multiply + self.accumulate_cycles + self.loop_cycles

    def _unpack_cycles(self, w_bits: int) -> float:
        return self.unpack_cycles if w_bits < 8 else 0.0
