"""Timing many things fairly: in turns, in random order, with outliers set aside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haq.hwmodels.measuring.device import EnergyCounter
from haq.hwmodels.measuring.gpu import GpuEnergyCounter

__all__ = ["Statistics", "joules_per_call", "sample", "summarize"]

_WARM_UP = 2
_BURST = 3
_OUTLIER = 5.0


def sample(calls: Sequence[Callable[[], npt.ArrayLike]], repeats: int, seed: int) -> npt.NDArray[np.float64]:
    """Runs each call `repeats` times and returns what they return, milliseconds, `(calls, repeats, ...)`.

    After a warm-up, every turn runs each call in a short burst, in an order of its own, so that a machine that becomes
    slower makes all of them slower alike. The first run of a burst finds the caches full of something else and is not
    counted.
    """
    rng = np.random.default_rng(seed)
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    taken: list[list[npt.ArrayLike]] = [[] for _ in calls]
    for _ in range(-(-repeats // _BURST)):
        for index in rng.permutation(len(calls)):
            calls[index]()
            taken[index] += [calls[index]() for _ in range(_BURST)]
    return np.array([runs[:repeats] for runs in taken], np.float64)


@dataclass(frozen=True)
class Statistics:
    """What samples say, an entry a call.

    Attributes:
        median: Of the samples that are no outliers, milliseconds.
        spread: Distance between their quartiles, as a share of the median.
        outliers: Share of samples set aside.
    """

    median: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    outliers: npt.NDArray[np.float64]


def summarize(samples: npt.NDArray[np.float64]) -> Statistics:
    """Summarises samples, `(calls, repeats)`.

    An outlier lies more than 5 scaled median absolute deviations above the median (Leys et al. 2013, doi
    10.1016/j.jesp.2013.03.013, who take 2.5 on both sides): interruptions only ever make a call slower.
    """
    middle = np.median(samples, axis=1, keepdims=True)
    deviation = 1.4826 * np.median(np.abs(samples - middle), axis=1, keepdims=True)
    kept = np.where(samples > middle + _OUTLIER * np.maximum(deviation, 0.01 * middle), np.nan, samples)
    low, median, high = np.nanquantile(kept, [0.25, 0.5, 0.75], axis=1)
    return Statistics(median, (high - low) / median, np.isnan(kept).mean(axis=1))


def joules_per_call(
    calls: Sequence[Callable[[], object]], counter: EnergyCounter | GpuEnergyCounter, seconds: float = 0.05
) -> npt.NDArray[np.float64]:
    """Returns the energy of one call, `(calls,)`, by repeating each for `seconds` between two readings."""
    used = np.empty(len(calls))
    for index, call in enumerate(calls):
        before, start, count = counter.joules(), time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            call()
            count += 1
        used[index] = (counter.joules() - before) / count
    return used
