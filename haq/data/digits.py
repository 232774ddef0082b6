"""Scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from haq.data.samples import Images
from haq.data.splitting import VAL_SHARE, Splits, hold_out

__all__ = ["read_digits"]

_TEST = 450


def read_digits() -> Splits:
    """Returns a fixed split: the pretrained float network must not have seen the test images, whatever the seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels
    rest, test = hold_out(Images(x, bunch.target.astype(np.int64), (0.5,), (0.5,)), _TEST, seed=0)
    train, val = hold_out(rest, int(VAL_SHARE * len(rest)), seed=0)
    return Splits(train, val, test, 10)
