"""What a network costs: names, units, and how the costs of layers make the cost of the network.

A metric of your own is registered once, before a cost model gives values for it:

    METRICS.register("area", Metric("area", "area_mm2", {"mm2": 1.0, "um2": 1e-6}))

It can then be limited (`area=2mm2`), and it is a column of cost tables, fronts and reports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from haq.errors import ConfigError, ConstraintError
from haq.io.validation import restored
from haq.registry import Registry

__all__ = ["METRICS", "Combine", "Metric", "Metrics", "format_cost", "layer_fields", "metric_of"]

Combine = Literal["sum", "mean", "peak"]
Direction = Literal["min", "max"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_UNIT = re.compile(r"([^\W\d_][\w/]*)?")
_DASH = "–"


@dataclass(frozen=True)
class Metric:
    """One kind of cost.

    Attributes:
        name: As in `latency=10ms`.
        field: As in tables and files, with the unit that values are kept in, such as `latency_ms`.
        units: Accepted unit → how many of the kept unit it is. The kept unit is the one that is 1.
        combine: How the costs of layers make that of the network: they add up (`sum`), the largest counts (`peak`), or
            they are averaged, each layer as often as it has weights (`mean`).
        scales: Size and name of the units that people read, the largest first; by default `units`.
        direction: Whether less is better (`min`) or more (`max`).
        layer_field: What a layer gives instead of `field`, where its cost is only part of the story: the peak of `ram`
            is that of a `MemoryPlan`, to which each layer adds its `buffer_bytes`. Empty for all other metrics.
        title: Name on the axes of charts; by default `name` with a capital letter.
        per_batch: Whether the cost is that of a whole batch.
        headline: Whether comparisons of networks show it also where nobody asked for it.

    Raises:
        ConfigError: A name or a unit cannot be written in a constraint, or no unit is 1.
    """

    name: str
    field: str
    units: Mapping[str, float]
    combine: Combine = "sum"
    scales: tuple[tuple[float, str], ...] = ()
    direction: Direction = "min"
    layer_field: str = ""
    title: str = ""
    per_batch: bool = False
    headline: bool = True

    def __post_init__(self) -> None:
        for what in ("name", "field"):
            if not _NAME.fullmatch(value := getattr(self, what)):
                raise ConfigError(f"metric {self.name!r}: {what}={value!r} must be letters, digits and underscores")
        for unit, factor in self.units.items():
            if not _UNIT.fullmatch(unit) or not factor > 0:
                raise ConfigError(f"metric {self.name!r}: unit {unit!r}={factor!r}: give a word and a positive number")
        if 1.0 not in self.units.values():
            raise ConfigError(f"metric {self.name!r}: no unit is 1; name the unit that values of {self.field!r} have")
        for what, known in (("combine", get_args(Combine)), ("direction", get_args(Direction))):
            if getattr(self, what) not in known:
                raise ConfigError(f"metric {self.name!r}: {what}={getattr(self, what)!r}; use {' or '.join(known)}")
        if not self.scales:
            sizes = {factor: unit or self.name for unit, factor in reversed([*self.units.items()])}
            object.__setattr__(self, "scales", tuple(sorted(sizes.items(), reverse=True)))
        if not self.title:
            object.__setattr__(self, "title", self.name[:1].upper() + self.name[1:])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {**asdict(self), "units": dict(self.units)}

    @classmethod
    def from_dict(cls, data: object) -> Metric:
        """Restores what `to_dict` gave.

        Raises:
            ConfigError: A key is unknown or missing, or a value is wrong.
        """
        return restored(cls, data)

    @property
    def kept_unit(self) -> str:
        """The unit that values are kept in."""
        return next(unit for unit, factor in self.units.items() if factor == 1.0)

    def format(self, value: float | None) -> str:
        """Formats a value with its unit for people; a cost that is not known is a dash.

        Examples:
            >>> METRICS["latency"].format(9.876)
            '9.88 ms'
            >>> METRICS["bits"].format(2.5)
            '2.50 bits'
        """
        if value is None:
            return _DASH
        factor, unit = next((scale for scale in self.scales if abs(value) >= scale[0]), self.scales[-1])
        number = value / factor
        return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}".rstrip()

    def minimised(self, value: float | None) -> float:
        """Returns a number of which less is better: the value, its negative, or infinity where it is not known."""
        if value is None:
            return math.inf
        return value if self.direction == "min" else -value


_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
_JOULES = {"mJ": 1.0, "J": 1e3, "uJ": 1e-3, "µJ": 1e-3}

_SHOWN_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SHOWN_SECONDS = ((1e3, "s"), (1.0, "ms"), (1e-3, "µs"))
_SHOWN_JOULES = ((1e3, "J"), (1.0, "mJ"), (1e-3, "µJ"))
_SHOWN_BOPS = ((1e12, "Tbops"), (1e9, "Gbops"), (1e6, "Mbops"), (1e3, "kbops"), (1.0, "bops"))

LATENCY = Metric("latency", "latency_ms", _SECONDS, scales=_SHOWN_SECONDS, per_batch=True)
ENERGY = Metric("energy", "energy_mj", _JOULES, scales=_SHOWN_JOULES, per_batch=True)
SIZE = Metric("size", "size_bytes", _BYTES, scales=_SHOWN_BYTES)
RAM = Metric("ram", "ram_bytes", _BYTES, "peak", _SHOWN_BYTES, layer_field="buffer_bytes", title="RAM", headline=False)
BOPS = Metric("bops", "bops", _DECIMAL, scales=_SHOWN_BOPS, title="Bit operations", headline=False)
BITS = Metric("bits", "bits_per_weight", {"": 1.0}, "mean", title="Bits per weight", headline=False)


class Metrics(Registry[Metric]):
    """Metrics by name; no two of them share a field."""

    def register(self, name: str, value: Metric | None = None) -> Any:
        """Adds a metric, for this process; adding an equal one again changes nothing.

        Args:
            name: The metric's own.
            value: The metric; without it a decorator is returned, as by `Registry.register`.

        Raises:
            ConfigError: The name is another, or another metric has the field.
        """
        if value is None:
            return super().register(name)
        if name != value.name:
            raise ConfigError(f"metric {value.name!r} cannot be registered as {name!r}; give the same name twice")
        fields = {value.field, value.layer_field or value.field}
        for other in self.values():
            if other != value and (other.name == name or fields & {other.field, other.layer_field or other.field}):
                raise ConfigError(
                    f"metric {name!r} with field {value.field!r}: metric {other.name!r} with field {other.field!r} is "
                    "known already; choose another name and field"
                )
        return value if self.get(name) == value else super().register(name, value)


METRICS = Metrics(
    "metric",
    "haq.metrics",
    {metric.name: f"haq.metrics:{metric.name.upper()}" for metric in (LATENCY, ENERGY, SIZE, RAM, BOPS, BITS)},
    ConstraintError,
)
"""Every metric by its name; the first ones decide ties.

Bit operations (`bops`) are MACs times w_bits times a_bits; `bits` is the average width of all weights.
"""


def metric_of(field: str) -> Metric:
    """Returns the metric that a field of tables and files holds.

    A run folder may hold a metric that only the search knew; its values are shown as plain numbers.
    """
    for metric in METRICS.values():
        if metric.field == field:
            return metric
    return Metric(field, field, {"": 1.0}, scales=((1.0, ""),))


def layer_fields() -> tuple[str, ...]:
    """Returns every field that a cost model or a cost table may hold of a layer."""
    metrics = METRICS.values()
    own = (metric.field for metric in metrics if not metric.layer_field)
    return (*own, *(metric.layer_field for metric in metrics if metric.layer_field))


def format_cost(field: str, value: float | None) -> str:
    """Formats a cost with its unit for people; see `Metric.format`.

    Examples:
        >>> format_cost("size_bytes", 45_300)
        '45.3 kB'
    """
    return metric_of(field).format(value)
