"""Asynchronous successive halving that remembers the trials of an interrupted search."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from haq.runs import Trial
from haq.scores import RankBy
from haq.search.tune.searcher import METRIC
from haq.search.tune.trainable import CHUNKS

__all__ = ["Halving"]


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020, arXiv:1810.05934): a trial goes on when its score is among the better half of its rung.

    Args:
        trials: That ended before; they stand in the rungs they reached, as if they had run under this scheduler.
        rank_by: What objectives are made of.
    """

    def __init__(self, trials: Iterable[Trial] = (), rank_by: RankBy = "top1") -> None:
        super().__init__(
            time_attr="training_iteration",
            metric=METRIC,
            mode="max",
            max_t=1 + CHUNKS,
            grace_period=1,
            reduction_factor=2,
        )
        (bracket,) = self._brackets
        for trial in trials:
            # Ray keeps its own scheduler's state as a pickle, which a run folder must not hold
            stand_in: Any = SimpleNamespace(trial_id=f"before-{trial.number}")
            for reached, score in enumerate(trial.scores, 1):
                bracket.on_result(stand_in, reached, score.objective(rank_by))
