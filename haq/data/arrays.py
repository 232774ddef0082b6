"""Images and labels in NumPy arrays, from files or from a user's function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from haq.data.samples import Images
from haq.data.splitting import Splits
from haq.errors import DataError
from haq.io.prefixes import source_of
from haq.io.user_code import call_named

__all__ = ["checked_images", "default_statistics", "read_function", "read_npz", "taken"]

# Statistics of ImageNet's training images, as torchvision's pretrained models use them
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_npz(spec: str) -> Splits:
    """Reads `train.npz` and `test.npz` from the folder in `npz:FOLDER`; never unpickles anything."""
    folder = Path(source_of(spec)[1])
    if not os.path.isdir(folder):  # Path.is_dir raises an error for names that are too long
        raise DataError(f"data folder {str(folder)!r} does not exist; it must hold train.npz and test.npz")
    train = _arrays(folder / "train.npz")
    test = _arrays(folder / "test.npz")
    mean, std = train.get("mean"), train.get("std")
    return _splits(
        spec,
        checked_images(train["x"], train["y"], mean, std, str(folder / "train.npz")),
        checked_images(test["x"], test["y"], mean, std, str(folder / "test.npz")),
    )


def read_function(spec: str) -> Splits:
    """Runs `file.py:function`, which returns `((x_train, y_train), (x_test, y_test))`."""
    return _splits_of(call_named(spec, "data", DataError), spec, f"data function {spec!r} must return")


def taken(data: Any, named: str = "data") -> Splits:
    """Reads data that a user's code made.

    Args:
        data: `((x_train, y_train), (x_test, y_test))` as arrays or tensors, or a pair of `torch.utils.data.Dataset`
            whose items are `(x, label)`; x as in `checked_images`.
        named: Name of the data for messages.

    Raises:
        DataError: The data has another form, or its images or labels cannot be used.
    """
    return _splits_of(data, named, f"{named} must be")


def _splits_of(data: Any, named: str, wanted: str) -> Splits:
    """Returns checked splits; `wanted` begins the message for data of another form."""
    try:
        (x_train, y_train), (x_test, y_test) = map(_stacked, data)
    except (TypeError, ValueError):
        raise DataError(
            f"{wanted} ((x_train, y_train), (x_test, y_test)), or a pair of data sets of (x, label)"
        ) from None
    return _splits(
        named,
        checked_images(x_train, y_train, None, None, f"{named} (train)"),
        checked_images(x_test, y_test, None, None, f"{named} (test)"),
    )


def _stacked(split: Any) -> tuple[Any, Any]:
    """Returns images and labels of one split, `(N, ...)` and `(N,)`."""
    if isinstance(split, Dataset):
        items = [split[index] for index in range(len(split))]  # type: ignore[arg-type]  # TypeError for a stream
        return np.stack([np.asarray(x) for x, _ in items]), np.array([np.asarray(y).item() for _, y in items])
    x, y = split
    return x, y


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not os.path.isfile(path):
        raise DataError(f"data file {str(path)!r} does not exist; the folder must hold train.npz and test.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as failure:  # zipfile, NumPy and the OS each raise their own errors for a damaged file
        raise DataError(f"cannot read {str(path)!r} as npz without pickle: {' '.join(str(failure).split())}") from None
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise DataError(f"{str(path)!r} has no array {missing[0]!r}; it must hold x (images) and y (labels)")
    return arrays


def checked_images(x: Any, y: Any, mean: Any, std: Any, where: str) -> Images:
    """Checks one split and fills in the normalisation.

    Args:
        x: Images, uint8 `(N, H, W, C)` or float32 `(N, C, H, W)`.
        y: Class indices, integers `(N,)`.
        mean: Mean of each channel, `(C,)`, for uint8 images; `None` for the default, see `default_statistics`.
        std: Standard deviation of each channel, `(C,)`, for uint8 images; `None` for the default.
        where: Source of the split, for messages.

    Raises:
        DataError: The arrays have another form, or their values cannot be used.
    """
    form = "x must be uint8 (N, H, W, C) or float32 (N, C, H, W)"
    try:
        x, y = np.asarray(x), np.asarray(y)
    except (TypeError, ValueError, RuntimeError) as failure:  # ragged lists; tensors with gradients or on a GPU
        raise DataError(f"{where}: not an array: {' '.join(str(failure).split())}; {form}") from None
    if x.dtype not in (np.uint8, np.float32) or x.ndim != 4:
        raise DataError(f"{where}: x is {x.dtype} of shape {x.shape}; {form}")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{where}: y is {y.dtype} of shape {y.shape}; y must be integers of shape (N,)")
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} images but {len(y)} labels")
    if 0 in x.shape:
        raise DataError(f"{where}: x of shape {x.shape} is empty; {form}")
    if y.min() < 0:
        raise DataError(f"{where}: label {y.min()} is negative; labels count from 0")
    if x.dtype == np.float32:
        if not np.isfinite(x).all():
            raise DataError(f"{where}: x has NaN or infinite values; remove those images")
        return Images(x, y.astype(np.int64), (), ())
    channels = x.shape[3]
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
    return Images(x, y.astype(np.int64), tuple(mean.tolist()), tuple(std.tolist()))


def default_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the default mean and standard deviation for grey or RGB images."""
    return (_IMAGENET_MEAN, _IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))


def _splits(spec: str, train: Images, test: Images) -> Splits:
    """Checks that both splits fit each other."""
    if train.x.dtype != test.x.dtype or train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"{spec}: training images are {train.x.dtype} {train.x.shape[1:]}, "
            f"but test images are {test.x.dtype} {test.x.shape[1:]}; give both the same type and shape"
        )
    if len(np.unique(train.y)) < 2:
        raise DataError(f"{spec}: all training labels are {train.y[0]}; at least two classes are needed")
    if unknown := sorted(set(np.unique(test.y).tolist()) - set(np.unique(train.y).tolist())):
        raise DataError(f"{spec}: test label {unknown[0]} does not occur among the training labels")
    return Splits(train, None, test, int(train.y.max()) + 1)
