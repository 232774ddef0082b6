"""Arm Cortex-M microcontrollers with the SIMD instructions of ARMv7E-M, and kernels for 2, 4 and 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, output_values
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["CortexM"]

_COLUMNS = 2  # output positions that a kernel computes at once
_WORD_BYTES = 2  # of one activation, once it is unpacked


@dataclass(frozen=True)
class CortexM:
    """A core with 16-bit arithmetic, so narrower operands take less room, but not less time.

    Kernels multiply pairs of 16-bit numbers (SMLAD). Activations are unpacked to 16 bits while im2col gathers the
    inputs of two output positions; weights are unpacked as they are used, once for both positions. In cycles:

    - convolution and linear: MACs · mac + ⌈N / 2⌉ · M · K · unpack(w) + N · K · expand(a) per group;
    - depthwise: MACs · (depthwise + unpack(w)) + N · K · expand(a) per group, because positions share no weights;
    - every result: requantize;
    - flash: the bytes of the weights, read again for every two positions if the data cache does not hold them all.

    An in-order core waits for its loads, so compute and flash add up. Fewer weight bits cost time to unpack and save
    flash and its traffic; fewer activation bits save only memory. Latency therefore need not fall with the widths: a
    search here trades accuracy against the limits of flash and memory.

    A layer's working memory is the buffer of im2col: two positions of 16-bit inputs, or one if there is only one, as
    for a linear layer; one position of bytes for a depthwise layer.

    Energy is the power of the running chip for that time.

    Not modelled: layers whose channels the SIMD loops do not divide, instruction fetches, and other users of the bus.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        clock_mhz: Clock of the core.
        mac_cycles: Multiply-accumulate, with the loads of activations and the loop, but without unpacking.
        depthwise_cycles: The same in a depthwise layer.
        unpack_8_cycles: Loading and unpacking one 8-bit weight.
        unpack_4_cycles: The same for 4 bits.
        unpack_2_cycles: The same for 2 bits.
        expand_8_cycles: Gathering and unpacking one 8-bit activation.
        expand_4_cycles: The same for 4 bits.
        expand_2_cycles: The same for 2 bits.
        requantize_cycles: Scaling, rounding, clipping and storing one result.
        flash_bytes_per_cycle: Bandwidth of the flash memory for data.
        data_cache_bytes: Size of the data cache between core and flash.
        power_mw: Power of the running chip.

    References:
        Lai, Suda, Chandra: CMSIS-NN: Efficient Neural Network Kernels for Arm Cortex-M CPUs, 2018, arXiv:1801.06601.
        Capotondi, Rusci, Fariselli, Benini: CMix-NN: Mixed Low-Precision CNN Library for Memory-Constrained Edge
        Devices, IEEE TCAS-II 67(5), 2020, doi:10.1109/TCSII.2020.2983648; counts are of its kernels.
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    clock_mhz: float = field(metadata={"unit": "MHz"})
    mac_cycles: float = field(metadata={"unit": "cycles"})
    depthwise_cycles: float = field(metadata={"unit": "cycles"})
    unpack_8_cycles: float = field(metadata={"unit": "cycles"})
    unpack_4_cycles: float = field(metadata={"unit": "cycles"})
    unpack_2_cycles: float = field(metadata={"unit": "cycles"})
    expand_8_cycles: float = field(metadata={"unit": "cycles"})
    expand_4_cycles: float = field(metadata={"unit": "cycles"})
    expand_2_cycles: float = field(metadata={"unit": "cycles"})
    requantize_cycles: float = field(metadata={"unit": "cycles"})
    flash_bytes_per_cycle: float = field(metadata={"unit": "B/cycle"})
    data_cache_bytes: int = field(metadata={"unit": "B"})
    power_mw: float = field(metadata={"unit": "mW"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the flash memory."""
        return self.flash_bytes_per_cycle * self.clock_mhz * 1e6

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of a convolution's inner loop."""
        return self.clock_mhz * 1e6 / (self.mac_cycles + self._unpack_cycles(bits.w_bits or 8) / _COLUMNS)

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        gemm = Gemm.of(layer, 1)
        columns = ceil_div(gemm.n, 1 if layer.kind == "depthwise" else _COLUMNS)
        unpacked = output_values(layer, 1) if layer.is_lookup else gemm.groups * gemm.m * gemm.k * columns
        mac_cycles = self.depthwise_cycles if layer.kind == "depthwise" else self.mac_cycles
        cycles = (
            layer.macs * mac_cycles
            + unpacked * self._unpack_cycles(w_bits)
            + gemm.groups * gemm.n * gemm.k * self._expand_cycles(a_bits)
            + output_values(layer, 1) * self.requantize_cycles
        )
        packed = layer.weights_read(1) * w_bits / 8
        again = packed > self.data_cache_bytes and not layer.is_lookup
        flash_bytes = batch * packed * (columns if again else 1)
        compute_ms = batch * cycles / (self.clock_mhz * 1e3)
        memory_ms = flash_bytes / self.bytes_per_second * 1e3
        values = {
            "latency_ms": compute_ms + memory_ms,
            "energy_mj": (compute_ms + memory_ms) * self.power_mw * 1e-3,
            **counted(layer, bits),
            "buffer_bytes": _buffer_bytes(layer, gemm),
        }
        return LayerCost(values, compute_ms=compute_ms, memory_ms=memory_ms, memory_bytes=flash_bytes)

    def _unpack_cycles(self, w_bits: int) -> float:
        if w_bits > 4:
            return self.unpack_8_cycles
        return self.unpack_4_cycles if w_bits > 2 else self.unpack_2_cycles

    def _expand_cycles(self, a_bits: int) -> float:
        if a_bits > 4:
            return self.expand_8_cycles
        return self.expand_4_cycles if a_bits > 2 else self.expand_2_cycles


def _buffer_bytes(layer: LayerSpec, gemm: Gemm) -> int:
    if layer.kind == "depthwise":
        return gemm.groups * gemm.k
    return min(gemm.n, _COLUMNS) * gemm.k * _WORD_BYTES
