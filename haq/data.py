"""Labelled images: what a network is fine-tuned, scored and tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.errors import DataError, did_you_mean
from haq.loading import call_named, is_reference

__all__ = ["ImageData", "Images", "get_data"]

# Of ImageNet's training images, as torchvision's pretrained models use them
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_VAL_SHARE = 0.2
_DIGITS_TEST = 450


@dataclass(frozen=True, eq=False)
class Images:
    """One split.

    Attributes:
        x: uint8 `(N, H, W, C)`, or float32 `(N, C, H, W)` that is normalised already.
        y: int64 `(N,)`, class indices.
        mean: `(C,)`, subtracted from uint8 images after division by 255.
        std: `(C,)`, by which they are then divided.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns normalised float32 images `(B, C, H, W)` and int64 labels `(B,)`."""
        x = self.x[np.asarray(indices)]  # a copy: arrays in Ray's object store are read-only
        y = torch.from_numpy(self.y[np.asarray(indices)])
        if x.dtype != np.uint8:
            return torch.from_numpy(x), y
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean).div_(std), y

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Images:
        """Returns the split with only these images."""
        chosen = np.asarray(indices)
        return Images(self.x[chosen], self.y[chosen], self.mean, self.std)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: `val` is held out of the training images, `test` is looked at once, at the end."""

    name: str
    train: Images
    val: Images
    test: Images
    num_classes: int


def get_data(spec: str, val_images: int, seed: int) -> ImageData:
    """Loads a data set and holds out its validation images.

    Args:
        spec: `digits`; `npz:FOLDER` with `train.npz` and `test.npz` (`x`, `y`, and optionally `mean` and `std` in
            `train.npz`); or `file.py:function`, which is run and returns `((x_train, y_train), (x_test, y_test))`.
        val_images: About how many training images to hold out; a fifth of every class at most, but at least one image
            of each class that has several.
        seed: Decides which; `digits` has a fixed split, because its float network must not have seen them.

    Raises:
        DataError: The data is missing or malformed; nothing is ever unpickled.
    """
    if spec == "digits":
        return _digits()
    if spec.startswith("npz:"):
        train, test = _npz_folder(Path(spec[4:]).expanduser())
    elif is_reference(spec):
        train, test = _from_function(spec)
    else:
        raise DataError(
            f"unknown data {spec!r}{did_you_mean(spec, ['digits'])}; use digits, npz:FOLDER or file.py:function"
        )
    _check_pair(spec, train, test)
    num_classes = int(train.y.max()) + 1
    train_part, val = _hold_out(train, min(val_images, max(1, int(_VAL_SHARE * len(train)))), seed)
    if not len(val):
        raise DataError(f"{spec}: no class has two training images, so none can be held out for validation; add some")
    return ImageData(spec, train_part, val, test, num_classes)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels
    whole = Images(x, bunch.target.astype(np.int64), (0.5,), (0.5,))
    rest, test = _hold_out(whole, _DIGITS_TEST, seed=0)
    train, val = _hold_out(rest, int(_VAL_SHARE * len(rest)), seed=0)
    return ImageData("digits", train, val, test, 10)


def _hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Splits off about `count` images, the same share of every class."""
    rng = np.random.default_rng(seed)
    share = count / len(images)
    held: list[int] = []
    for label in np.unique(images.y):
        members = rng.permutation(np.flatnonzero(images.y == label))
        held.extend(members[: max(1, round(share * len(members)))] if len(members) > 1 else [])
    chosen = np.zeros(len(images), bool)
    chosen[held] = True
    return images.subset(np.flatnonzero(~chosen)), images.subset(np.flatnonzero(chosen))


def _npz_folder(folder: Path) -> tuple[Images, Images]:
    if not folder.is_dir():
        raise DataError(f"data folder {str(folder)!r} does not exist; it must hold train.npz and test.npz")
    train = _read_npz(folder / "train.npz")
    test = _read_npz(folder / "test.npz")
    mean, std = train.get("mean"), train.get("std")
    return (
        _images(train["x"], train["y"], mean, std, str(folder / "train.npz")),
        _images(test["x"], test["y"], mean, std, str(folder / "test.npz")),
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist; the folder must hold train.npz and test.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as failure:  # zipfile, NumPy and the OS each raise their own for a damaged file
        raise DataError(f"cannot read {str(path)!r} as npz without pickle: {' '.join(str(failure).split())}") from None
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise DataError(f"{str(path)!r} has no array {missing[0]!r}; it must hold x (images) and y (labels)")
    return arrays


def _from_function(spec: str) -> tuple[Images, Images]:
    result = call_named(spec, "data", DataError)
    try:
        (x_train, y_train), (x_test, y_test) = result
    except (TypeError, ValueError):
        raise DataError(f"data function {spec!r} must return ((x_train, y_train), (x_test, y_test))") from None
    return _images(x_train, y_train, None, None, f"{spec} (train)"), _images(
        x_test, y_test, None, None, f"{spec} (test)"
    )


def _images(x: Any, y: Any, mean: Any, std: Any, where: str) -> Images:
    """Checks one split and fills in the normalisation."""
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
                f"{where}: no default for {channels} channels; add arrays mean and std of shape (C,) to train.npz"
            )
        mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    try:
        mean, std = (np.asarray(values, np.float64).reshape(channels) for values in (mean, std))
    except (TypeError, ValueError):
        mean = std = np.full(channels, np.nan)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise DataError(
            f"{where}: mean and std must hold {channels} finite values, std above 0, for {channels} channels"
        )
    return Images(x, y.astype(np.int64), tuple(mean.tolist()), tuple(std.tolist()))


def _check_pair(spec: str, train: Images, test: Images) -> None:
    if train.x.dtype != test.x.dtype or train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"{spec}: training images are {train.x.dtype} {train.x.shape[1:]}, "
            f"but test images are {test.x.dtype} {test.x.shape[1:]}; give both the same form"
        )
    if len(np.unique(train.y)) < 2:
        raise DataError(f"{spec}: all training labels are {train.y[0]}; at least two classes are needed")
    if unknown := sorted(set(np.unique(test.y).tolist()) - set(np.unique(train.y).tolist())):
        raise DataError(f"{spec}: test label {unknown[0]} does not occur among the training labels")
