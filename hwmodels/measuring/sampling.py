"""Timing several calls fairly: interleaved, in random order, without outliers."""

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
    """Runs each call `repeats` times and returns the results, `(calls, repeats, ...)`.

    After a warm-up, every round runs each call in a short burst, in a new random order, so that a machine that slows
    down affects all calls alike. The first run of a burst is not counted, because the caches are full of other data.

    Args:
        calls: Return the milliseconds that they took.
        repeats: Results of each call.
        seed: Seed of the order.
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
    """Statistics of samples, one entry per call.

    Attributes:
        median: Median without outliers, in milliseconds.
        spread: Interquartile range without outliers, as a fraction of the median.
        outliers: Fraction of the samples that are outliers.
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
    """Returns the energy of one run of each call in joules, `(calls,)`.

    Args:
        calls: What to run.
        counter: Is read before and after.
        seconds: How long each call is repeated between the two readings.
    """
    used = np.empty(len(calls))
    for index, call in enumerate(calls):
        before, start, count = counter.joules(), time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            call()
            count += 1
        used[index] = (counter.joules() - before) / count
    return used
