"""Successive halving resumes where it was interrupted."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from haq.policy import BitPolicy, LayerBits
from haq.runs import Trial
from haq.scores import Score
from haq.search.tune.halving import Halving
from haq.search.tune.searcher import METRIC

POLICY = BitPolicy({"conv": LayerBits(4, 4)})
SEEN: list[list[float]] = [[0.9, 0.91, 0.92, 0.93], [0.5], [0.8, 0.7], [0.95, 0.96, 0.96, 0.97], [0.6]]


def trial(number: int, values: list[float]) -> Trial:
    scores = tuple(Score(value, 0.1, 100, 0.0, "qat" if step else "ptq", step) for step, value in enumerate(values))
    return Trial(number, POLICY, "agent", {}, scores, values[-1], 1.0)


def decisions(scheduler: Halving, name: str, values: list[float]) -> list[str]:
    """Runs a trial until it is stopped."""
    stand_in: Any = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, stand_in)  # type: ignore[arg-type]
    found = []
    for step, value in enumerate(values, 1):
        found.append(scheduler.on_trial_result(None, stand_in, {"training_iteration": step, METRIC: value}))  # type: ignore[arg-type]
        if found[-1] == TrialScheduler.STOP:
            break
    return found


def test_earlier_trials_count_as_if_this_scheduler_had_run_them() -> None:
    uninterrupted = Halving()
    for number, values in enumerate(SEEN):
        decisions(uninterrupted, f"t{number}", values)
    restored = Halving([trial(number, values) for number, values in enumerate(SEEN)])
    for name, value in (("low", 0.55), ("middle", 0.79), ("high", 0.93)):
        values = [value] * 4
        assert decisions(restored, name, values) == decisions(uninterrupted, name, values)


def test_the_worse_half_is_stopped_after_calibration() -> None:
    scheduler = Halving([trial(number, values) for number, values in enumerate(SEEN)])
    assert decisions(scheduler, "low", [0.55] * 4) == [TrialScheduler.STOP]
    assert decisions(Halving(), "first", [0.55] * 4)[0] == TrialScheduler.CONTINUE
