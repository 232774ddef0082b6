"""Cost tables: what every layer costs at every pair of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from haq import __version__
from haq.constraints import METRICS
from haq.errors import HardwareError, did_you_mean
from haq.hwmodels.accelerators.footprint import footprint
from haq.hwmodels.hardware import Hardware, listed_pairs
from haq.hwmodels.tables.memory import MemoryPlan
from haq.layers import LayerSpec
from haq.policy import WIDTHS, BitPolicy, LayerBits

__all__ = ["TABLE_FIELDS", "CostTable", "Origin"]

Origin = Literal["modelled", "measured", "interpolated"]
Costs = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_RAM, _BITS = METRICS["ram"].field, METRICS["bits"].field
TABLE_FIELDS = (*(metric.field for metric in METRICS.values() if metric.field != _RAM), "buffer_bytes")
"""What a table may hold of each cell; all but `buffer_bytes` add up over the layers."""

_DIGITS = 12
"""Decimals of an average: the parts of layers are fractions, whose sum is off by rounding far behind these."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of the layers of one network on one piece of hardware; those of different layers add up.

    Costs are looked up by the widths themselves, never by offset, and what the table does not hold is an error. A pair
    of widths that the hardware cannot run costs infinity in every layer.

    Attributes:
        hardware: Name of the hardware.
        batch: Samples in the batch that latencies and energies are for.
        layers: Layer names, L of them.
        w_bits: Ascending weight widths, W of them.
        a_bits: Ascending activation widths, A of them; or `None` alone, for activations in floating point.
        metrics: Field of `LayerCost` → read-only costs, `(L, W, A)`, not negative. A measured table may lack some.
        origin: How the costs came to be.
        version: What made them: of this package for a model, of the kernels for a measurement.
        rest: Field → what the operations between the layers cost, whatever the widths; part of every total.
        memory: Which activations are alive at once, for `ram_bytes`; `None` where that is not known.
        details: What else is known of each cell, such as the spread of a measurement, `(L, W, A)`; kept in files.
            Of models `memory_bound`: 1 where memory sets the layer's pace, 0 where arithmetic does.
        provenance: What is known of the table's making, such as the device, its features and the date; likewise.
        limits: What the device holds, as in `Hardware`; `None` in a file from before tables had limits.

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
    _legal: npt.NDArray[np.bool_] = field(init=False, repr=False)
    _row_of: dict[str, int] = field(init=False, repr=False)
    _place_of: dict[tuple[int | None, int | None], tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_axes()
        self._check_limits()
        metrics = {metric: np.array(costs, dtype=np.float64) for metric, costs in self.metrics.items()}
        for metric, costs in metrics.items():
            self._check_costs(metric, costs)
            costs.setflags(write=False)
        object.__setattr__(self, "metrics", metrics)
        self._check_pairs()
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
    ) -> CostTable:
        """Prices every layer at every legal pair of widths; widths without one are left out.

        Raises:
            HardwareError: The hardware runs none of the pairs, or not a layer.
        """
        pairs = [pair for pair in hardware.pairs if pair.w_bits in w_bits and pair.a_bits in a_bits]
        if not pairs:
            raise HardwareError(
                f"hardware {hardware.name!r} runs {listed_pairs(hardware.pairs)} bits (weights/activations), none of "
                f"{_listed(sorted(set(w_bits)))}/{_listed(sorted(set(a_bits)))}; choose widths of these"
            )
        w_axis, a_axis = sorted({pair.w_bits or 0 for pair in pairs}), sorted({pair.a_bits or 0 for pair in pairs})
        priced = [metric for metric in TABLE_FIELDS if metric != _BITS]
        metrics = {metric: np.full((len(layers), len(w_axis), len(a_axis)), np.inf) for metric in priced}
        memory_bound = np.full((len(layers), len(w_axis), len(a_axis)), np.nan)
        for row, layer in enumerate(layers):
            for pair in pairs:
                cost = hardware.cost(layer, pair, batch)
                cell = row, w_axis.index(pair.w_bits or 0), a_axis.index(pair.a_bits or 0)
                for metric, costs in metrics.items():
                    costs[cell] = getattr(cost, metric)
                if cost.compute_ms or cost.memory_ms:
                    memory_bound[cell] = cost.bound == "memory"
        average = footprint(layers, w_axis, a_axis)[_BITS]
        metrics[_BITS] = np.where(np.isfinite(metrics["bops"]), average, np.inf)
        if not np.any(metrics["buffer_bytes"][:, np.isfinite(metrics["buffer_bytes"][0])]):
            del metrics["buffer_bytes"]
        names = tuple(layer.name for layer in layers)
        return cls(
            hardware.name, batch, names, tuple(w_axis), tuple(a_axis), metrics, "modelled", f"haq {__version__}",
            memory=memory, details={} if np.isnan(memory_bound).all() else {"memory_bound": memory_bound},
            limits=dict(hardware.limits),
        )  # fmt: skip

    @classmethod
    def footprint(cls, layers: Sequence[LayerSpec], w_bits: Sequence[int]) -> CostTable:
        """Prices weights alone, with activations in floating point: what is the same on any hardware."""
        w_bits = tuple(sorted(set(w_bits)))
        metrics = footprint(layers, w_bits, (None,))
        names = tuple(layer.name for layer in layers)
        return cls("any hardware", 1, names, w_bits, (None,), metrics, "modelled", f"haq {__version__}")

    # Looking costs up

    def cost(self, policy: BitPolicy) -> dict[str, float]:
        """Returns the whole network's cost: metric field → sum over the layers; of `ram_bytes`, the peak.

        Raises:
            HardwareError: The policy's layers are not exactly the table's, or it has a pair of widths that the table
                lacks.
        """
        w_index, a_index = self.indices(policy)
        return {metric: self.total(metric, w_index, a_index) for metric in self.fields}

    @property
    def fields(self) -> tuple[str, ...]:
        """What totals there are."""
        return (*(metric for metric in self.metrics if metric != "buffer_bytes"), *([_RAM] if self.memory else []))

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
        """Returns where the policy's widths stand in `w_bits` and `a_bits`, `(L,)` each; raises like `cost`."""
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
        if metric == _RAM and self.memory is not None:
            widths = np.array([width or 0 for width in self.a_bits])[a_index]
            buffers = self.metrics.get("buffer_bytes")
            beside = np.zeros(widths.shape) if buffers is None else buffers[self._rows, w_index, a_index]
            return self.memory.peaks(self.layers, widths, beside, self.batch)
        return self._summed(metric, self._costs(metric)[self._rows, w_index, a_index])

    def minimum(self, metric: str, pinned: Mapping[str, LayerBits] | None = None) -> float:
        """Returns the smallest total that any policy with the `pinned` widths reaches."""
        return self.bounds(metric, pinned)[0]

    def bounds(self, metric: str, pinned: Mapping[str, LayerBits] | None = None) -> tuple[float, float]:
        """Returns the smallest and largest total that policies with the `pinned` widths reach.

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
        low, high = (self._summed(metric, costs) for costs in (smallest, largest))
        return float(low), float(high)

    def _summed(self, metric: str, costs: Costs) -> Costs:
        """Adds what layers cost, `(..., L)`, to what the rest does."""
        sums: Costs = costs.sum(axis=-1) + self.rest.get(metric, 0.0)
        return sums.round(_DIGITS) if metric == _BITS else sums

    def _costs(self, metric: str) -> Costs:
        if metric not in self.metrics:
            raise HardwareError(
                f"the cost table of {self.hardware!r} has no {metric!r}{did_you_mean(metric, self.metrics)}; it holds "
                f"{', '.join(self.metrics)}"
            )
        return self.metrics[metric]

    def _place(self, layer: str, bits: LayerBits) -> tuple[int, int]:
        """Returns where a pair of widths stands in `w_bits` and `a_bits`."""
        place = self._place_of.get((bits.w_bits, bits.a_bits))
        if place is None:
            raise self._unpriced(layer, bits)
        return place

    def _unpriced(self, layer: str, bits: LayerBits) -> HardwareError:
        """Says what is wrong with a pair of widths that has no price."""
        axes: tuple[tuple[str, int | None, tuple[int | None, ...]], ...] = (
            ("w_bits", bits.w_bits, self.w_bits),
            ("a_bits", bits.a_bits, self.a_bits),
        )
        for axis, width, widths in axes:
            if width is None and None not in widths:
                return HardwareError(
                    f"{axis}=None (floating point) for layer {layer!r}: the cost table of {self.hardware!r} prices "
                    f"integers of {_listed(widths)} bits only; give the layer one of those widths"
                )
            if width not in widths:
                return HardwareError(
                    f"{axis}={width} for layer {layer!r}: the cost table of {self.hardware!r} covers "
                    f"{_listed(widths)}; build it again with --bits "
                    f"{_listed(sorted(w for w in (*widths, width) if w is not None))}"
                )
        return HardwareError(
            f"{bits.w_bits}/{bits.a_bits} bits (weights/activations) for layer {layer!r}: the cost table of "
            f"{self.hardware!r} covers {listed_pairs(self.pairs)}; give the layer widths of these"
        )

    def overview(self) -> dict[str, Any]:
        """Returns what the table is of, and the bounds of its totals, as plain JSON types but for the pairs."""
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

    # Validation

    def _check_axes(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise HardwareError(f"a cost table needs layers of distinct names, but got {list(self.layers)!r}")
        for axis, widths in (("w_bits", self.w_bits), ("a_bits", self.a_bits)):
            if axis == "a_bits" and widths == (None,):
                continue
            if not widths or list(widths) != [width for width in WIDTHS if width in widths]:
                raise HardwareError(
                    f"{axis}={list(widths)!r}: a cost table needs ascending widths of {_listed(WIDTHS)} bits"
                )
        if self.batch < 1:
            raise HardwareError(f"batch={self.batch}: a cost table is for a batch of at least 1")
        if self.origin not in get_args(Origin):
            raise HardwareError(f"origin={self.origin!r}: costs are {' or '.join(get_args(Origin))}")
        if not self.metrics:
            raise HardwareError(f"a cost table needs at least one of {', '.join(TABLE_FIELDS)}")

    def _check_limits(self) -> None:
        for metric, limit in (self.limits or {}).items():
            if metric not in METRICS:
                raise HardwareError(
                    f"limit of {metric!r}: unknown{did_you_mean(metric, METRICS)}; known: {', '.join(METRICS)}"
                )
            if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < np.inf:
                unit = METRICS[metric].kept_unit
                raise HardwareError(
                    f"limit of {metric!r} is {limit!r}: must be a positive number{unit and f' of {unit}'}"
                )

    def _check_costs(self, metric: str, costs: Costs) -> None:
        if metric not in TABLE_FIELDS:
            raise HardwareError(
                f"{metric!r} is not a cost{did_you_mean(metric, TABLE_FIELDS)}; "
                f"a table may hold {', '.join(TABLE_FIELDS)}"
            )
        shape = (len(self.layers), len(self.w_bits), len(self.a_bits))
        if costs.shape != shape:
            raise HardwareError(
                f"{metric} has shape {costs.shape}, but the layers and widths of the table make it {shape}"
            )
        wrong = np.argwhere(~(costs >= 0))
        if len(wrong):
            row, w, a = wrong[0]
            raise HardwareError(
                f"{metric}={costs[row, w, a]} for layer {self.layers[row]!r} at w_bits={self.w_bits[w]}, "
                f"a_bits={self.a_bits[a]}: a cost is finite and not negative; build or measure the table again"
            )

    def _check_pairs(self) -> None:
        """A pair of widths has a price in every layer and metric, or in none."""
        legal = np.isfinite(next(iter(self.metrics.values()))[0])
        for metric, costs in self.metrics.items():
            odd = np.argwhere(np.isfinite(costs) != legal)
            if len(odd):
                row, w, a = odd[0]
                raise HardwareError(
                    f"{metric} of layer {self.layers[row]!r} at w_bits={self.w_bits[w]}, a_bits={self.a_bits[a]} is "
                    f"{costs[row, w, a]}, unlike other costs at these widths; "
                    "a pair is priced in every layer or in none"
                )
        object.__setattr__(self, "_legal", legal)
        places = {(self.w_bits[w], self.a_bits[a]): (int(w), int(a)) for w, a in np.argwhere(legal)}
        object.__setattr__(self, "_place_of", places)


def _listed(widths: Sequence[int | None]) -> str:
    return ",".join("float" if width is None else str(width) for width in widths)
