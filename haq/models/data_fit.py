"""Checks that a network reads the samples of a data set, and that its outputs fit the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import IGNORED, ImageData, Samples
from haq.errors import DataError, ModelError
from haq.layers import run_sample

__all__ = ["check_fit"]

_COLUMNS = 16  # up to so many integers of a sample may each have an embedding of their own
_COMPARED = 64  # samples that tell which axis of the outputs holds the classes


def check_fit(model: nn.Module, data: ImageData) -> None:
    """Runs a network on a few samples, and refuses it if it fails or its outputs cannot be scored.

    Args:
        model: In floating point.
        data: The samples and labels that it is scored on.

    Raises:
        DataError: The outputs do not fit the labels, or the samples hold an index that the network does not have.
        ModelError: The network fails on the samples.
    """
    _check_outputs(_outputs(model, data.train, [0]), data.train.y[:1], data.num_classes)
    pair = data.train.subset(range(min(2, len(data.train))))
    outputs = _outputs(model, pair, range(len(pair)))
    _check_outputs(outputs, pair.y, data.num_classes)
    if outputs.dim() == 3 and outputs.shape[1] == outputs.shape[2] and _classes_first(model, data.train):
        raise DataError(f"the model's outputs fit the labels far better when read as (N, classes, T); {_LAST}")
    if not data.train.batch([0])[0].is_floating_point():
        for name, split in (("training", data.train), ("validation", data.val), ("test", data.test)):
            for row in _extremes(split.x):
                _outputs(model, split, [row], name)


_LAST = "the model must give (N, T, classes): return outputs.transpose(1, 2)"


def _outputs(model: nn.Module, split: Samples, rows: Sequence[int], name: str = "training") -> Any:
    x = split.batch(rows)[0]
    try:
        return run_sample(model, x)
    except ModelError as error:
        cause, given = error.__cause__, f"{x.dtype} values".removeprefix("torch.")
        reason = " ".join(str(cause).split())
        if isinstance(cause, IndexError) and not x.is_floating_point():
            raise DataError(
                f"{type(model).__name__} fails on a {name} sample with values from {int(x.min())} to {int(x.max())}: "
                f"{reason}; give indices for which its embeddings have rows"
            ) from None
        raise ModelError(
            f"{type(model).__name__} fails on a sample of shape {tuple(x.shape)} with {given}: {reason}; give data of "
            "the shape and type that it expects"
        ) from None


def _check_outputs(outputs: Any, y: NDArray[np.int64], classes: int) -> None:
    samples = "one sample" if len(y) == 1 else f"{len(y)} samples"
    tensor = isinstance(outputs, Tensor)
    if not tensor or outputs.shape[:-1] != y.shape or outputs.shape[-1] < classes:
        what = f"an output of shape {tuple(outputs.shape)}" if tensor else type(outputs).__name__
        hint = _hint(tuple(outputs.shape), y, classes) if tensor else ""
        raise DataError(
            f"the data has {classes} classes, but the model gives {what} for {samples}; it must give "
            f"{(*y.shape, classes)} or more classes{hint}"
        )
    if not outputs.is_floating_point():
        raise DataError(f"the model gives {outputs.dtype} outputs; it must give a floating-point score for each class")
    if not bool(outputs.isfinite().all()):
        raise DataError("the model gives NaN or infinite outputs for a training sample; check its weights and the data")


def _hint(shape: tuple[int, ...], y: NDArray[np.int64], classes: int) -> str:
    """Returns the likely mistake, as the end of a message."""
    if y.ndim == 1:
        return ": an answer for each sample, because y has a label for each sample" if len(shape) == 3 else ""
    if len(shape) == 3 and (shape[0], shape[2]) == y.shape and shape[1] >= classes:
        return f": {_LAST}"
    if shape == y.shape and y.max() <= 1:
        return "; if y is one-hot, give class indices, y.argmax(1)"
    return f": an answer for each of the {y.shape[1]} positions that y has labels for"


def _classes_first(model: nn.Module, split: Samples) -> bool:
    """Whether outputs `(N, T, T)`, whose shape does not tell, fit the labels far better with classes in the middle."""
    x, y = split.batch(range(min(split.fitting(_COMPARED), len(split))))
    outputs: Tensor = run_sample(model, x)
    last, first = (F.cross_entropy(each, y, ignore_index=IGNORED) for each in (outputs.transpose(1, 2), outputs))
    return bool(first < last / 2)


def _extremes(x: NDArray[np.int64]) -> list[int]:
    """Returns the samples that hold the smallest and the largest integer, of each column if there are few."""
    flat = x.reshape(len(x), -1)
    if flat.shape[1] > _COLUMNS:
        return sorted({int(np.argmin(flat.min(1))), int(np.argmax(flat.max(1)))})
    return sorted({*flat.argmin(0).tolist(), *flat.argmax(0).tolist()})
