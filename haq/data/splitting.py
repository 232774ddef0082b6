"""Splits of a data set, and holding out samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from haq.data.samples import Samples

__all__ = ["VAL_SHARE", "Splits", "hold_out"]

VAL_SHARE = 0.2
"""Largest share of the training samples that is held out."""

S = TypeVar("S", bound=Samples)


@dataclass(frozen=True, eq=False)
class Splits:
    """What a source of data has.

    Attributes:
        train: For training.
        val: For validation; where it is `None`, validation samples are held out of `train`.
        test: For the final score.
        num_classes: How many classes the labels have.
    """

    train: Samples
    val: Samples | None
    test: Samples
    num_classes: int


def hold_out(samples: S, count: int, seed: int) -> tuple[S, S]:
    """Splits off about `count` samples: the same share of every class, and at least one of a class that has several.

    Samples with a label at every position have no class of their own, so exactly `count` are drawn, and one stays.

    Args:
        samples: Samples with class indices `(N,)` or `(N, T)`.
        count: Approximate number of samples to hold out.
        seed: Seed for choosing them.

    Returns:
        The remaining samples, and those held out.
    """
    # Not scikit-learn's `train_test_split`: it chooses other samples, and run folders keep fingerprints of their data
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(samples), bool)
    if samples.y.ndim > 1:
        chosen[rng.permutation(len(samples))[: min(count, len(samples) - 1)]] = True
    else:
        share = count / len(samples)
        for label in np.unique(samples.y):
            members = rng.permutation(np.flatnonzero(samples.y == label))
            chosen[members[: max(1, round(share * len(members)))] if len(members) > 1 else []] = True
    return samples.subset(np.flatnonzero(~chosen)), samples.subset(np.flatnonzero(chosen))
