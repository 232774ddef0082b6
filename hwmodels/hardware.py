"""What a piece of hardware is to a search: something that prices one layer at one pair of widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Hardware", "LayerCost"]


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs; the fields are those of `haq.constraints.METRICS`.

    Attributes:
        latency_ms: Time for one batch.
        energy_mj: Energy for one batch.
        size_bytes: Stored parameters, the same on all hardware; see `haq.hwmodels.size_bytes`.
        bops: Bit operations for one sample, likewise; see `haq.hwmodels.bops`.
    """

    latency_ms: float
    energy_mj: float
    size_bytes: float
    bops: float


class Hardware(Protocol):
    """Prices layers; costs of different layers add up."""

    @property
    def name(self) -> str:
        """Short and unique, such as `edge`; cost tables carry it."""
        ...

    @property
    def supported_widths(self) -> tuple[int, ...]:
        """Ascending widths that weights and activations may have."""
        ...

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices `layer` at the widths `bits` for `batch` samples at once.

        Raises:
            HardwareError: The hardware cannot run the layer at these widths.
        """
        ...
