"""Graphics processors whose matrix units take 4- and 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haq.hwmodels.accelerators.footprint import counted
from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, input_values, output_values, result_bits
from haq.hwmodels.hardware import LayerCost, check_pair
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Gpu"]

_BYTE = 8


@dataclass(frozen=True)
class Gpu:
    """Many cores with matrix units, a cache, and one memory.

    The matrix units run at the width of the wider operand: twice as fast with 4 bits as with 8, and no faster if only
    one operand has 4. A layer is one matrix product by implicit im2col, cut into tiles of T × T results that the cores
    share. Grouped layers run on the ordinary arithmetic units instead, whose four-way 8-bit dot products gain nothing
    from fewer bits. In seconds, for f the clock:

    - compute: ⌈tiles / cores⌉ · T² · K′ / (8-bit products of a core a cycle · 8 / max(w, a)) / f, where K′ is the dot
      product's length padded to `step_bits`; a grouped layer takes its products at the rate of the ordinary units;
    - memory: weights, inputs and results once, as the cache lets tiles share what they read. Inputs are read as they
      lie in memory; results have the width of the inputs.

    The slower sets the pace, and each layer waits for its launch. Energy is board power for all of that time,
    independent of the arithmetic: an upper bound.

    Not modelled: operands that overflow the cache, other tile sizes, fused layers, and clocks under a power cap.

    Attributes:
        name: See `Hardware`.
        pairs: See `Hardware`.
        limits: See `Hardware`.
        cores: Streaming multiprocessors.
        clock_mhz: Clock of the cores.
        matrix_macs: 8-bit products of the matrix units of one core in a cycle.
        dot_macs: 8-bit products of the ordinary units of one core in a cycle.
        tile: T.
        step_bits: Bits of each operand that one matrix instruction reads along the dot product.
        memory_gb_per_second: Bandwidth of the memory.
        launch_us: Time to launch a layer.
        board_watts: Power of the board under load.

    References:
        NVIDIA: Turing GPU Architecture, whitepaper WP-09183, 2018, for tensor cores and their rates by width.
    """

    name: str
    pairs: tuple[LayerBits, ...]
    limits: Mapping[str, float]
    cores: int = field(metadata={"unit": "cores"})
    clock_mhz: float = field(metadata={"unit": "MHz"})
    matrix_macs: int = field(metadata={"unit": "MAC/cycle"})
    dot_macs: int = field(metadata={"unit": "MAC/cycle"})
    tile: int = field(metadata={"unit": "results"})
    step_bits: int = field(metadata={"unit": "bits"})
    memory_gb_per_second: float = field(metadata={"unit": "GB/s"})
    launch_us: float = field(metadata={"unit": "us"})
    board_watts: float = field(metadata={"unit": "W"})

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the memory."""
        return self.memory_gb_per_second * 1e9

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the rate of the matrix units of all cores."""
        return self.cores * self._matrix_macs(bits) * self.clock_mhz * 1e6

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices one layer; see the class.

        Raises:
            HardwareError: The pair of widths is not legal.
        """
        w_bits, a_bits = check_pair(self, layer, bits)
        compute_ms = self._cycles(layer, bits, batch) / (self.clock_mhz * 1e3)
        results = output_values(layer, batch) * result_bits(layer, a_bits)
        memory_bits = layer.weights_read(batch) * w_bits + input_values(layer, batch) * a_bits + results
        memory_bytes = memory_bits / _BYTE
        memory_ms = memory_bytes / self.bytes_per_second * 1e3
        latency_ms = self.launch_us * 1e-3 + max(compute_ms, memory_ms)
        values = {
            "latency_ms": latency_ms,
            "energy_mj": latency_ms * self.board_watts,
            **counted(layer, bits),
        }
        return LayerCost(values, compute_ms=compute_ms, memory_ms=memory_ms, memory_bytes=memory_bytes)

    def _cycles(self, layer: LayerSpec, bits: LayerBits, batch: int) -> float:
        if layer.groups > 1:
            return batch * layer.macs / (self.cores * self.dot_macs)
        gemm, step = Gemm.of(layer, batch), self.step_bits // _wider(bits)
        tiles = ceil_div(gemm.m, self.tile) * ceil_div(gemm.n, self.tile)
        depth = ceil_div(gemm.k, step) * step
        return ceil_div(tiles, self.cores) * self.tile**2 * depth / self._matrix_macs(bits)

    def _matrix_macs(self, bits: LayerBits) -> float:
        return self.matrix_macs * _BYTE / _wider(bits)


def _wider(bits: LayerBits) -> int:
    return max(bits.w_bits or _BYTE, bits.a_bits or _BYTE)
