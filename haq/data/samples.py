"""Labelled samples in memory, and the splits of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IGNORED", "ImageData", "Images", "Samples", "Tokens"]

IGNORED = -100
"""Label of a position that has none, such as padding; PyTorch's `ignore_index`."""

_TOKENS_A_BATCH = 1024  # each token has a score for every word of the vocabulary, which may hold a hundred thousand
_SCORES_A_BATCH = 2**24  # 64 MiB of outputs, for labels at every position


@dataclass(frozen=True, eq=False)
class Samples:
    """One split.

    Attributes:
        x: Inputs of the network, `(N, …)`.
        y: int64 class indices, `(N,)`, or `(N, T)` if a sample has a label at every position; `IGNORED` where it has
            none.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def answers(self) -> int:
        """Number of labels: of samples, or of positions that have one."""
        return int(np.count_nonzero(self.y != IGNORED))

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns the samples at these indices, in the form that the network reads, and their labels."""
        chosen = np.asarray(indices)  # indexing copies: arrays in Ray's object store are read-only
        return torch.from_numpy(self.x[chosen]), torch.from_numpy(self.y[chosen])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all samples in order, in batches of `fitting(size)`."""
        step = self.fitting(size)
        for start in range(0, len(self), step):
            yield self.batch(np.arange(start, min(start + step, len(self))))

    def fitting(self, size: int) -> int:
        """Returns the number of these samples to batch in place of `size` images; fewer if they have many answers."""
        if self.y.ndim == 1:
            return size
        scores: int = self.y.shape[1] * (int(self.y.max()) + 1)
        return max(1, min(size, _SCORES_A_BATCH // max(scores, 1)))

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """Returns a split with only the samples at these indices."""
        chosen = np.asarray(indices)
        return replace(self, x=self.x[chosen], y=self.y[chosen])


@dataclass(frozen=True, eq=False)
class Images(Samples):
    """Pictures.

    Attributes:
        x: uint8 `(N, H, W, C)`, or float32 `(N, C, H, W)` that is already normalised.
        y: int64 class indices, `(N,)`.
        mean: `(C,)`, subtracted from uint8 images after division by 255.
        std: `(C,)`; uint8 images are divided by it last.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns normalised float32 images `(B, C, H, W)` and int64 labels `(B,)`."""
        x, y = super().batch(indices)
        if x.dtype != torch.uint8:
            return x, y
        pixels = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean).div_(std), y


@dataclass(frozen=True, eq=False)
class Tokens(Samples):
    """Pieces of a text; the label of every token is the next token.

    Attributes:
        x: int64 `(N, T)`.
        y: int64 `(N, T)`.
    """

    def fitting(self, size: int) -> int:
        """Returns the number of pieces in a batch: fewer than images, because each token has a score for every word."""
        length: int = self.y.shape[1]
        return max(1, min(size, _TOKENS_A_BATCH // length))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: `val` is held out of the training samples; `test` is used once, at the end."""

    name: str
    train: Samples
    val: Samples
    test: Samples
    num_classes: int
