"""Which of the scored policies are worth keeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from haq.runs import Trial

__all__ = ["best_first", "best_of", "hypervolume", "pareto_front"]


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that trained longest: scores with and without fine-tuning are never compared."""
    scored = [trial for trial in trials if trial.score is not None and trial.error is None]
    longest = max((_level(trial) for trial in scored), default=None)
    return [trial for trial in scored if _level(trial) == longest]


def _level(trial: Trial) -> tuple[int, str]:
    """How far the trial was trained; `qat` with no step yet sorts after `ptq`."""
    return trial.scores[-1].steps, trial.scores[-1].fidelity


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Returns the first that `best_first` would, without sorting, or `None` where nothing was scored."""
    return min(_comparable(trials), key=_rank, default=None)


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Sorts the trials that trained longest by objective, the cheaper of two equal ones first."""
    return sorted(_comparable(trials), key=_rank)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials, of those that trained longest, that none beats in objective and every cost at once.

    A trial is beaten by one that is at least as good in all and better in one. Sorted by latency.
    """
    trials = _comparable(trials)
    points = [(-trial.objective, *_costs(trial)) for trial in trials]
    front: list[tuple[float, ...]] = []
    for point in sorted(set(points)):  # whatever beats a point comes before it
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in front):
            front.append(point)
    kept = set(front)
    chosen = [trial for trial, point in zip(trials, points, strict=True) if point in kept]
    return sorted(chosen, key=_costs)


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
        [1.0 - trial.objective, *((trial.cost.get(field) or 0.0) / limit for field, limit in reference.items())]
        for trial in _comparable(trials)
    ]
    return float(dominated(np.array(points), ref=np.ones(1 + len(reference)))) if points else 0.0


def _rank(trial: Trial) -> tuple[float, ...]:
    return -trial.objective, *_costs(trial)


def _costs(trial: Trial) -> tuple[float, ...]:
    """Latency, then energy, then size; a measured table may lack one."""
    return tuple(trial.cost.get(field) or 0.0 for field in ("latency_ms", "energy_mj", "size_bytes"))
