"""One-dimensional k-means, for which the optimal clusters can be computed.

In one dimension a cluster is an interval of the sorted values, and prefix sums give the error of any interval directly.
Dynamic programming over the intervals then finds the clusters with the least error (Wu 1991, "Optimal
quantization by matrix searching", Journal of Algorithms 12; Grønlund et al. 2017, "Fast exact k-means, k-medians and
Bregman divergence clustering in 1D", arXiv:1701.07204).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from haq.compiling import jit

__all__ = ["kmeans"]

_MOST_BORDERS = 2**13
"""Number of candidate borders of each of two kinds; rows with at most twice as many values are solved exactly."""

_MOST_ROUNDS = 300


def kmeans(rows: Tensor, clusters: int, weights: Tensor | None = None) -> Tensor:
    """Finds the centroids that minimise the sum over a row's values of weight · (value − nearest centroid)².

    For rows of at most 2^14 values, they are optimal up to rounding. In longer rows, borders are searched among 2^13
    places with equal numbers of values between them and 2^13 evenly spaced places, which covers both dense values and
    outliers. Lloyd's algorithm then improves the borders among all values.

    Args:
        rows: Values, `(groups, n)`, finite.
        clusters: k.
        weights: Weights of the values, `(groups, n)`, not negative; all 1 by default.

    Returns:
        Ascending centroids, `(groups, k)`; some are equal if a row has fewer distinct values.
    """
    ordered, order = rows.cpu().double().sort(1)
    masses = torch.ones_like(ordered) if weights is None else _positive(weights.cpu().double()).gather(1, order)
    middle = (masses * ordered).sum(1, keepdim=True) / masses.sum(1, keepdim=True)
    ordered = (ordered - middle).contiguous()  # squares of small numbers lose no precision
    mass, sums = (pad(values.cumsum(1), (1, 0)) for values in (masses, masses * ordered))
    places = _places(ordered)
    chosen = best_intervals(mass.gather(1, places).numpy(), sums.gather(1, places).numpy(), clusters)
    edges = places.gather(1, torch.from_numpy(chosen))
    first = ordered.gather(1, edges[:, :-1].clamp_max(ordered.shape[1] - 1))
    centroids = _means(mass, sums, edges, first)
    for _ in range(_MOST_ROUNDS):
        borders = ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()
        inner = torch.searchsorted(ordered, borders, right=True)
        edges = pad(pad(inner, (1, 0)), (0, 1), value=ordered.shape[1])
        moved = _means(mass, sums, edges, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return (centroids + middle).sort(1).values.to(rows)


def _positive(weights: Tensor) -> Tensor:
    """Raises weights of 0 to nearly 0, so that every cluster has a mean."""
    mean = weights.mean(1, keepdim=True)
    return torch.where(mean > 0, torch.maximum(weights, 1e-6 * mean), 1.0)


def _means(mass: Tensor, sums: Tensor, edges: Tensor, empty: Tensor) -> Tensor:
    """Returns the mean of each interval, `(groups, k)`; `empty` is used for intervals without values."""
    masses = mass.gather(1, edges).diff(dim=1)
    return torch.where(edges.diff(dim=1) > 0, sums.gather(1, edges).diff(dim=1) / masses, empty)


def _places(ordered: Tensor) -> Tensor:
    """Returns candidate borders as ascending numbers of values before them, `(groups, places)`."""
    groups, n = ordered.shape
    if n <= 2 * _MOST_BORDERS:
        return torch.arange(n + 1).expand(groups, -1)
    even = torch.linspace(0, n, _MOST_BORDERS + 1, dtype=torch.float64).long().expand(groups, -1)
    fractions = torch.linspace(0, 1, _MOST_BORDERS + 1, dtype=torch.float64)[1:-1]
    values = ordered[:, :1] + (ordered[:, -1:] - ordered[:, :1]) * fractions
    return torch.cat([even, torch.searchsorted(ordered, values.contiguous())], 1).sort(1).values


@jit
def best_intervals(mass: NDArray[np.float64], sums: NDArray[np.float64], clusters: int) -> NDArray[np.int64]:
    """Splits each row into the intervals that explain most of its sum of squares, so the squared error is least.

    An interval with mass m and sum s explains s²/m. The best start of the last interval grows with the interval's end
    and with the number of intervals (Grønlund et al., section 2). So ends are visited in halving steps, and each start
    is searched between those already known.

    Args:
        mass: Prefix sums of the weights, `(groups, places)`.
        sums: Prefix sums of weight times value.
        clusters: k; intervals may be empty.

    Returns:
        Places at which intervals start and end, `(groups, k + 1)`.
    """
    groups, places = mass.shape
    edges = np.zeros((groups, clusters + 1), np.int64)
    starts = np.zeros((clusters, places), np.int32)
    explained, before = np.zeros(places), np.zeros(places)
    for group in range(groups):
        m, s = mass[group], sums[group]
        for end in range(1, places):
            explained[end] = s[end] ** 2 / m[end] if m[end] > 0 else 0.0
        for k in range(1, clusters):
            before[:] = explained
            step = 1
            while 2 * step < places:
                step *= 2
            while step:
                for end in range(step, places, 2 * step):
                    high = min(end, starts[k, end + step] if end + step < places else end)
                    low = min(max(starts[k, end - step], starts[k - 1, end]), high)
                    best = low
                    most = -1.0
                    for start in range(low, high + 1):
                        weight = m[end] - m[start]
                        total = before[start] + ((s[end] - s[start]) ** 2 / weight if weight > 0 else 0.0)
                        if total > most:
                            most = total
                            best = start
                    explained[end] = most
                    starts[k, end] = best
                step //= 2
        edges[group, clusters] = places - 1
        for k in range(clusters - 1, 0, -1):
            edges[group, k] = starts[k, edges[group, k + 1]]
    return edges
