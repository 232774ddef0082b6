"""Checks of the arrays that users give, and their form for networks: pictures, other numbers, or tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.data.samples import IGNORED, Images, Samples
from haq.errors import DataError

__all__ = ["as_array", "checked_samples", "default_statistics"]

# Statistics of ImageNet's training images, as torchvision's pretrained models use them
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FORM = "x must be uint8 images (N, H, W, C), or floating point or integers (N, …)"
_LABELS = f"y must be integers of shape (N,), or (N, T) for a label at each position, {IGNORED} where there is none"


def checked_samples(x: Any, y: Any, mean: Any, std: Any, where: str) -> Samples:
    """Checks one split, and brings it to the form that networks read.

    Args:
        x: Images, uint8 `(N, H, W, C)`; floating point `(N, …)`, which becomes float32; or other integers `(N, …)`,
            such as tokens, which become int64.
        y: Class indices, integers `(N,)`, or `(N, T)` with `IGNORED` at positions without a label.
        mean: Mean of each channel, `(C,)`, for uint8 images; `None` for the default, see `default_statistics`.
        std: Standard deviation of each channel, `(C,)`, for uint8 images; `None` for the default.
        where: Source of the split, for messages.

    Raises:
        DataError: The arrays have another form, or their values cannot be used.
    """
    x, y = as_array(x, where), as_array(y, where)
    _check_form(x, where)
    if y.ndim not in (1, 2) or y.shape[1:] == (1,) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{where}: y is {y.dtype} of shape {y.shape}; {_LABELS}")
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} samples but labels for {len(y)}; x and y must have the same length")
    for name, array in (("x", x), ("y", y)):
        if 0 in array.shape:
            raise DataError(f"{where}: {name} of shape {array.shape} is empty; give at least one sample")
    x, y = _numbers(x, where), _labels(_int64(y, "y", where), where)
    if x.dtype == np.uint8:
        return Images(x, y, *_statistics(x.shape[3], mean, std, where))
    # A float image has no statistics of its own; a run folder's fingerprint holds the empty ones
    return Images(x, y, (), ()) if x.ndim == 4 and x.dtype == np.float32 else Samples(x, y)


def as_array(values: Any, where: str) -> NDArray[Any]:
    """Returns an array, list or tensor as NumPy's array.

    Args:
        values: bfloat16, which NumPy lacks, becomes float32.
        where: Source of the values, for messages.

    Raises:
        DataError: The values are no array.
    """
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
        values = values.float()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as failure:  # ragged lists; tensors with gradients or on a GPU
        raise DataError(f"{where}: not an array: {' '.join(str(failure).split())}; give samples of one shape") from None


def default_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the default mean and standard deviation for grey or RGB images."""
    return (_IMAGENET_MEAN, _IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))


def _check_form(x: NDArray[Any], where: str) -> None:
    found = f"{where}: x is {x.dtype} of shape {x.shape}"
    if x.dtype == np.bool_:
        raise DataError(f"{found}; convert it to float32, or to int64 if the network reads indices")
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)) or x.ndim == 0:
        raise DataError(f"{found}; {_FORM}")
    if x.ndim == 1:
        raise DataError(f"{found}; a network reads samples in batches (N, …): give x[:, None] for one value a sample")
    if x.dtype == np.uint8 and x.ndim != 4:
        raise DataError(f"{found}, and uint8 is for images (N, H, W, C); convert it to float32, or tokens to int64")


def _numbers(x: NDArray[Any], where: str) -> NDArray[Any]:
    """Returns images as they are, other floating point as float32, and other integers as int64."""
    if x.dtype == np.uint8:
        return x
    if np.issubdtype(x.dtype, np.integer):
        return _int64(x, "x", where)
    with np.errstate(over="ignore"):
        numbers = x.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        if np.isfinite(x).all():
            raise DataError(f"{where}: x has values beyond the range of float32; scale them")
        raise DataError(f"{where}: x has NaN or infinite values; remove those samples")
    return numbers


def _int64(values: NDArray[Any], name: str, where: str) -> NDArray[np.int64]:
    if values.dtype.kind == "u" and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where}: {name} has the value {values.max()}, which is beyond int64; give smaller integers")
    return values.astype(np.int64)


def _labels(y: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    counted = y != IGNORED
    negative = y < 0 if y.ndim == 1 else (y < 0) & counted
    if negative.any():
        missing = "" if y.ndim == 1 else f", and {IGNORED} marks a position without a label"
        raise DataError(f"{where}: label {y[negative].min()} is negative; labels count from 0{missing}")
    if y.ndim > 1 and not counted.any(1).all():
        sample = int(np.flatnonzero(~counted.any(1))[0])
        raise DataError(f"{where}: all labels of sample {sample} are {IGNORED}, so it has none; remove such samples")
    return y


def _statistics(channels: int, mean: Any, std: Any, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of every channel of uint8 images."""
    if mean is None and std is None:
        if channels not in (1, 3):
            raise DataError(
                f"{where}: there is no default normalisation for {channels} channels; "
                "add arrays mean and std of shape (C,) to train.npz"
            )
        mean, std = default_statistics(channels)
    try:
        mean, std = (np.asarray(values, np.float64).reshape(channels) for values in (mean, std))
    except (TypeError, ValueError):
        mean = std = np.full(channels, np.nan)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise DataError(
            f"{where}: mean and std must hold {channels} finite values, std above 0, for {channels} channels"
        )
    return tuple(mean.tolist()), tuple(std.tolist())
