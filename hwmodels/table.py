"""Cost tables: what every layer costs at every pair of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from haq import __version__
from haq.constraints import METRICS
from haq.errors import HardwareError, did_you_mean
from haq.hwmodels.footprint import bops, size_bytes
from haq.hwmodels.hardware import Hardware
from haq.layers import LayerSpec
from haq.policy import WIDTHS, BitPolicy, LayerBits

__all__ = ["CostTable", "Origin"]

Origin = Literal["modelled", "measured", "interpolated"]
Costs = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_FIELDS = tuple(metric.field for metric in METRICS.values())


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of the layers of one network on one piece of hardware; those of different layers add up.

    Costs are looked up by the widths themselves, never by offset, and what the table does not hold is an error.

    Attributes:
        hardware: Name of the hardware.
        batch: Samples in the batch that latencies and energies are for.
        layers: Layer names, L of them.
        w_bits: Ascending weight widths, W of them.
        a_bits: Ascending activation widths, A of them; or `None` alone, for activations in floating point.
        metrics: Field of `LayerCost` → read-only costs, `(L, W, A)`, finite and not negative. A measured table may
            lack some fields.
        origin: How the costs came to be.
        version: What made them: of this package for a model, of the kernels for a measurement.

    Raises:
        HardwareError: An axis or a cost is wrong.
    """

    hardware: str
    batch: int
    layers: tuple[str, ...]
    w_bits: tuple[int, ...]
    a_bits: tuple[int | None, ...]
    metrics: Mapping[str, Costs]
    origin: Origin
    version: str
    _rows: Indices = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_axes()
        metrics = {metric: np.array(costs, dtype=np.float64) for metric, costs in self.metrics.items()}
        for metric, costs in metrics.items():
            self._check_costs(metric, costs)
            costs.setflags(write=False)
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "_rows", np.arange(len(self.layers)))

    @classmethod
    def build(
        cls,
        hardware: Hardware,
        layers: Sequence[LayerSpec],
        w_bits: Sequence[int],
        a_bits: Sequence[int],
        batch: int = 16,
    ) -> CostTable:
        """Prices every layer at every pair of widths; pinned layers need their widths among them.

        Raises:
            HardwareError: The hardware does not support a width.
        """
        w_bits, a_bits = tuple(sorted(set(w_bits))), tuple(sorted(set(a_bits)))
        shape = (len(layers), len(w_bits), len(a_bits))
        metrics = {metric: np.empty(shape) for metric in _FIELDS}
        for row, column, depth in np.ndindex(shape):
            cost = hardware.cost(layers[row], LayerBits(w_bits[column], a_bits[depth]), batch)
            for metric, costs in metrics.items():
                costs[row, column, depth] = getattr(cost, metric)
        names = tuple(layer.name for layer in layers)
        return cls(hardware.name, batch, names, w_bits, a_bits, metrics, "modelled", f"haq {__version__}")

    @classmethod
    def footprint(cls, layers: Sequence[LayerSpec], w_bits: Sequence[int]) -> CostTable:
        """Prices weights alone, with activations in floating point: size and bit operations, on any hardware."""
        w_bits = tuple(sorted(set(w_bits)))
        pairs = [[LayerBits(width, None) for width in w_bits] for _ in layers]
        metrics = {
            metric: np.array(
                [[[count(layer, bits)] for bits in row] for layer, row in zip(layers, pairs, strict=True)], np.float64
            )
            for metric, count in (("size_bytes", size_bytes), ("bops", bops))
        }
        names = tuple(layer.name for layer in layers)
        return cls("any hardware", 1, names, w_bits, (None,), metrics, "modelled", f"haq {__version__}")

    # Looking costs up

    def cost(self, policy: BitPolicy) -> dict[str, float]:
        """Returns the whole network's cost: metric field → sum over the layers.

        Raises:
            HardwareError: The policy's layers are not exactly the table's, or it has a width that the table lacks.
        """
        w_index, a_index = self.indices(policy)
        return {metric: self.total(metric, w_index, a_index) for metric in self.metrics}

    def layer_costs(self, policy: BitPolicy, metric: str) -> Costs:
        """Returns what each layer costs, `(L,)`, in the table's order; raises like `cost`."""
        return self._costs(metric)[self._rows, *self.indices(policy)]

    def indices(self, policy: BitPolicy) -> tuple[Indices, Indices]:
        """Returns where the policy's widths stand in `w_bits` and `a_bits`, `(L,)` each; raises like `cost`."""
        if unknown := [name for name in policy if name not in self.layers]:
            raise HardwareError(
                f"layer {unknown[0]!r} of the policy is not in the cost table of {self.hardware!r}"
                f"{did_you_mean(unknown[0], self.layers)}; build the table for the policy's own model"
            )
        if missing := [name for name in self.layers if name not in policy]:
            raise HardwareError(
                f"layer {missing[0]!r} of the cost table of {self.hardware!r} is not in the policy; give it widths, or "
                "build the table for the policy's own model"
            )
        w_index = [self._position("w_bits", name, policy[name].w_bits) for name in self.layers]
        a_index = [self._position("a_bits", name, policy[name].a_bits) for name in self.layers]
        return np.array(w_index, dtype=np.intp), np.array(a_index, dtype=np.intp)

    def total(self, metric: str, w_index: Indices, a_index: Indices) -> float:
        """Returns the sum over the layers for one policy, whose indices, `(L,)` each, came from `indices`."""
        return float(self.totals(metric, w_index, a_index))

    def totals(self, metric: str, w_index: Indices, a_index: Indices) -> Costs:
        """Returns the sums over the layers, `(P,)`, for P policies at once, whose indices are `(P, L)` each."""
        sums: Costs = self._costs(metric)[self._rows, w_index, a_index].sum(axis=-1)
        return sums

    def minimum(self, metric: str, pinned: Mapping[str, LayerBits] | None = None) -> float:
        """Returns the smallest total that any policy with the `pinned` widths reaches."""
        return self.bounds(metric, pinned)[0]

    def bounds(self, metric: str, pinned: Mapping[str, LayerBits] | None = None) -> tuple[float, float]:
        """Returns the smallest and largest total that policies with the `pinned` widths reach.

        Raises:
            HardwareError: A pinned layer or width, or the metric, is not in the table.
        """
        costs = self._costs(metric)
        smallest, largest = costs.min(axis=(1, 2)), costs.max(axis=(1, 2))
        for name, bits in (pinned or {}).items():
            if name not in self.layers:
                raise HardwareError(
                    f"pinned layer {name!r} is not in the cost table of {self.hardware!r}"
                    f"{did_you_mean(name, self.layers)}"
                )
            row = self.layers.index(name)
            w, a = self._position("w_bits", name, bits.w_bits), self._position("a_bits", name, bits.a_bits)
            smallest[row] = largest[row] = costs[row, w, a]
        return float(smallest.sum()), float(largest.sum())

    def _costs(self, metric: str) -> Costs:
        if metric not in self.metrics:
            raise HardwareError(
                f"the cost table of {self.hardware!r} has no {metric!r}{did_you_mean(metric, self.metrics)}; it holds "
                f"{', '.join(self.metrics)}"
            )
        return self.metrics[metric]

    def _position(self, axis: Literal["w_bits", "a_bits"], layer: str, width: int | None) -> int:
        widths: tuple[int | None, ...] = self.w_bits if axis == "w_bits" else self.a_bits
        if width is None and None not in widths:
            raise HardwareError(
                f"{axis}=None (floating point) for layer {layer!r}: the cost table of {self.hardware!r} prices "
                f"integers of {_listed(widths)} bits only; give the layer one of those widths"
            )
        if width not in widths:
            raise HardwareError(
                f"{axis}={width} for layer {layer!r}: the cost table of {self.hardware!r} covers {_listed(widths)}; "
                f"build it again with --bits {_listed(sorted(w for w in (*widths, width) if w is not None))}"
            )
        return widths.index(width)

    # Files

    def save(self, path: Path) -> None:
        """Writes the table as Parquet: a row for each layer and pair of widths, the rest in the schema's metadata."""
        from haq.hwmodels.parquet import write_table

        write_table(self, path)

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Reads what `save` wrote.

        Raises:
            HardwareError: The file cannot be read, or is not a whole and valid cost table.
        """
        from haq.hwmodels.parquet import read_table

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
            raise HardwareError(f"a cost table needs at least one of {', '.join(_FIELDS)}")

    def _check_costs(self, metric: str, costs: Costs) -> None:
        if metric not in _FIELDS:
            raise HardwareError(
                f"{metric!r} is not a cost{did_you_mean(metric, _FIELDS)}; a table may hold {', '.join(_FIELDS)}"
            )
        shape = (len(self.layers), len(self.w_bits), len(self.a_bits))
        if costs.shape != shape:
            raise HardwareError(
                f"{metric} has shape {costs.shape}, but the layers and widths of the table make it {shape}"
            )
        wrong = np.argwhere(~(np.isfinite(costs) & (costs >= 0)))
        if len(wrong):
            row, w, a = wrong[0]
            raise HardwareError(
                f"{metric}={costs[row, w, a]} for layer {self.layers[row]!r} at w_bits={self.w_bits[w]}, "
                f"a_bits={self.a_bits[a]}: a cost is finite and not negative; build or measure the table again"
            )


def _listed(widths: Sequence[int | None]) -> str:
    return ",".join("float" if width is None else str(width) for width in widths)
