"""Samples and labels in NumPy arrays, from files, from a user's function or from objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from haq.data.checking import as_array, checked_samples
from haq.data.samples import IGNORED, Samples
from haq.data.splitting import Splits
from haq.errors import DataError
from haq.io.prefixes import source_of
from haq.io.user_code import call_named

__all__ = ["read_function", "read_npz", "taken"]


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
        checked_samples(train["x"], train["y"], mean, std, str(folder / "train.npz")),
        checked_samples(test["x"], test["y"], mean, std, str(folder / "test.npz")),
    )


def read_function(spec: str) -> Splits:
    """Runs `file.py:function`, which returns `((x_train, y_train), (x_test, y_test))`."""
    return _splits_of(call_named(spec, "data", DataError), spec, f"data function {spec!r} must return")


def taken(data: Any, named: str = "data") -> Splits:
    """Reads data that a user's code made.

    Args:
        data: `((x_train, y_train), (x_test, y_test))` as arrays or tensors, or a pair of `torch.utils.data.Dataset`
            whose items are `(x, label)`; x as in `checked_samples`.
        named: Name of the data for messages.

    Raises:
        DataError: The data has another form, or its samples or labels cannot be used.
    """
    return _splits_of(data, named, f"{named} must be")


def _splits_of(data: Any, named: str, wanted: str) -> Splits:
    """Returns checked splits; `wanted` begins the message for data of another form."""
    try:
        train, test = (_stacked(part, f"{named} ({name})") for part, name in zip(data, ("train", "test"), strict=True))
    except (TypeError, ValueError):
        raise DataError(
            f"{wanted} ((x_train, y_train), (x_test, y_test)), or a pair of data sets of (x, label)"
        ) from None
    return _splits(
        named,
        checked_samples(*train, None, None, f"{named} (train)"),
        checked_samples(*test, None, None, f"{named} (test)"),
    )


def _stacked(split: Any, where: str) -> tuple[Any, Any]:
    """Returns inputs `(N, …)` and labels `(N,)` or `(N, T)` of one split."""
    if not isinstance(split, Dataset):
        x, y = split
        return x, y
    items = [split[index] for index in range(len(split))]  # type: ignore[arg-type]  # TypeError for a stream
    if not items:
        raise DataError(f"{where} is empty; give at least one sample")
    pairs = [(as_array(x, where), as_array(y, where)) for x, y in items]
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    for what, arrays in (("x", xs), ("labels", ys)):
        if len(shapes := sorted({array.shape for array in arrays})) > 1:
            raise DataError(
                f"{where}: {what} of samples have several shapes, such as {shapes[0]} and {shapes[-1]}; pad them to "
                f"one shape, with the label {IGNORED} where there is none"
            )
    y = np.stack(ys)
    return np.stack(xs), y.reshape(len(y)) if y[0].size == 1 else y


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not os.path.isfile(path):
        raise DataError(f"data file {str(path)!r} does not exist; the folder must hold train.npz and test.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as failure:  # zipfile, NumPy and the OS each raise their own errors for a damaged file
        raise DataError(f"cannot read {str(path)!r} as npz without pickle: {' '.join(str(failure).split())}") from None
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise DataError(f"{str(path)!r} has no array {missing[0]!r}; it must hold x (samples) and y (labels)")
    return arrays


def _splits(spec: str, train: Samples, test: Samples) -> Splits:
    """Checks that both splits fit each other."""
    for what, one, other in (("x", train.x, test.x), ("y", train.y, test.y)):
        if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
            raise DataError(
                f"{spec}: {what} of a training sample is {one.dtype} {one.shape[1:]}, "
                f"but of a test sample {other.dtype} {other.shape[1:]}; give both the same type and shape"
            )
    known, asked = (set(np.unique(split.y).tolist()) - {IGNORED} for split in (train, test))
    if len(known) < 2:
        raise DataError(f"{spec}: all training labels are {min(known)}; at least two classes are needed")
    if train.y.ndim == 1 and (unknown := sorted(asked - known)):  # of many labels, some may be rare
        raise DataError(f"{spec}: test label {unknown[0]} does not occur among the training labels")
    return Splits(train, None, test, max(known | asked) + 1)
