"""Pricing a network: by a cost model, or by a table that was measured or brought along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haq.constraints import METRICS
from haq.errors import HardwareError
from haq.hwmodels.accelerators.catalogue import describe_hardware, get_hardware
from haq.hwmodels.accelerators.footprint import footprint
from haq.hwmodels.hardware import Hardware
from haq.hwmodels.tables.memory import MemoryPlan
from haq.hwmodels.tables.table import CostTable
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits

__all__ = ["TABLE_SUFFIXES", "Prices", "default_batch", "excess", "is_table", "limits_of", "price"]

TABLE_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class Prices:
    """What the layers of a network cost on some hardware, and what it holds.

    Attributes:
        table: Prices of every layer.
    """

    table: CostTable

    @property
    def limits(self) -> Mapping[str, float]:
        """As in `Hardware`; a table carries those of the hardware that it was built from."""
        return self.table.limits or {}


def is_table(name: str) -> bool:
    """Whether `--hardware` names a cost table rather than hardware with a cost model."""
    return Path(name).suffix.lower() in TABLE_SUFFIXES


def default_batch(name: str) -> int:
    """Returns the batch that a table is for, or that is usual on the hardware; raises like `price`."""
    if not is_table(name):
        return describe_hardware(name).batch
    from haq.hwmodels.tables.formats import load_table

    return load_table(Path(name)).batch


def limits_of(name: str) -> Mapping[str, float]:
    """Returns what the hardware holds, as in `Hardware`, also where a table says it; raises like `price`."""
    if not is_table(name):
        return get_hardware(name).limits
    from haq.hwmodels.tables.formats import load_table

    return load_table(Path(name)).limits or {}


def price(
    name: str, layers: Sequence[LayerSpec], bits: Sequence[int], batch: int, memory: MemoryPlan | None = None
) -> Prices:
    """Prices `layers` at the legal ones of all pairs of `bits`.

    Args:
        name: Of hardware that ships with the package, or the path of a hardware file or of a cost table.
        layers: Of the network.
        bits: Widths of weights and activations to price; a table is taken as it is.
        batch: Samples at once; must be the table's.
        memory: Which activations are alive at once, where that is known.

    Raises:
        HardwareError: There is no such hardware, it runs none of the widths, or the table is not for these layers.
    """
    if not is_table(name):
        return Prices(CostTable.build(get_hardware(name), layers, bits, bits, batch, memory))
    from haq.hwmodels.tables.formats import load_table

    table = load_table(Path(name))
    try:
        counted = _footprint(table, layers)
        if table.batch != batch:
            raise HardwareError(f"the costs are for a batch of {table.batch}, not {batch}; give --batch {table.batch}")
    except HardwareError as error:
        raise HardwareError(f"{name}: {error}") from None
    average = METRICS["bits"].field  # fractions, which text files may cut short: those of the network are exact
    metrics = {**counted, **table.metrics, average: counted[average]}
    return Prices(replace(table, metrics=metrics, memory=table.memory or memory))


def excess(
    hardware: Hardware, layers: Sequence[LayerSpec], pair: LayerBits, batch: int, memory: MemoryPlan | None = None
) -> dict[str, float]:
    """Returns what a network takes where it is more than the hardware holds: metric field → cost.

    Args:
        hardware: With its limits.
        layers: Of the network.
        pair: Widths of every layer.
        batch: Samples at once.
        memory: Which activations are alive at once, where that is known.
    """
    table = CostTable.build(hardware, layers, (pair.w_bits or 0,), (pair.a_bits or 0,), batch, memory)
    costs = table.cost(BitPolicy({layer.name: pair for layer in layers}))
    limits = {METRICS[metric].field: limit for metric, limit in hardware.limits.items()}
    return {field: costs[field] for field, limit in limits.items() if costs.get(field, 0.0) > limit}


def _footprint(table: CostTable, layers: Sequence[LayerSpec]) -> dict[str, np.ndarray]:
    """Returns what depends on the network alone for every cell, in the table's order of layers.

    Raises:
        HardwareError: The table is of another network: of other layers, or of others of the same name.
    """
    mend = "measure or build the table for this network"
    specs = {layer.name: layer for layer in layers}
    if missing := [name for name in specs if name not in table.layers]:
        raise HardwareError(f"layer {missing[0]!r} of the network is not in the cost table; {mend}")
    if foreign := [name for name in table.layers if name not in specs]:
        raise HardwareError(f"layer {foreign[0]!r} of the cost table is not in the network; {mend}")
    counted = footprint([specs[name] for name in table.layers], table.w_bits, table.a_bits)
    pair = table.pairs[0]
    w, a = table.w_bits.index(pair.w_bits or 0), table.a_bits.index(pair.a_bits)
    for metric in (metric for metric in ("size_bytes", "bops") if metric in table.metrics):
        found, expected = table.metrics[metric][:, w, a], counted[metric][:, w, a]
        for row in np.flatnonzero(found != expected):
            raise HardwareError(
                f"{metric} of layer {table.layers[row]!r} is {found[row]:g} in the cost table, but "
                f"{expected[row]:g} in the network: the layer has another shape; {mend}"
            )
    legal = np.isfinite(next(iter(table.metrics.values())))
    return {metric: np.where(legal, costs, np.inf) for metric, costs in counted.items()}
