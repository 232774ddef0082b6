from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moocore import is_nondominated

from haq.runs.archive import absolute_limits, best_first, best_of, hypervolume, pareto_front, within
from haq.config import SearchConfig
from haq.policy import BitPolicy
from haq.runs import Baseline, Trial
from haq.scores import Score


def trial(number: int, objective: float, latency: float, steps: int = 8, error: str | None = None) -> Trial:
    cost = {"latency_ms": latency, "energy_mj": 1.0, "size_bytes": 1.0}
    score = Score(objective, 0.1, 10, 0.1, "qat" if steps else "ptq", steps)
    return Trial(number, BitPolicy.uniform(["conv"], 4), "agent", cost, (score,), objective, 1.0, error)


A, B, C = trial(1, 0.9, 5.0), trial(2, 0.8, 3.0), trial(3, 0.8, 4.0)


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front([A, B, C]) == [B, A]


def test_ties_are_kept() -> None:
    twin = trial(4, 0.9, 5.0)
    assert pareto_front([A, twin]) == [A, twin]


def test_only_scores_of_the_same_training_are_compared() -> None:
    untrained, failed = trial(5, 0.99, 1.0, steps=0), trial(6, 0.99, 1.0, error="nan")
    assert best_first([untrained, C, failed, B, A]) == [A, B, C]
    assert pareto_front([untrained, A]) == [A]
    assert best_first([untrained]) == [untrained]
    assert best_first([]) == []


@given(st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=12))
def test_the_front_is_exact(points: list[tuple[float, float]]) -> None:
    trials = [trial(number, objective, latency) for number, (objective, latency) in enumerate(points)]
    kept = is_nondominated(np.array([[-objective, latency] for objective, latency in points]), keep_weakly=True)
    assert {t.number for t in pareto_front(trials)} == set(np.flatnonzero(kept).tolist())


def test_hypervolume_of_known_points() -> None:
    reference = {"latency_ms": 10.0}
    assert hypervolume([A], reference) == pytest.approx(0.9 * 0.5)
    assert hypervolume([A, B, C], reference) == pytest.approx(0.8 * 0.7 + 0.1 * 0.5)
    assert hypervolume([trial(7, 0.9, 11.0)], reference) == 0.0
    assert hypervolume([], reference) == 0.0


def priced(number: int, objective: float, **cost: float | None) -> Trial:
    return replace(trial(number, objective, 5.0), cost={"latency_ms": 5.0, "size_bytes": 9.0, **cost})


@pytest.mark.parametrize("field", ["energy_mj", "ram_bytes", "bops"])
def test_every_cost_counts(field: str) -> None:
    """A policy that is worse in all else is kept for the one cost in which nothing beats it."""
    accurate, lean = priced(1, 0.9, **{field: 4.0}), priced(2, 0.8, **{field: 3.0})
    assert pareto_front([accurate, lean]) == [lean, accurate]
    assert best_first([priced(3, 0.8, **{field: 4.0}), lean]) == [lean, priced(3, 0.8, **{field: 4.0})]


def test_what_was_asked_for_decides_ties_first() -> None:
    small, fast = priced(1, 0.9, latency_ms=6.0, size_bytes=8.0), priced(2, 0.9, latency_ms=5.0, size_bytes=9.0)
    by_size, by_latency = (SearchConfig((f"{metric}=50%",)).cost_fields for metric in ("size", "latency"))
    assert best_of([fast, small], by_size) == best_first([fast, small], by_size)[0] == small
    assert best_of([fast, small], by_latency) == fast
    assert pareto_front([fast, small], by_size) == [small, fast]


def test_a_cost_that_is_not_known_beats_nothing() -> None:
    known, unknown = priced(1, 0.9, energy_mj=1.0), priced(2, 0.9, energy_mj=None)
    assert pareto_front([unknown, known]) == [known]
    assert hypervolume([unknown], {"energy_mj": 2.0}) == 0.0
    assert hypervolume([known], {"energy_mj": 2.0}) == pytest.approx(0.9 * 0.5)


def test_limits_are_those_of_the_search() -> None:
    config = SearchConfig(("latency=80%", "latency=9ms"), pareto=("latency", "bops"))
    uniform8 = Baseline(8, A.scores[0], {"latency_ms": 10.0, "bops": 64.0}, 8)
    assert absolute_limits(config, uniform8) == {"latency_ms": 8.0, "bops": 64.0}
    assert absolute_limits(config, None) == {"latency_ms": 9.0}
    assert within([A, B], {"latency_ms": 4.0}) == [B]
