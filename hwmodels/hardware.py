"""The interface of hardware: it prices one layer at one pair of widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from haq.errors import HardwareError
from haq.io.user_code import guarded
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["TIES", "Bound", "Hardware", "LayerCost", "check_pair", "check_ties", "listed_pairs", "price_layer"]

TIES = ("shared-input",)
"""What may force layers to the same widths: `shared-input`, that they read one tensor, which is stored once."""

Bound = Literal["compute", "memory"]

_EACH_CALL = ("latency_ms", "energy_mj")
"""What every call of a layer costs anew; its size and area, and metrics of a user's own, are those of the layer."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs, and why.

    Attributes:
        values: Metric field → cost, such as `latency_ms` and `energy_mj` of one batch, or a metric of your own; see
            `haq.metrics.layer_fields`. A cost model gives the same fields for all layers, but `buffer_bytes` (working
            memory that a layer needs beside its input and output) may be left out where it is 0. What depends on the
            network alone may be left out too: a cost table counts `size_bytes`, `bops` and `bits_per_weight` itself.
        compute_ms: Time that the arithmetic alone would take.
        memory_ms: Time that moving operands and results alone would take.
        memory_bytes: Bytes moved to and from memory for one batch.
    """

    values: Mapping[str, float]
    compute_ms: float = 0.0
    memory_ms: float = 0.0
    memory_bytes: float = 0.0

    def __getitem__(self, field: str) -> float:
        """Returns one of the values."""
        return self.values[field]

    @property
    def bound(self) -> Bound:
        """Which of the two takes longer and so sets the pace."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


class Hardware(Protocol):
    """Prices layers; see `haq.metrics.Metric.combine` for the cost of the whole network.

    Two attributes are optional: `batch`, the usual number of samples at once, by default 1; and `ties`, some of `TIES`,
    which name the layers that must have the same widths, by default none.
    """

    @property
    def name(self) -> str:
        """Short and unique, such as `edge`; cost tables carry it."""
        ...

    @property
    def pairs(self) -> tuple[LayerBits, ...]:
        """Legal pairs of widths, ascending; a search proposes no others."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """What the device holds: key of `haq.metrics.METRICS` → largest value, in the metric's kept unit."""
        ...

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the memory that layers read from: the slope of the roofline."""
        ...

    def macs_per_second(self, bits: LayerBits) -> float:
        """Returns the most multiply-accumulates per second at the widths `bits`: the ceiling of the roofline."""
        ...

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        """Prices `layer` at the widths `bits`.

        Args:
            layer: The layer.
            bits: Its widths.
            batch: Samples at once.

        Raises:
            HardwareError: The hardware cannot run the layer at these widths.
        """
        ...


def check_ties(ties: object, where: str) -> tuple[str, ...]:
    """Returns what ties layers on a hardware.

    Args:
        ties: Some of `TIES`.
        where: What says so, for the message.

    Raises:
        HardwareError: It is something else.
    """
    listed = tuple(ties) if isinstance(ties, list | tuple) else ties
    if not isinstance(listed, tuple) or any(tie not in TIES for tie in listed):
        raise HardwareError(f"{where}: ties={ties!r}: must be a list of {', '.join(TIES)}")
    return listed


def price_layer(hardware: Hardware, layer: LayerSpec, bits: LayerBits, batch: int) -> LayerCost:
    """Returns what a layer costs, by a cost model of anyone's.

    Args:
        hardware: The cost model.
        layer: The layer.
        bits: Its widths.
        batch: Samples at once.

    Raises:
        HardwareError: The hardware does not run the layer at these widths, or its code fails.
    """
    cost = _priced(hardware, layer, bits, batch)
    if layer.calls == 1:
        return cost
    # Calls follow each other, as the steps of a recurrent network do, so that their products are not one large product
    single = _priced(hardware, replace(layer, macs=layer.macs // layer.calls), bits, batch)
    each = {name: layer.calls * single.values[name] for name in _EACH_CALL if name in single.values}
    return LayerCost(
        {**cost.values, **each},
        *(layer.calls * of for of in (single.compute_ms, single.memory_ms, single.memory_bytes)),
    )


def _priced(hardware: Hardware, layer: LayerSpec, bits: LayerBits, batch: int) -> LayerCost:
    cost: object = guarded(f"hardware {hardware.name!r}", HardwareError, lambda: hardware.cost(layer, bits, batch))
    if not isinstance(cost, LayerCost):
        raise HardwareError(f"hardware {hardware.name!r} returned {type(cost).__name__}; return a LayerCost from cost")
    return cost


def check_pair(hardware: Hardware, layer: LayerSpec, bits: LayerBits) -> tuple[int, int]:
    """Returns the widths of weights and activations.

    Args:
        hardware: With its legal pairs.
        layer: For the message.
        bits: Widths to check.

    Raises:
        HardwareError: The hardware does not run these widths.
    """
    if bits not in hardware.pairs or bits.w_bits is None or bits.a_bits is None:
        shown = "/".join("float" if width is None else str(width) for width in (bits.w_bits, bits.a_bits))
        raise HardwareError(
            f"layer {layer.name!r} has {shown} bits (weights/activations), but hardware {hardware.name!r} runs "
            f"{listed_pairs(hardware.pairs)}; give the layer widths of these"
        )
    return bits.w_bits, bits.a_bits


def listed_pairs(pairs: tuple[LayerBits, ...]) -> str:
    """Writes legal pairs as hardware files do, weights before activations.

    Examples:
        >>> listed_pairs(tuple(LayerBits(w, a) for w in (1, 2, 3, 8) for a in (4, 8)))
        '1-3,8/4,8'
        >>> listed_pairs((LayerBits(4, 8), LayerBits(8, 8), LayerBits(8, 16)))
        '4/8 and 8/8,16'
    """
    rows: dict[str, list[int]] = {}
    for w_bits in dict.fromkeys(pair.w_bits or 0 for pair in pairs):
        rows.setdefault(_ranges([pair.a_bits or 0 for pair in pairs if pair.w_bits == w_bits]), []).append(w_bits)
    return " and ".join(f"{_ranges(weights)}/{inputs}" for inputs, weights in rows.items())


def _ranges(widths: list[int]) -> str:
    """Writes ascending widths as `parse_bits` reads them."""
    runs: list[list[int]] = []
    for width in widths:
        if runs and width == runs[-1][-1] + 1:
            runs[-1].append(width)
        else:
            runs.append([width])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
