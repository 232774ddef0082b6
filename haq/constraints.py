"""Budgets as users write them: `latency=10ms`, `energy<=3mJ`, `size=200kB`, `bops=2G`, `bits=2.5`, `latency=60%`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from haq.errors import ConstraintError, did_you_mean
from haq.io.validation import check_fields
from haq.metrics import METRICS, format_cost

__all__ = ["Constraint", "constrained_metric", "parse_constraint"]

_SYNTAX = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:<=|=)\s*([0-9.eE+-]+)\s*(%|(?:[^\W\d_][\w/]*)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """An upper limit on one metric.

    Attributes:
        metric: Key of `METRICS`.
        limit: In the metric's kept unit; a fraction of the uniform 8-bit network's cost when `relative`.
        relative: Whether `limit` is a fraction.
        origin: Who set the limit, if not the user: the hardware, which holds no more.

    Raises:
        ConstraintError: The metric is unknown or one of which more is better, or the limit is not a positive number.
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
        if METRICS[self.metric].direction == "max":
            raise ConstraintError(f"{self.metric}: more is better, but a limit is a maximum; limit another metric")
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


def constrained_metric(text: str) -> str:
    """Returns the metric that a constraint names, whether it is known or not.

    Raises:
        ConstraintError: It cannot be read.
    """
    if (match := _SYNTAX.fullmatch(text)) is None:
        raise ConstraintError(
            f"cannot read constraint {text!r}; write one like latency=10ms, size=200kB or latency=60%"
        )
    return match[1]


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
    name = constrained_metric(text)
    assert match is not None, "it was read already"
    _, digits, unit = match.groups()
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
