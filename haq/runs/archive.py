"""Which of the scored policies are worth keeping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from haq.config import SearchConfig
from haq.constraints import METRICS, Constraint
from haq.runs import Baseline, Trial

__all__ = ["COST_FIELDS", "absolute_limits", "best_first", "best_of", "hypervolume", "pareto_front", "within"]

COST_FIELDS = tuple(metric.field for metric in METRICS.values())
"""Every cost that a trial may have: what a run asks for is among them. Those that come first decide ties."""


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that trained longest: scores with and without fine-tuning are never compared."""
    scored = [trial for trial in trials if trial.score is not None and trial.error is None]
    longest = max((_level(trial) for trial in scored), default=None)
    return [trial for trial in scored if _level(trial) == longest]


def _level(trial: Trial) -> tuple[int, str]:
    """How far the trial was trained; `qat` with no step yet sorts after `ptq`."""
    return trial.scores[-1].steps, trial.scores[-1].fidelity


def best_of(trials: Sequence[Trial], fields: Sequence[str] = COST_FIELDS) -> Trial | None:
    """Returns the first that `best_first` would, without sorting, or `None` where nothing was scored."""
    return min(_comparable(trials), key=lambda trial: _rank(trial, fields), default=None)


def best_first(trials: Sequence[Trial], fields: Sequence[str] = COST_FIELDS) -> list[Trial]:
    """Sorts the trials that trained longest by objective, the cheaper of two equal ones first.

    Args:
        trials: Of one search.
        fields: Costs, the one that matters most first; see `SearchConfig.cost_fields`.
    """
    return sorted(_comparable(trials), key=lambda trial: _rank(trial, fields))


def absolute_limits(config: SearchConfig, uniform8: Baseline | None) -> dict[str, float]:
    """Returns cost field → limit, as a search resolves it; a relative one needs the uniform 8-bit network's cost."""
    constraints = config.parsed_constraints()
    limited = {constraint.metric for constraint in constraints}
    swept = [Constraint(metric, 1.0, relative=True) for metric in config.pareto if metric not in limited]
    limits: dict[str, float] = {}
    for constraint in (*constraints, *swept):
        reference = uniform8.cost.get(constraint.field) if uniform8 else None
        if not constraint.relative or reference is not None:
            limit = constraint.resolve(reference or 0.0).limit
            limits[constraint.field] = min(limit, limits.get(constraint.field, limit))
    return limits


def within(trials: Sequence[Trial], limits: Mapping[str, float]) -> list[Trial]:
    """Returns the trials that keep all limits, by cost field; those of a run that was picked need not."""
    return [
        trial
        for trial in trials
        if all((cost := trial.cost.get(field)) is None or cost <= limit for field, limit in limits.items())
    ]


def pareto_front(trials: Sequence[Trial], fields: Sequence[str] = COST_FIELDS) -> list[Trial]:
    """Returns the trials, of those that trained longest, that none beats in objective and every cost at once.

    A trial is beaten by one that is at least as good in all and better in one. Sorted by cost.

    Args:
        trials: Of one search.
        fields: Costs that count, in the order in which to sort.
    """
    trials = _comparable(trials)
    points = [_rank(trial, fields) for trial in trials]
    front: list[tuple[float, ...]] = []
    for point in sorted(set(points)):  # whatever beats a point comes before it
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in front):
            front.append(point)
    kept = set(front)
    chosen = [trial for trial, point in zip(trials, points, strict=True) if point in kept]
    return sorted(chosen, key=lambda trial: _costs(trial, fields))


def hypervolume(trials: Sequence[Trial], reference: Mapping[str, float]) -> float:
    """Returns how much of objective and costs the trials that trained longest beat, 0 to 1.

    Each axis runs from 0 to 1: 1 − objective, and each cost in units of its reference; the volume is that of all points
    that some trial is at least as good as (Zitzler and Thiele 1998).

    Args:
        trials: Of one search.
        reference: Cost field → what counts as 1, such as the uniform 8-bit network's cost.
    """
    from moocore import hypervolume as dominated

    points = [
        [1.0 - trial.objective, *(cost / limit for cost, limit in zip(costs, reference.values(), strict=True))]
        for trial in _comparable(trials)
        if all(map(math.isfinite, costs := _costs(trial, tuple(reference))))
    ]
    return float(dominated(np.array(points), ref=np.ones(1 + len(reference)))) if points else 0.0


def _rank(trial: Trial, fields: Sequence[str]) -> tuple[float, ...]:
    return -trial.objective, *_costs(trial, fields)


def _costs(trial: Trial, fields: Sequence[str]) -> tuple[float, ...]:
    """One that is not known beats nothing; a measured table may lack some for all trials."""
    return tuple(math.inf if (cost := trial.cost.get(field)) is None else cost for field in fields)
