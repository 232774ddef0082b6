from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.scores import Score


def test_ranking_by_top1_gives_top1() -> None:
    assert Score(0.75, 0.9, 100, 1.0, "ptq").objective("top1") == 0.75


def test_ranking_by_loss_gives_the_mean_likelihood() -> None:
    assert Score(0.75, math.log(2), 100, 1.0, "ptq").objective("loss") == pytest.approx(0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_network_is_worth_nothing(loss: float) -> None:
    score = Score(0.75, loss, 100, 1.0, "qat", 8)
    assert not score.finite
    assert score.objective("top1") == score.objective("loss") == 0.0


@given(a=st.floats(0, 50), b=st.floats(0, 50))
def test_a_smaller_loss_is_never_worth_less(a: float, b: float) -> None:
    low, high = (Score(0.5, loss, 10, 0.1, "ptq").objective("loss") for loss in sorted((a, b)))
    assert 0 <= high <= low <= 1


@given(top1=st.floats(0, 1), loss=st.floats(0, 1e6), steps=st.integers(0, 10**6))
def test_json_round_trip_is_exact(top1: float, loss: float, steps: int) -> None:
    score = Score(top1, loss, 500, 0.25, "qat", steps)
    assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score
