"""What `--hardware` names: a cost model, or a cost table that was measured or brought along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haq.errors import HardwareError
from haq.hwmodels.accelerators.catalogue import describe_hardware, get_hardware
from haq.hwmodels.accelerators.footprint import footprint, footprint_of_rest
from haq.hwmodels.hardware import Hardware, check_ties
from haq.hwmodels.tables.memory import MemoryPlan
from haq.hwmodels.tables.table import CostTable
from haq.io.prefixes import refuse_object
from haq.io.user_code import guarded, is_reference, load_named
from haq.layers import LayerSpec
from haq.layers.rest import Rest
from haq.metrics import METRICS
from haq.policy import BitPolicy, LayerBits

__all__ = ["TABLE_SUFFIXES", "Pricing", "excess", "is_table", "open_hardware"]

TABLE_SUFFIXES = (".parquet", ".csv")

_TIES = "ties"
"""Under which a table keeps, among what it was made from, what ties layers on its hardware."""

_NEEDED = ("name", "pairs", "limits", "cost")  # of a cost model of the user's own; rooflines need the rest


@dataclass(frozen=True)
class Pricing:
    """Prices layers by a cost model or by a table.

    Attributes:
        named: What the user gave, for messages.
        source: The cost model or the table.
        batch: Samples at once, unless a user says otherwise.
        ties: Which layers must have the same widths; see `haq.hwmodels.hardware.TIES`.
    """

    named: str
    source: Hardware | CostTable
    batch: int
    ties: tuple[str, ...] = ()

    @property
    def limits(self) -> Mapping[str, float]:
        """What the device holds, as in `Hardware`; a table has those of the hardware that it was built from."""
        return self.source.limits or {}

    @property
    def pairs(self) -> tuple[LayerBits, ...]:
        """Legal pairs of widths."""
        return self.source.pairs

    def price(
        self,
        layers: Sequence[LayerSpec],
        bits: Sequence[int],
        batch: int,
        memory: MemoryPlan | None = None,
        rest: Rest | None = None,
    ) -> CostTable:
        """Prices `layers` at the legal ones of all pairs of `bits`, and the rest of the network.

        To a table, the rest adds what depends on the network alone. The time that a table gives for the rest is kept.

        Args:
            layers: Of the network.
            bits: Widths of weights and activations to price; a table is taken as it is.
            batch: Samples at once; must be the table's.
            memory: Which activations are alive at once, where that is known.
            rest: What the network reads beside the layers.

        Raises:
            HardwareError: The hardware runs none of the widths, or the table is not for these layers.
        """
        if not isinstance(self.source, CostTable):
            built = CostTable.build(self.source, layers, bits, bits, batch, memory, rest)
            kept = {_TIES: ",".join(self.ties)} if self.ties else {}
            return replace(built, provenance={**built.provenance, **kept}) if kept else built
        table = self.source
        try:
            counted = _footprint(table, layers, rest)
            if table.batch != batch:
                raise HardwareError(
                    f"the costs are for a batch of {table.batch}, not {batch}; give --batch {table.batch}"
                )
        except HardwareError as error:
            raise HardwareError(f"{self.named}: {error}") from None
        average = METRICS["bits"].field  # fractions, which text files may cut short: those of the network are exact
        metrics = {**counted, **table.metrics, average: counted[average]}
        left = {**table.rest, **footprint_of_rest(layers, rest)}
        return replace(table, metrics=metrics, memory=table.memory or memory, rest=left)


def is_table(name: str) -> bool:
    """Whether `--hardware` names a cost table rather than hardware with a cost model."""
    return Path(name).suffix.lower() in TABLE_SUFFIXES


def open_hardware(named: str | Path | Hardware | CostTable) -> Pricing:
    """Opens hardware by its name or file, or takes a cost model or a table as it is.

    Args:
        named: The name of hardware that ships with the package; the path of a `.yaml` file or of a cost table; or
            `file.py:name`, whose code is run: a cost model, a table, or a class or function that makes one.

    Raises:
        HardwareError: There is no such hardware, or the file is wrong.
    """
    if not isinstance(named, str | Path):
        return _own(named, type(named).__name__)
    name = str(named)
    refuse_object("hardware", name, HardwareError)
    if is_reference(name):
        found = load_named(name, "hardware", HardwareError)
        if isinstance(found, type) or (callable(found) and not hasattr(found, "cost")):
            found = guarded(f"hardware {name!r}", HardwareError, found)
        return _own(found, name)
    if not is_table(name):
        described = describe_hardware(name)
        return Pricing(name, get_hardware(name), described.batch, described.ties)
    from haq.hwmodels.tables.formats import load_table

    table = load_table(Path(name))
    return _own(table, name)


def _own(found: object, named: str) -> Pricing:
    """Takes a table, or a cost model that a user made."""
    if isinstance(found, CostTable):
        kept = found.provenance.get(_TIES)
        return Pricing(named, found, found.batch, check_ties(kept.split(","), named) if kept else ())
    if missing := [name for name in _NEEDED if not hasattr(found, name)]:
        raise HardwareError(
            f"hardware {named!r} is {type(found).__name__}, which has no {missing[0]}; give a haq.hwmodels.Hardware or "
            "a CostTable"
        )
    ties = check_ties(getattr(found, "ties", ()), f"hardware {named!r}")
    return Pricing(named, found, getattr(found, "batch", 1), ties)  # type: ignore[arg-type]  # refused above if it lacks


def excess(
    hardware: Hardware,
    layers: Sequence[LayerSpec],
    pair: LayerBits,
    batch: int,
    memory: MemoryPlan | None = None,
    rest: Rest | None = None,
) -> dict[str, float]:
    """Returns what a network takes where it is more than the hardware holds: metric field → cost.

    Args:
        hardware: With its limits.
        layers: Of the network.
        pair: Widths of every layer.
        batch: Samples at once.
        memory: Which activations are alive at once, where that is known.
        rest: What the network reads beside the layers.
    """
    table = CostTable.build(hardware, layers, (pair.w_bits or 0,), (pair.a_bits or 0,), batch, memory, rest)
    costs = table.cost(BitPolicy({layer.name: pair for layer in layers}))
    limits = {METRICS[metric].field: limit for metric, limit in hardware.limits.items()}
    return {field: costs[field] for field, limit in limits.items() if costs.get(field, 0.0) > limit}


def _footprint(table: CostTable, layers: Sequence[LayerSpec], rest: Rest | None) -> dict[str, np.ndarray]:
    """Returns what depends on the network alone for every cell, in the table's order of layers.

    Raises:
        HardwareError: The table is of another network: of other layers, or of others of the same name.
    """
    fix = "measure or build the table for this network"
    specs = {layer.name: layer for layer in layers}
    if missing := [name for name in specs if name not in table.layers]:
        raise HardwareError(f"layer {missing[0]!r} of the network is not in the cost table; {fix}")
    if foreign := [name for name in table.layers if name not in specs]:
        raise HardwareError(f"layer {foreign[0]!r} of the cost table is not in the network; {fix}")
    counted = footprint([specs[name] for name in table.layers], table.w_bits, table.a_bits, rest)
    pair = table.pairs[0]
    w, a = table.w_bits.index(pair.w_bits or 0), table.a_bits.index(pair.a_bits)
    for metric in (metric for metric in ("size_bytes", "bops") if metric in table.metrics):
        found, expected = table.metrics[metric][:, w, a], counted[metric][:, w, a]
        for row in np.flatnonzero(found != expected):
            raise HardwareError(
                f"{metric} of layer {table.layers[row]!r} is {found[row]:g} in the cost table, but "
                f"{expected[row]:g} in the network: the layer has another shape; {fix}"
            )
    legal = np.isfinite(next(iter(table.metrics.values())))
    return {metric: np.where(legal, costs, np.inf) for metric, costs in counted.items()}
