import numpy as np
import pytest

from haq.hwmodels.measuring.device import EnergyCounter
from haq.hwmodels.measuring.sampling import joules_per_call, sample, summarize


class Log:
    """Calls that log their turn and return a running number."""

    def __init__(self, calls: int) -> None:
        self.ran: list[int] = []
        self.calls = [lambda index=index: self._run(index) for index in range(calls)]

    def _run(self, index: int) -> float:
        self.ran.append(index)
        return float(len(self.ran))


@pytest.mark.parametrize("repeats", [1, 3, 4, 20])
def test_every_call_runs_as_often(repeats: int) -> None:
    log = Log(5)
    taken = sample(log.calls, repeats, seed=0)
    assert taken.shape == (5, repeats)
    assert len(set(np.bincount(log.ran))) == 1
    assert len(np.unique(taken)) == taken.size, "no run counts twice"


def test_the_first_run_of_a_burst_is_not_counted() -> None:
    log = Log(4)
    counted = {int(number) - 1 for number in sample(log.calls, 6, seed=0).ravel()}
    firsts = {at for at in range(len(log.ran)) if at % 4 == 0 and at >= 8}  # bursts of four after a warm-up of eight
    assert len(firsts) == 2 * 4
    assert counted == set(range(8, len(log.ran))) - firsts


def test_order_changes_from_turn_to_turn_and_with_the_seed() -> None:
    def turns(seed: int) -> list[tuple[int, ...]]:
        log = Log(6)
        sample(log.calls, 30, seed)
        ran = log.ran[2 * 6 :: 4]  # one of each burst of four, after the warm-up
        return [tuple(ran[start : start + 6]) for start in range(0, len(ran), 6)]

    first = turns(0)
    assert all(sorted(turn) == list(range(6)) for turn in first)
    assert len(set(first)) > 5
    assert turns(0) == first
    assert turns(1) != first


def test_calls_may_return_several_numbers() -> None:
    taken = sample([lambda: [1.0, 2.0], lambda: np.array([3.0, 4.0])], 5, seed=0)
    assert taken.shape == (2, 5, 2)
    assert (taken == np.array([[1.0, 2.0], [3.0, 4.0]])[:, None]).all()


def test_outliers_are_set_aside() -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(0.99, 1.01, (3, 101))
    clean = np.quantile(samples, [0.25, 0.5, 0.75], axis=1)
    disturbed = np.concatenate([samples, np.full((3, 10), [[10.0], [2.0], [1.1]])], axis=1)
    disturbed = rng.permuted(disturbed, axis=1)
    found = summarize(disturbed)
    np.testing.assert_array_equal(found.median, clean[1])
    np.testing.assert_allclose(found.spread, (clean[2] - clean[0]) / clean[1])
    np.testing.assert_allclose(found.outliers, 10 / 111)


def test_medians_are_exact_and_fast_runs_are_kept() -> None:
    found = summarize(np.array([[4.0, 1.0, 2.0, 3.0], [7.0, 7.0, 7.0, 7.0], [0.1, 5.0, 5.0, 5.0]]))
    np.testing.assert_array_equal(found.median, [2.5, 7.0, 5.0])
    np.testing.assert_array_equal(found.spread[1], 0.0)
    np.testing.assert_array_equal(found.outliers, [0.0, 0.0, 0.0])


def test_a_quantized_clock_is_no_outlier() -> None:
    """More than half the samples may be equal, with a deviation of zero; 5 % more is still no outlier."""
    assert summarize(np.array([[1.0] * 9 + [1.04]])).outliers == [0.0]
    assert summarize(np.array([[1.0] * 9 + [1.06]])).outliers == [0.1]


def test_joules_per_call() -> None:
    class Meter(EnergyCounter):
        """Every call uses 2 or 5 joules."""

        def __init__(self) -> None:
            self.used = 0.0

        def joules(self) -> float:
            return self.used

        def use(self, amount: float) -> None:
            self.used += amount

    meter = Meter()
    assert joules_per_call([lambda: meter.use(2.0), lambda: meter.use(5.0)], meter) == pytest.approx([2.0, 5.0])
