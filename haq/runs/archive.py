"""Ranking the scored policies of a search, and its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.metrics import METRICS, metric_of
from haq.runs.outcome import Baseline
from haq.runs.trial import Cost, Trial

__all__ = ["absolute_limits", "best_first", "best_of", "cost_fields", "hypervolume", "pareto_front", "within"]

_MOST = float(np.finfo(np.float64).max)


def cost_fields(costs: Iterable[Cost], asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the metric fields that costs have, the most important first: fields that come first decide ties.

    Args:
        costs: Of trials or of baselines.
        asked: Fields that the search was asked for; these come first, then the order is that of `METRICS`.
    """
    known = dict.fromkeys(field for cost in costs for field in cost)
    order = dict.fromkeys((*asked, *(metric.field for metric in METRICS.values()), *known))
    return tuple(field for field in order if field in known)


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that trained longest: scores with and without fine-tuning do not compare."""
    scored = [trial for trial in trials if trial.score is not None and trial.error is None]
    longest = max((_level(trial) for trial in scored), default=None)
    return [trial for trial in scored if _level(trial) == longest]


def _level(trial: Trial) -> tuple[int, str]:
    """Returns how far the trial was trained; `qat` without a step sorts after `ptq`."""
    return trial.scores[-1].steps, trial.scores[-1].fidelity


def best_of(trials: Sequence[Trial], fields: Sequence[str] | None = None) -> Trial | None:
    """Returns the first trial of `best_first`, without sorting, or `None` where no trial was scored."""
    ranked, rank = _ranked(trials, fields)
    return min(ranked, key=rank, default=None)


def best_first(trials: Sequence[Trial], fields: Sequence[str] | None = None) -> list[Trial]:
    """Sorts the trials that trained longest by objective, the cheaper of two equal ones first.

    Args:
        trials: Of one search.
        fields: Costs, the most important first; by default all that the trials have. See `cost_fields`.
    """
    ranked, rank = _ranked(trials, fields)
    return sorted(ranked, key=rank)


def absolute_limits(config: SearchConfig, uniform8: Baseline | None) -> dict[str, float]:
    """Returns cost field → absolute limit, as in a search; without `uniform8`, relative limits are left out."""
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
    """Returns the trials that keep all limits, cost field → limit; trials of a run that `haq pick` made need not."""
    return [
        trial
        for trial in trials
        if all((cost := trial.cost.get(field)) is None or cost <= limit for field, limit in limits.items())
    ]


def pareto_front(trials: Sequence[Trial], fields: Sequence[str] | None = None) -> list[Trial]:
    """Returns the trials, of those that trained longest, that no other beats in objective and every cost at once.

    One trial beats another if it is at least as good in all of them and better in one. Sorted by cost.

    Args:
        trials: Of one search.
        fields: Costs that count, in the order in which to sort; by default all that the trials have.
    """
    from moocore import is_nondominated

    ranked, rank = _ranked(trials, fields)
    if not ranked:
        return []
    points = np.array([rank(trial) for trial in ranked])
    # moocore is not exact with infinite coordinates
    kept = is_nondominated(np.clip(points, -_MOST, _MOST), keep_weakly=True)
    front = [trial for trial, keep in zip(ranked, kept, strict=True) if keep]
    return sorted(front, key=lambda trial: rank(trial)[1:])


def hypervolume(trials: Sequence[Trial], reference: Mapping[str, float]) -> float:
    """Returns the volume that the trials that trained longest dominate, 0 to 1.

    Each axis runs from 0 to 1: 1 − objective, and each cost in units of its reference. The volume is that of all points
    that some trial is at least as good as (Zitzler and Thiele 1998).

    Args:
        trials: Of one search.
        reference: Field of a cost to minimise → the cost that counts as 1, such as the uniform 8-bit network's.
    """
    from moocore import hypervolume as dominated

    points = [
        [1.0 - trial.objective, *(cost / limit for cost, limit in zip(costs, reference.values(), strict=True))]
        for trial in _comparable(trials)
        if all(map(math.isfinite, costs := [metric_of(field).minimised(trial.cost.get(field)) for field in reference]))
    ]
    return float(dominated(np.array(points), ref=np.ones(1 + len(reference)))) if points else 0.0


def _ranked(
    trials: Sequence[Trial], fields: Sequence[str] | None
) -> tuple[list[Trial], Callable[[Trial], tuple[float, ...]]]:
    """Returns the comparable trials, and what to sort them by."""
    comparable = _comparable(trials)
    if fields is None:
        fields = cost_fields(trial.cost for trial in comparable)
    metrics = [metric_of(field) for field in fields]

    def rank(trial: Trial) -> tuple[float, ...]:
        # An unknown cost is infinite and beats nothing; a measured table may lack one for all trials
        return -trial.objective, *(metric.minimised(trial.cost.get(metric.field)) for metric in metrics)

    return comparable, rank
