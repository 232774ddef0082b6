"""Cost tables: what every layer costs at every pair of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haq import __version__
from haq.errors import HardwareError, did_you_mean
from haq.hwmodels.accelerators.footprint import footprint, footprint_of_rest, weights_of
from haq.hwmodels.hardware import Hardware, LayerCost, listed_pairs, price_layer
from haq.hwmodels.rest_costs import rest_costs
from haq.hwmodels.tables.checks import Origin, check_axes, check_costs, check_limits, legal_pairs, listed
from haq.hwmodels.tables.memory import MemoryPlan
from haq.layers import LayerSpec
from haq.layers.rest import Rest
from haq.metrics import METRICS, Combine, layer_fields, metric_of
from haq.policy import BitPolicy, LayerBits

__all__ = ["CostTable", "Origin"]

Costs = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_DIGITS = 12
"""Decimals of an average. Layers hold fractions of it, and rounding shows in their sum only far behind these."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of the layers of one network on one piece of hardware.

    Costs are looked up by the widths themselves, never by offset, and an entry that the table lacks is an error. A pair
    of widths that the hardware cannot run costs infinity in every layer. How the costs of layers make the cost of the
    network, `haq.metrics.Metric.combine` says.

    Attributes:
        hardware: Name of the hardware.
        batch: Samples in the batch that latencies and energies are for.
        layers: Layer names, L of them.
        w_bits: Ascending weight widths, W of them.
        a_bits: Ascending activation widths, A of them; or `None` alone, for activations in floating point.
        metrics: Field, one of `haq.metrics.layer_fields`, → read-only costs, `(L, W, A)`, not negative. A measured
            table may lack some. Of an average each layer has its part, so that the parts add up.
        origin: How the costs were obtained.
        version: What made them: this package for a model, the kernels for a measurement.
        rest: Field → cost of what lies outside of the layers, at any widths; part of every total.
        memory: Which activations are alive at once, for `ram_bytes`; `None` where that is not known.
        details: More about each cell, such as the spread of a measurement, `(L, W, A)`; kept in files. Cost models give
            `memory_bound`: 1 where memory sets the layer's pace, 0 where arithmetic does.
        provenance: How the table was made, such as the device, its features and the date; kept in files.
        limits: What the device holds, as in `Hardware`; `None` in files that are older than limits.

    Raises:
        HardwareError: An axis, a cost or a limit is wrong.
    """

    hardware: str
    batch: int
    layers: tuple[str, ...]
    w_bits: tuple[int, ...]
    a_bits: tuple[int | None, ...]
    metrics: Mapping[str, Costs]
    origin: Origin
    version: str
    rest: Mapping[str, float] = field(default_factory=dict)
    memory: MemoryPlan | None = None
    details: Mapping[str, Costs] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] | None = field(default_factory=dict)
    _rows: Indices = field(init=False, repr=False)
    _combine: dict[str, Combine] = field(init=False, repr=False)
    _buffers: dict[str, str] = field(init=False, repr=False)
    _legal: npt.NDArray[np.bool_] = field(init=False, repr=False)
    _row_of: dict[str, int] = field(init=False, repr=False)
    _place_of: dict[tuple[int | None, int | None], tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_axes(self)
        check_limits(self)
        metrics = {metric: np.array(costs, dtype=np.float64) for metric, costs in self.metrics.items()}
        for metric, costs in metrics.items():
            check_costs(self, metric, costs)
            costs.setflags(write=False)
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "_combine", {metric: metric_of(metric).combine for metric in metrics})
        planned = [metric for metric in METRICS.values() if metric.layer_field and self.memory]
        object.__setattr__(self, "_buffers", {metric.field: metric.layer_field for metric in planned})
        legal = legal_pairs(self)
        places = {(self.w_bits[w], self.a_bits[a]): (int(w), int(a)) for w, a in np.argwhere(legal)}
        object.__setattr__(self, "_legal", legal)
        object.__setattr__(self, "_place_of", places)
        object.__setattr__(self, "_rows", np.arange(len(self.layers)))
        object.__setattr__(self, "_row_of", {name: row for row, name in enumerate(self.layers)})

    @classmethod
    def build(
        cls,
        hardware: Hardware,
        layers: Sequence[LayerSpec],
        w_bits: Sequence[int],
        a_bits: Sequence[int],
        batch: int = 16,
        memory: MemoryPlan | None = None,
        rest: Rest | None = None,
    ) -> CostTable:
        """Prices every layer at every legal pair of widths; widths without one are left out.

        Args:
            hardware: The cost model.
            layers: Of the network, L of them.
            w_bits: Candidate widths of weights.
            a_bits: Candidate widths of activations.
            batch: Samples at once.
            memory: Which activations are alive at once, where that is known.
            rest: What the network reads beside the layers; its cost is part of every total, see `rest_costs`.

        Raises:
            HardwareError: The hardware runs none of the pairs or cannot price a layer, or its costs are not metrics.
        """
        pairs = [pair for pair in hardware.pairs if pair.w_bits in w_bits and pair.a_bits in a_bits]
        if not pairs:
            raise HardwareError(
                f"hardware {hardware.name!r} runs {listed_pairs(hardware.pairs)} bits (weights/activations), none of "
                f"{listed(sorted(set(w_bits)))}/{listed(sorted(set(a_bits)))}; choose widths of these"
            )
        w_axis, a_axis = sorted({pair.w_bits or 0 for pair in pairs}), sorted({pair.a_bits or 0 for pair in pairs})
        w_index = [w_axis.index(pair.w_bits or 0) for pair in pairs]
        a_index = [a_axis.index(pair.a_bits or 0) for pair in pairs]
        priced = [[price_layer(hardware, layer, pair, batch) for pair in pairs] for layer in layers]

        def cube(values: npt.ArrayLike, outside: float = np.inf) -> Costs:
            filled = np.full((len(layers), len(w_axis), len(a_axis)), outside)
            filled[:, w_index, a_index] = np.reshape(values, (len(layers), len(pairs)))
            return filled

        metrics = {metric: cube(values) for metric, values in _priced(hardware.name, layers, priced, rest).items()}
        for metric, costs in footprint(layers, w_axis, a_axis, rest).items():
            metrics.setdefault(metric, cube(costs[:, w_index, a_index]))
        names = tuple(layer.name for layer in layers)
        bound = [[_bound(cost) for cost in costs] for costs in priced]
        details = {} if np.isnan(bound).all() else {"memory_bound": cube(bound, np.nan)}
        return cls(
            hardware.name, batch, names, tuple(w_axis), tuple(a_axis), metrics, "modelled", f"haq {__version__}",
            rest_costs(hardware, layers, rest, batch), memory, details, limits=dict(hardware.limits),
        )  # fmt: skip

    @classmethod
    def footprint(cls, layers: Sequence[LayerSpec], w_bits: Sequence[int], rest: Rest | None = None) -> CostTable:
        """Prices weights alone, with activations in floating point; the costs are the same on any hardware.

        Args:
            layers: Of the network.
            w_bits: Candidate widths of weights.
            rest: What the network reads beside the layers.
        """
        w_bits, names = tuple(sorted(set(w_bits))), tuple(layer.name for layer in layers)
        metrics, left = footprint(layers, w_bits, (None,), rest), footprint_of_rest(layers, rest)
        return cls("any hardware", 1, names, w_bits, (None,), metrics, "modelled", f"haq {__version__}", left)

    # Looking costs up

    def cost(self, policy: BitPolicy) -> dict[str, float]:
        """Returns the whole network's cost, metric field → total.

        Raises:
            HardwareError: The policy's layers are not exactly the table's, or it has a pair of widths that the table
                lacks.
        """
        w_index, a_index = self.indices(policy)
        return {metric: self.total(metric, w_index, a_index) for metric in self.fields}

    @property
    def fields(self) -> tuple[str, ...]:
        """Metric fields that the table gives totals of."""
        buffers = {metric.layer_field for metric in METRICS.values()}
        return (*(metric for metric in self.metrics if metric not in buffers), *self._buffers)

    @property
    def additive(self) -> tuple[str, ...]:
        """Metric fields whose totals are sums over the layers."""
        return tuple(metric for metric in self.fields if self._combine.get(metric) in ("sum", "mean"))

    @property
    def pairs(self) -> tuple[LayerBits, ...]:
        """Pairs of widths that the table prices, ascending."""
        return tuple(LayerBits(*widths) for widths in self._place_of)

    def layer_costs(self, policy: BitPolicy, metric: str) -> Costs:
        """Returns what each layer costs, `(L,)`, in the table's order; raises like `cost`."""
        return self._costs(metric)[self._rows, *self.indices(policy)]

    def layer_cost(self, name: str, bits: LayerBits, metric: str) -> float:
        """Returns what one layer costs at one pair of widths; raises like `cost`."""
        return float(self._costs(metric)[self._row_of[name], *self._place(name, bits)])

    def indices(self, policy: BitPolicy) -> tuple[Indices, Indices]:
        """Returns the places of the policy's widths in `w_bits` and `a_bits`, `(L,)` each; raises like `cost`."""
        layers = policy.layers
        if layers.keys() != self._row_of.keys():
            raise self._other_layers(policy)
        places = np.array([self._place(name, layers[name]) for name in self.layers], dtype=np.intp)
        return places[:, 0], places[:, 1]

    def _other_layers(self, policy: BitPolicy) -> HardwareError:
        if unknown := [name for name in policy if name not in self._row_of]:
            return HardwareError(
                f"layer {unknown[0]!r} of the policy is not in the cost table of {self.hardware!r}"
                f"{did_you_mean(unknown[0], self.layers)}; build the table for the policy's own model"
            )
        missing = next(name for name in self.layers if name not in policy)
        return HardwareError(
            f"layer {missing!r} of the cost table of {self.hardware!r} is not in the policy; give it widths, or "
            "build the table for the policy's own model"
        )

    def total(self, metric: str, w_index: Indices, a_index: Indices) -> float:
        """Returns the total for one policy, whose indices, `(L,)` each, came from `indices`."""
        return float(self.totals(metric, w_index[None], a_index[None])[0])

    def totals(self, metric: str, w_index: Indices, a_index: Indices) -> Costs:
        """Returns the totals, `(P,)`, for P policies at once, whose indices are `(P, L)` each; illegal ones are ∞."""
        if metric in self._buffers and self.memory is not None:
            widths = np.array([width or 0 for width in self.a_bits])[a_index]
            buffers = self.metrics.get(self._buffers[metric])
            beside = np.zeros(widths.shape) if buffers is None else buffers[self._rows, w_index, a_index]
            return self.memory.peaks(self.layers, widths, beside, self.batch)
        return self._combined(metric, self._costs(metric)[self._rows, w_index, a_index])

    def bounds(self, metric: str, pinned: Mapping[str, LayerBits] | None = None) -> tuple[float, float]:
        """Returns the smallest and the largest total of all policies with the `pinned` widths.

        Raises:
            HardwareError: A pinned layer or width, or the metric, is not in the table.
        """
        costs = self._costs(metric)
        smallest, largest = costs.min(axis=(1, 2)), np.where(self._legal, costs, 0.0).max(axis=(1, 2))
        for name, bits in (pinned or {}).items():
            if name not in self._row_of:
                raise HardwareError(
                    f"pinned layer {name!r} is not in the cost table of {self.hardware!r}"
                    f"{did_you_mean(name, self.layers)}"
                )
            row = self._row_of[name]
            smallest[row] = largest[row] = costs[row, *self._place(name, bits)]
        low, high = (self._combined(metric, costs) for costs in (smallest, largest))
        return float(low), float(high)

    def _combined(self, metric: str, costs: Costs) -> Costs:
        """Combines the costs of layers, `(..., L)`, and adds the rest's."""
        rest = self.rest.get(metric, 0.0)
        if self._combine[metric] == "peak":
            peaks: Costs = np.maximum(costs.max(axis=-1), rest)
            return peaks
        sums: Costs = costs.sum(axis=-1) + rest
        return sums.round(_DIGITS) if self._combine[metric] == "mean" else sums

    def _costs(self, metric: str) -> Costs:
        if metric not in self.metrics:
            raise HardwareError(
                f"the cost table of {self.hardware!r} has no {metric!r}{did_you_mean(metric, self.metrics)}; it holds "
                f"{', '.join(self.metrics)}"
            )
        return self.metrics[metric]

    def _place(self, layer: str, bits: LayerBits) -> tuple[int, int]:
        """Returns the place of a pair of widths in `w_bits` and `a_bits`."""
        place = self._place_of.get((bits.w_bits, bits.a_bits))
        if place is None:
            raise self._unpriced(layer, bits)
        return place

    def _unpriced(self, layer: str, bits: LayerBits) -> HardwareError:
        """Returns the error for a pair of widths that has no price."""
        axes: tuple[tuple[str, int | None, tuple[int | None, ...]], ...] = (
            ("w_bits", bits.w_bits, self.w_bits),
            ("a_bits", bits.a_bits, self.a_bits),
        )
        for axis, width, widths in axes:
            if width is None and None not in widths:
                return HardwareError(
                    f"{axis}=None (floating point) for layer {layer!r}: the cost table of {self.hardware!r} prices "
                    f"integers of {listed(widths)} bits only; give the layer one of those widths"
                )
            if width not in widths:
                return HardwareError(
                    f"{axis}={width} for layer {layer!r}: the cost table of {self.hardware!r} covers "
                    f"{listed(widths)}; build it again with --bits "
                    f"{listed(sorted(w for w in (*widths, width) if w is not None))}"
                )
        return HardwareError(
            f"{bits.w_bits}/{bits.a_bits} bits (weights/activations) for layer {layer!r}: the cost table of "
            f"{self.hardware!r} covers {listed_pairs(self.pairs)}; give the layer widths of these"
        )

    def overview(self) -> dict[str, Any]:
        """Returns what the table is for and the bounds of its totals, as plain JSON types except for the pairs."""
        bounds = {metric: self.bounds(metric) for metric in self.fields if metric in self.metrics}
        return {
            "hardware": self.hardware,
            "origin": self.origin,
            "version": self.version,
            "batch": self.batch,
            "layers": list(self.layers),
            "pairs": list(self.pairs),
            "bounds": {metric: {"at_least": low, "at_most": high} for metric, (low, high) in bounds.items()},
            "rest": dict(self.rest),
            "provenance": dict(self.provenance),
            "limits": {METRICS[metric].field: limit for metric, limit in (self.limits or {}).items()},
        }

    # Files

    def save(self, path: Path) -> None:
        """Writes the table as Parquet: a row for each layer and pair of widths, the rest in the schema's metadata."""
        from haq.hwmodels.tables.parquet import write_table

        write_table(self, path)

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Reads what `save` wrote.

        Raises:
            HardwareError: The file cannot be read, or is not a whole and valid cost table.
        """
        from haq.hwmodels.tables.parquet import read_table

        return read_table(path)


def _priced(
    hardware: str, layers: Sequence[LayerSpec], priced: Sequence[Sequence[LayerCost]], rest: Rest | None
) -> dict[str, list[list[float]]]:
    """Returns what a cost model gives, field → value of each layer and pair; averages become parts of layers.

    Raises:
        HardwareError: A field is no metric, or only some layers have it.
    """
    known = layer_fields()
    given = {metric: None for costs in priced for cost in costs for metric in cost.values}
    if unknown := [metric for metric in given if metric not in known]:
        raise HardwareError(
            f"hardware {hardware!r} gives {unknown[0]!r}, which is not a cost{did_you_mean(unknown[0], known)}; known: "
            f"{', '.join(known)}; register a metric of your own with haq.metrics.METRICS.register"
        )
    buffers = {metric.layer_field for metric in METRICS.values()}
    found = {}
    for metric in (metric for metric in known if metric in given):
        mean = metric_of(metric).combine == "mean"
        weights = weights_of(layers, rest if metric == METRICS["bits"].field else None)
        rows = []
        for layer, costs in zip(layers, priced, strict=True):
            values = [cost.values.get(metric, 0.0 if metric in buffers else None) for cost in costs]
            present = [value for value in values if value is not None]
            if len(present) < len(values):
                raise HardwareError(
                    f"hardware {hardware!r} gives no {metric!r} for layer {layer.name!r}, but for others; a cost model "
                    "gives the same costs for all layers and widths"
                )
            rows.append([value * layer.params / weights for value in present] if mean else present)
        if metric not in buffers or any(map(any, rows)):
            found[metric] = rows
    return found


def _bound(cost: LayerCost) -> float:
    """Returns 1 where memory binds, 0 where arithmetic does, NaN where the cost model does not say."""
    return float(cost.bound == "memory") if cost.compute_ms or cost.memory_ms else float("nan")
