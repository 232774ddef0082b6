"""Second moments of the columns that a layer's weight is multiplied by: the curvature of its output error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from haq.layers.kinds import bias_of, kind_of
from haq.layers.own_forward import Substituted
from haq.layers.running import groups_of

__all__ = ["Moments", "Reads", "columns", "is_product", "positions"]

_SAMPLES, _LEAST_PER_COLUMN = 8192, 3
_MOST_BYTES = 2**28  # for one batch's windows; limits depthwise layers, which have few columns but many groups
_HELD_BYTES = 2**27  # for all batches' windows, if the caller holds them
_SHOWN = 512  # columns in `Reads.shown`


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the inputs x̂ that a layer gets, and of the inputs x that it would get in the float network.

    Attributes:
        gram: E[x̂ x̂ᵀ], or the covariance of x̂ if the layer's bias absorbs mean errors, `(groups, K, K)`.
        cross: E[x x̂ᵀ], or the covariance of x and x̂, `(groups, K, K)`; `None` if x and x̂ are the same.
        mean: E[x̂], `(groups, K)`.
        exact_mean: E[x], `(groups, K)`.
        samples: Number of columns that the moments are averages of.
        blocks: Blocks of columns that each group is cut into; moments between blocks are left out, and every block
            counts as a group in the shapes above.
    """

    gram: Tensor
    cross: Tensor | None
    mean: Tensor
    exact_mean: Tensor
    samples: int
    blocks: int = 1


class Reads:
    """Accumulates the moments of one layer's inputs over batches.

    A random part of a convolution's windows is used: 8,192 over all batches, or three for each column of the matrix if
    that is more. The moments take 4·K² bytes for each group and matrix, and one batch's windows at most 256 MiB.

    Args:
        layer: A layer that is a product.
        batches: Number of batches that will be added.
        seed: Seed for the choice of windows.
        samples: Number of windows over all batches, in place of 8,192; more than that only if they fit into 128 MiB.
        blocks: Blocks of columns without moments between them, a divisor of their number; 0 for no moments at all.
    """

    def __init__(self, layer: Any, batches: int, seed: int = 0, samples: int = _SAMPLES, blocks: int = 1) -> None:
        self._layer, self._rng, self._blocks = layer, torch.Generator().manual_seed(seed), blocks
        size, groups = layer.weight[0].numel() // max(blocks, 1), groups_of(layer) * max(blocks, 1)
        if samples > _SAMPLES:
            samples = max(_SAMPLES, min(samples, _HELD_BYTES // (4 * groups * size)))
        wanted = -(-max(samples, _LEAST_PER_COLUMN * size) // max(batches, 1))
        self._per_batch = min(wanted, max(_MOST_BYTES // (4 * groups * size), _LEAST_PER_COLUMN * size))
        self._gram, self._cross = torch.zeros(groups, size, size), torch.zeros(())
        self._sums = torch.zeros(2, groups, size)
        self._origins: Tensor | None = None  # subtracted, near the means: squares of large numbers would lose precision
        self._count, self._alike = 0, True
        self._shown: list[Tensor] = []
        self._shown_per_batch = -(-_SHOWN // max(batches, 1))

    def add(self, x: Tensor, exact: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            x: Input of the layer.
            exact: Its input in the float network; by default `x`.
        """
        self.add_columns(*self.taken(x) if exact is None else self.taken(x, exact))

    def taken(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the columns of a batch to add, `(groups, K, n)`: the same positions of each of several versions."""
        chosen = positions(self._layer, inputs[0], self._per_batch, self._rng)
        return tuple(columns(self._layer, x, chosen) for x in inputs)

    def add_columns(self, read: Tensor, exact: Tensor | None = None) -> None:
        """Adds columns from `taken`, `(groups, K, n)`."""
        self._shown.append(read[:, :, : self._shown_per_batch])
        if not self._blocks:
            return
        read, exact = self._cut(read), None if exact is None else self._cut(exact)
        true = read if exact is None else exact
        if self._origins is None:
            self._origins = torch.stack([read.mean(2, keepdim=True), true.mean(2, keepdim=True)])
        read = read - self._origins[0]
        self._gram.baddbmm_(read, read.transpose(1, 2))
        self._sums[0] += read.sum(2)
        self._count += read.shape[2]
        if exact is not None:
            self._alike = False
            true = true - self._origins[1]
            if not self._cross.dim():  # allocated late, because most do not need it
                self._cross = torch.zeros_like(self._gram)
            self._cross.baddbmm_(true, read.transpose(1, 2))
            self._sums[1] += true.sum(2)

    def _cut(self, columns: Tensor) -> Tensor:
        groups, size, count = columns.shape
        return columns.reshape(groups * self._blocks, size // self._blocks, count) if self._blocks > 1 else columns

    def joined(self, *others: Reads) -> Reads:
        """Adds the sums of other instances for the same layer, and returns itself."""
        for other in others:
            if self._origins is None or other._origins is None:
                raise ValueError("nothing was read")
            moved, count = other._origins - self._origins, other._count
            sums = other._sums[:, :, :, None]
            self._gram += other._gram + _moved(sums[0], moved[0], sums[0], moved[0], count)
            if not other._alike:
                self._cross = self._cross + other._cross + _moved(sums[1], moved[1], sums[0], moved[0], count)
            self._sums += other._sums + count * moved[..., 0]
            self._count += count
            self._alike = self._alike and other._alike
            self._shown += other._shown
        return self

    @property
    def shown(self) -> Tensor:
        """Some of the columns, `(groups, K, n)`."""
        return torch.cat(self._shown, 2)

    def moments(self) -> Moments | None:
        """Returns the moments; `None` if inputs were not finite, or the layer is not a product with its weight."""
        if self._origins is None or not self._count or not is_product(self._layer):
            return None
        shifts = self._sums[:, :, :, None] / self._count
        mean, exact = self._origins + shifts
        gram = self._gram / self._count - shifts[0] @ shifts[0].transpose(1, 2)
        cross = self._cross / self._count - shifts[1] @ shifts[0].transpose(1, 2)
        if not takes_shift(self._layer):
            gram, cross = gram + mean @ mean.transpose(1, 2), cross + exact @ mean.transpose(1, 2)
        if not bool(torch.isfinite(gram).all() & torch.isfinite(cross).all()):
            return None
        mean, exact = mean[:, :, 0], exact[:, :, 0]
        if self._alike:
            return Moments(gram, None, mean, mean, self._count, self._blocks)
        return Moments(gram, cross, mean, exact, self._count, self._blocks)


def _moved(a: Tensor, by: Tensor, b: Tensor, along: Tensor, count: int) -> Tensor:
    """Returns Σ(x + p)(y + q)ᵀ − Σxyᵀ for Σx, p, Σy and q, `(groups, K, 1)` each."""
    return a @ along.transpose(1, 2) + by @ b.transpose(1, 2) + count * by @ along.transpose(1, 2)


def moments_bytes(layer: nn.Module, blocks: int = 1) -> int:
    """Returns the memory that a layer's second moments take, in bytes.

    Args:
        layer: The layer.
        blocks: As for `Reads`.
    """
    if not is_product(layer) or not blocks:
        return 0
    return 4 * groups_of(layer) * cast(Tensor, layer.weight)[0].numel() ** 2 // blocks


def takes_shift(layer: nn.Module) -> bool:
    """Whether the layer's bias absorbs mean errors; a convolution without bias gets one, as in batch-norm folding."""
    return kind_of(layer).gains_bias or bias_of(layer) is not None


def is_product(layer: nn.Module) -> bool:
    """Whether the layer is one product of its weight and its input, which `Substituted` layers are not."""
    return not isinstance(layer, Substituted) and kind_of(layer).is_product(layer)


def positions(layer: nn.Module, x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Chooses columns of a batch: windows for a convolution, rows of a linear layer's input.

    Args:
        layer: A layer that is a product.
        x: Its input.
        count: Number of positions; all are returned if there are no more.
        rng: Generator for the choice, with replacement.

    Returns:
        Indices, `(count,)` or fewer.
    """
    total = kind_of(layer).count(layer, x)
    return torch.arange(total) if total <= count else torch.randint(total, (count,), generator=rng)


def columns(layer: nn.Module, x: Tensor, chosen: Tensor) -> Tensor:
    """Returns the columns that the weight, as a matrix, is multiplied by at some positions.

    Args:
        layer: A layer that is a product.
        x: Its input.
        chosen: Positions from `positions`, `(count,)`.

    Returns:
        Columns in float32, `(groups, K, count)`.
    """
    return kind_of(layer).columns(layer, x.detach().float(), chosen)
