"""Second moments of the columns that a layer's weight is multiplied by: the curvature of its output error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.own_forward import OwnForward, Substituted, window_of
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
    """

    gram: Tensor
    cross: Tensor | None
    mean: Tensor
    exact_mean: Tensor
    samples: int


class Reads:
    """Accumulates the moments of one layer's inputs over batches.

    A random part of a convolution's windows is used: 8,192 over all batches, or three for each column of the matrix if
    that is more. The moments take 4·K² bytes for each group and matrix, and one batch's windows at most 256 MiB.

    Args:
        layer: A convolution or linear layer.
        batches: Number of batches that will be added.
        seed: Seed for the choice of windows.
        samples: Number of windows over all batches, in place of 8,192; more than that only if they fit into 128 MiB.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, batches: int, seed: int = 0, samples: int = _SAMPLES) -> None:
        self._layer, self._rng = layer, torch.Generator().manual_seed(seed)
        size, groups = layer.weight[0].numel(), groups_of(layer)
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
            x: Input of the layer, `(N, C, H, W)` or `(..., in)`.
            exact: Its input in the float network; by default `x`.
        """
        self.add_columns(*self.taken(x) if exact is None else self.taken(x, exact))

    def taken(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the columns of a batch to add, `(groups, K, n)`: the same positions of each of several versions."""
        chosen = positions(self._layer, inputs[0], self._per_batch, self._rng)
        return tuple(columns(self._layer, x, chosen) for x in inputs)

    def add_columns(self, read: Tensor, exact: Tensor | None = None) -> None:
        """Adds columns from `taken`, `(groups, K, n)`."""
        true = read if exact is None else exact
        self._shown.append(read[:, :, : self._shown_per_batch])
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
            return Moments(gram, None, mean, mean, self._count)
        return Moments(gram, cross, mean, exact, self._count)


def _moved(a: Tensor, by: Tensor, b: Tensor, along: Tensor, count: int) -> Tensor:
    """Returns Σ(x + p)(y + q)ᵀ − Σxyᵀ for Σx, p, Σy and q, `(groups, K, 1)` each."""
    return a @ along.transpose(1, 2) + by @ b.transpose(1, 2) + count * by @ along.transpose(1, 2)


def moments_bytes(layer: nn.Conv2d | nn.Linear) -> int:
    """Returns the memory that a layer's second moments take, in bytes."""
    return 4 * groups_of(layer) * layer.weight[0].numel() ** 2


def takes_shift(layer: nn.Module) -> bool:
    """Whether the layer's bias absorbs mean errors; a convolution without bias gets one, as in batch-norm folding."""
    return isinstance(layer, nn.Conv2d) or layer.bias is not None


def is_product(layer: nn.Module) -> bool:
    """Whether the layer is one product of its weight and its input, which `Substituted` layers are not."""
    return not isinstance(layer, Substituted)


def positions(layer: nn.Module, x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Chooses windows of a batch for a convolution, or rows of a linear layer's input.

    Args:
        layer: A convolution or linear layer.
        x: Its input, `(N, C, H, W)` or `(..., in)`.
        count: Number of positions; all are returned if there are no more.
        rng: Generator for the choice, with replacement.

    Returns:
        Indices, `(count,)` or fewer.
    """
    if isinstance(layer, nn.Conv2d):
        tall, wide = _places(layer, padded(layer, x))
        total = len(x) * tall * wide
    else:
        total = x.numel() // x.shape[-1]
    return torch.arange(total) if total <= count else torch.randint(total, (count,), generator=rng)


def columns(layer: nn.Module, x: Tensor, chosen: Tensor) -> Tensor:
    """Returns the columns that the weight, as a matrix, is multiplied by at some positions.

    Args:
        layer: A convolution or linear layer.
        x: Its input, `(N, C, H, W)` or `(..., in)`.
        chosen: Positions from `positions`, `(count,)`.

    Returns:
        Columns in float32, `(groups, K, count)`.
    """
    x = x.detach().float()
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])[chosen].t()[None]
    stride, _, dilation = window_of(layer)
    x = padded(layer, x)
    tall, wide = _places(layer, x)
    image, place = chosen // (tall * wide), chosen % (tall * wide)
    rows = (place // wide * stride[0])[:, None] + dilation[0] * torch.arange(layer.kernel_size[0])
    across = (place % wide * stride[1])[:, None] + dilation[1] * torch.arange(layer.kernel_size[1])
    pixels = (image[:, None] * x.shape[2] + rows)[:, :, None] * x.shape[3] + across[:, None]  # (count, kh, kw)
    # Channels last, so that a whole pixel is copied at once
    taken = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])[pixels.flatten(1)]  # (count, kh·kw, C)
    return taken.permute(2, 1, 0).reshape(layer.groups, -1, len(chosen))


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns the input of a convolution with its padding."""
    mode = "constant" if layer.padding_mode == "zeros" or isinstance(layer, OwnForward) else layer.padding_mode
    return F.pad(x, window_of(layer)[1], mode=mode)


def _places(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Returns the number of windows in a padded input, vertically and horizontally."""
    stride, _, dilation = window_of(layer)
    spans = ((kernel - 1) * step + 1 for kernel, step in zip(layer.kernel_size, dilation, strict=True))
    tall, wide = ((size - span) // step + 1 for size, span, step in zip(x.shape[2:], spans, stride, strict=True))
    return tall, wide
