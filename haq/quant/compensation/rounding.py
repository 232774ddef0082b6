"""Rounds the columns of a matrix one after the other, each compensating for the errors of those before.

The error of a layer's outputs is Σ (w − q) H (w − q)ᵀ over its output channels, with the second moments H of its
inputs. All tensors here are `(groups, K, rows)`: K weights of each output channel, with the channels along `rows`, so
that one step rounds one column for all channels, widths and grids at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.quantizers.functional import code_range
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["Grid", "damped", "descend", "diffuse", "output_error"]

_BLOCK = 64  # columns whose later updates are applied at once
_ATTEMPTS = 4
_DAMPING = 0.01  # share of the mean diagonal, as in GPTQ
_DAMPING_PER_COLUMN = 0.1  # times columns over samples: few samples say little about correlations of columns


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of each weight: S·(q − o) for integers q from `low` to `high`, or those of a codebook.

    Attributes:
        scale: S, `(groups, K or 1, rows)`.
        low: Smallest q, same shape.
        high: Largest q, same shape.
        offset: o, same shape: 0, or ½ for the levels −S/2 and S/2 of one bit.
        codebook: Levels in ascending order, `(groups, K or 1, rows, levels)`; the other attributes are then unused.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    offset: Tensor
    codebook: Tensor | None = None

    @classmethod
    def of(cls, stored: QuantizedTensor, groups: int, blocks: int = 1) -> Grid:
        """Returns the grid of a quantized weight.

        Args:
            stored: Codes `(M, ...)`, at any granularity.
            groups: Groups of the layer.
            blocks: Blocks of columns in each group; see `as_columns`.
        """
        places = torch.arange(stored.codes.numel()).view(stored.codes.shape)
        owners = group(places, stored.granularity)
        owner = ungroup(torch.arange(len(owners))[:, None].expand_as(owners), places, stored.granularity)
        owner = as_columns(owner, groups, blocks)
        if stored.granularity in ("channel", "tensor"):
            owner = owner[:, :1]
        one = torch.zeros(owner.shape)
        if stored.codebook is not None:
            return cls(one, one, one, one, stored.codebook.sort(1).values[owner])
        assert stored.scale is not None
        scale = stored.scale[owner]
        if stored.bits == 1 and stored.zero_point is None and bool((stored.codes.abs() == 1).all()):
            return cls(2 * scale, one, one + 1, one + 0.5)  # {−1, +1}
        low, high = code_range(stored.bits, signed=True)
        shift = one if stored.zero_point is None else stored.zero_point[owner].float()
        return cls(scale, low - shift, high - shift, one)

    def nearest(self, x: Tensor, column: int | None = None) -> Tensor:
        """Returns the nearest levels for one column, `(groups, rows)`, or for all, `(groups, K, rows)`."""
        at = slice(None) if column is None else column if self.low.shape[1] > 1 else 0
        if self.codebook is not None:
            levels = self.codebook[:, at]
            between = ((levels[..., 1:] + levels[..., :-1]) / 2).contiguous()
            return levels.gather(-1, torch.searchsorted(between, x[..., None].contiguous()))[..., 0]
        scale, offset = self.scale[:, at], self.offset[:, at]
        steps = torch.div(x, scale).add_(offset).round_()
        return steps.clamp_(self.low[:, at], self.high[:, at]).sub_(offset).mul_(scale)

    def scaled(self, factor: Tensor) -> Grid:
        """Returns the grid with its scale multiplied by `factor`."""
        return Grid(self.scale * factor, self.low, self.high, self.offset)

    def shared(self, blocks: int) -> Grid:
        """Returns the grid of groups for their blocks of columns; see `as_columns`. It has one scale for each row."""
        if blocks == 1:
            return self
        parts = (getattr(self, name) for name in ("scale", "low", "high", "offset"))
        return Grid(*(part.repeat_interleave(blocks, 0) for part in parts))

    @staticmethod
    def beside(grids: list[Grid]) -> Grid:
        """Joins grids of the same rows into one grid for copies of these rows, one copy after the other."""
        parts = ([getattr(grid, name) for grid in grids] for name in ("scale", "low", "high", "offset"))
        return Grid(*(torch.cat(part, 2) for part in parts))


def as_columns(weight: Tensor, groups: int, blocks: int = 1) -> Tensor:
    """Returns a weight `(M, ...)` as `(groups, K, M / groups)`.

    Args:
        weight: The weight.
        groups: Groups of the layer.
        blocks: Blocks of columns in each group; each is then a group of its own, `(groups · blocks, K / blocks, …)`.
    """
    matrices = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2).contiguous()
    return matrices.view(groups * blocks, -1, matrices.shape[2])


def as_weight(values: Tensor, like: Tensor, blocks: int = 1) -> Tensor:
    """Returns `(groups, K, rows)` as a weight, the inverse of `as_columns`.

    Args:
        values: From `as_columns`.
        like: A weight of the shape to return.
        blocks: As for `as_columns`.
    """
    matrices = values.reshape(len(values) // blocks, -1, values.shape[2])
    return matrices.transpose(1, 2).reshape(like.shape).contiguous()


def damped(gram: Tensor, samples: int, per_column: float = _DAMPING_PER_COLUMN) -> Tensor:
    """Adds a share of the mean diagonal to the diagonal of the moments, so that they can be inverted.

    If the mean diagonal is 0, the inputs do not matter; 1 is added, so weights are rounded to the nearest level. The
    identity, with the same effect, is returned if rounding errors keep the moments from becoming positive definite.

    Args:
        gram: Moments, `(groups, K, K)`.
        samples: Number of columns that the moments are averages of.
        per_column: Additional share for each column per sample.
    """
    columns = gram.shape[1]
    mean = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(0)
    share = _DAMPING + per_column * columns / samples
    for _ in range(_ATTEMPTS):
        added = torch.where(mean > 0, share * mean, torch.ones_like(mean))
        raised = gram + added[:, None, None] * torch.eye(columns)
        if not bool(torch.linalg.cholesky_ex(raised.double()).info.any()):
            return raised
        share *= 10
    return torch.eye(columns).expand_as(gram).contiguous()


def diffuse(target: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Rounds column by column, and spreads the error of each column over the remaining ones.

    Frantar et al. 2022 (GPTQ, arXiv:2210.17323, algorithm 1), with columns in the order of their curvature, in blocks,
    and the Cholesky factor of the inverse of H.

    Args:
        target: Values to round, `(groups, K, rows)`.
        gram: H, `(groups, K, K)`, positive definite; see `damped`.
        grid: Grid to round to.

    Returns:
        Levels of the grid, same shape.
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    turned = gram.gather(1, order[:, :, None].expand_as(gram)).gather(2, order[:, None, :].expand_as(gram))
    factor = _inverse_factor(turned.double()).float()
    index = order[:, :, None].expand_as(target)
    rest, rounded = target.gather(1, index), torch.empty_like(target)
    grid = _reordered(grid, order)
    columns = target.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block = rest[:, start:stop]
        errors = torch.empty_like(block)
        for i in range(start, stop):
            x = block[:, i - start]
            rounded[:, i] = level = grid.nearest(x, i)
            errors[:, i - start] = error = (x - level) / factor[:, i, i, None]
            if i + 1 < stop:
                block[:, i + 1 - start :].addcmul_(factor[:, i, i + 1 : stop, None], error[:, None], value=-1)
        if stop < columns:
            rest[:, stop:].baddbmm_(factor[:, start:stop, stop:].transpose(1, 2), errors, alpha=-1)
    return torch.empty_like(rounded).scatter_(1, index, rounded)


def _inverse_factor(gram: Tensor) -> Tensor:
    """Returns the upper triangular U with H⁻¹ = UᵀU, as the inverse of the upper triangular R with H = R Rᵀ."""
    flipped = torch.linalg.cholesky(gram.flip(1, 2)).flip(1, 2)
    whole = torch.eye(gram.shape[1], dtype=gram.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(flipped, whole, upper=True)
    return inverse


def _reordered(grid: Grid, order: Tensor) -> Grid:
    if grid.low.shape[1] == 1:
        return grid

    def turn(x: Tensor) -> Tensor:
        return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))

    codebook = None if grid.codebook is None else turn(grid.codebook)
    return Grid(turn(grid.scale), turn(grid.low), turn(grid.high), turn(grid.offset), codebook)


def descend(target: Tensor, rounded: Tensor, gram: Tensor, grid: Grid, passes: int = 1) -> Tensor:
    """Moves each weight in turn to the level that is best for the current values of the others.

    The error never rises. This is coordinate descent (Behdin et al. 2023, QuantEase, arXiv:2309.01885, section 3), in
    blocks of columns.

    Args:
        target: Exact values, `(groups, K, rows)`.
        rounded: Values to start from, same shape.
        gram: H, `(groups, K, K)`.
        grid: Grid to round to.
        passes: Number of passes over all columns.

    Returns:
        Levels of the grid, same shape.
    """
    rounded = rounded.clone()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    slope = gram @ (target - rounded)  # half the negative gradient of the error, (groups, K, rows)
    columns = target.shape[1]
    for _ in range(passes):
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            block, moves = slope[:, start:stop], torch.empty_like(slope[:, start:stop])
            for i in range(start, stop):
                old = rounded[:, i]
                level = grid.nearest(old + block[:, i - start] / diagonal[:, i, None], i)
                moves[:, i - start] = move = level - old
                rounded[:, i] = level
                block.addcmul_(gram[:, start:stop, i, None], move[:, None], value=-1)
            slope[:, :start].baddbmm_(gram[:, :start, start:stop], moves, alpha=-1)
            slope[:, stop:].baddbmm_(gram[:, stop:, start:stop], moves, alpha=-1)
    return rounded


def output_error(target: Tensor, rounded: Tensor, gram: Tensor) -> Tensor:
    """Returns (w − q) H (w − q)ᵀ of every row, `(groups, rows)`.

    Args:
        target: w, `(groups, K, rows)`.
        rounded: q, same shape.
        gram: H, `(groups, K, K)`.
    """
    error = target - rounded
    return ((gram @ error) * error).sum(1)
