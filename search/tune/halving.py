"""Asynchronous successive halving that remembers the trials of an interrupted search."""

from __future__ import annotations

from collections.abc import Iterable

from ray.tune.schedulers import ASHAScheduler

from haq.runs import Trial
from haq.scores import RankBy
from haq.search.tune.ray_internals import enter
from haq.search.tune.searcher import METRIC
from haq.search.tune.trainable import CHUNKS

__all__ = ["Halving"]


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020, arXiv:1810.05934): a trial continues when its score is in the better half of its rung.

    Args:
        trials: Those that ended before. They are entered into the rungs they reached.
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
        for trial in trials:
            for reached, score in enumerate(trial.scores, 1):
                enter(self, f"before-{trial.number}", reached, score.objective(rank_by))
