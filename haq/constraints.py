"""Budgets as users write them: `latency=10ms`, `energy<=3mJ`, `size=200kB`, `bops=2G`, `bits=2.5`, `latency=60%`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from haq.errors import ConstraintError, did_you_mean
from haq.io.validation import check_fields

__all__ = ["METRICS", "Constraint", "Metric", "format_cost", "parse_constraint"]


@dataclass(frozen=True)
class Metric:
    """A cost that adds up over layers; of `ram`, working memory, the peak over the network counts.

    Attributes:
        name: As in `latency=10ms`.
        field: As in tables and files, with the unit that values are kept in.
        units: Accepted unit → how many of the kept unit it is.
    """

    name: str
    field: str
    units: dict[str, float]

    @property
    def kept_unit(self) -> str:
        """The unit that values are kept in."""
        return next(unit for unit, factor in self.units.items() if factor == 1.0)


_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("latency", "latency_ms", {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}),
        Metric("energy", "energy_mj", {"mJ": 1.0, "J": 1e3, "uJ": 1e-3, "µJ": 1e-3}),
        Metric("size", "size_bytes", _BYTES),
        Metric("ram", "ram_bytes", _BYTES),
        Metric("bops", "bops", _DECIMAL),
        Metric("bits", "bits_per_weight", {"": 1.0}),
    )
}
"""Every metric that a constraint may name.

Bit operations (`bops`) are MACs times w_bits times a_bits; `bits` is the average width of all weights.
"""

_SYNTAX = re.compile(r"\s*([A-Za-z_]+)\s*(?:<=|=)\s*([0-9.eE+-]+)\s*([A-Za-zµ%]*)\s*")


@dataclass(frozen=True)
class Constraint:
    """An upper limit on one metric.

    Attributes:
        metric: Key of `METRICS`.
        limit: In the metric's kept unit; a fraction of the uniform 8-bit network's cost when `relative`.
        relative: Whether `limit` is a fraction.
        origin: Who sets the limit, when it is not the user: the hardware that holds no more.
    """

    metric: str
    limit: float
    relative: bool = False
    origin: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_fields(self, ConstraintError)
        if self.metric not in METRICS:
            raise ConstraintError(
                f"unknown constraint {self.metric!r}{did_you_mean(self.metric, METRICS)}; known: {', '.join(METRICS)}"
            )
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ConstraintError(f"{self.metric}={self.limit:g}: the limit must be a positive number")

    @property
    def field(self) -> str:
        """The metric's name in tables and files, such as `latency_ms`."""
        return METRICS[self.metric].field

    def resolve(self, uniform8: float) -> Constraint:
        """Returns the absolute constraint, given the uniform 8-bit network's cost in the same metric."""
        return replace(self, limit=self.limit * uniform8, relative=False) if self.relative else self

    def __str__(self) -> str:
        if self.relative:
            return f"{self.metric} ≤ {self.limit:.4g} of uniform 8-bit"
        return f"{self.metric} ≤ {format_cost(self.field, self.limit)}{f' ({self.origin})' if self.origin else ''}"


def parse_constraint(text: str) -> Constraint:
    """Reads a constraint.

    Args:
        text: `metric=value` or `metric<=value`; the value carries a unit, or `%` of the uniform 8-bit network.

    Raises:
        ConstraintError: Unknown metric or unit, a missing unit, or a limit that is not positive.

    Examples:
        >>> parse_constraint("latency=10ms")
        Constraint(metric='latency', limit=10.0, relative=False)
        >>> parse_constraint("size<=60%").relative
        True
    """
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise ConstraintError(
            f"cannot read constraint {text!r}; write one like latency=10ms, size=200kB or latency=60%"
        )
    name, digits, unit = match.groups()
    if name not in METRICS:
        Constraint(name, 1.0)  # raises, with a suggestion
    try:
        number = float(digits)
    except ValueError:
        raise ConstraintError(f"cannot read the number {digits!r} in constraint {text!r}") from None
    if unit == "%":
        return Constraint(name, number / 100, relative=True)
    units = METRICS[name].units
    if unit not in units:
        known = ", ".join(key or "no unit" for key in units)
        what = f"unknown unit {unit!r}" if unit else "no unit"
        raise ConstraintError(f"{what} in constraint {text!r}; {name} takes {known}, or %")
    return Constraint(name, number * units[unit])


def format_cost(field: str, value: float | None) -> str:
    """Formats a cost with its unit for people; a cost that does not exist, such as a float network's, is a dash.

    Examples:
        >>> format_cost("latency_ms", 9.876)
        '9.88 ms'
        >>> format_cost("size_bytes", 45_300)
        '45.3 kB'
        >>> format_cost("bits_per_weight", 2.5)
        '2.50 bits'
    """
    if value is None:
        return "–"
    if field == "latency_ms":
        return _scaled(value, [(1e3, "s"), (1.0, "ms"), (1e-3, "µs")])
    if field == "energy_mj":
        return _scaled(value, [(1e3, "J"), (1.0, "mJ"), (1e-3, "µJ")])
    if field in ("size_bytes", "ram_bytes"):
        return _scaled(value, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])
    if field == "bits_per_weight":
        return _scaled(value, [(1.0, "bits")])
    return _scaled(value, [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]) + "bops"


def _scaled(value: float, scales: list[tuple[float, str]]) -> str:
    factor, unit = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
    number = value / factor
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
