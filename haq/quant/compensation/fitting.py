"""Fits uniform grids for compensated rounding: scales, and zero points where they pay off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.compensation.rounding import Grid, descend, diffuse, output_error
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.functional import code_range, is_binary, mse_affine, mse_scale
from haq.quant.quantizers.uniform import UniformQuantizer

__all__ = ["fit_grids"]

_REFITS = 2
_CLIPS = 16  # clips tried for the grid that a fit starts from
# A zero point costs a sum of activations. It must remove the share _WORTH of the error, and the error must be at least
# the share _NOTICED of the outputs' energy
_WORTH, _NOTICED = 0.05, 1e-3


def fit_grids(
    weight: Tensor,
    target: Tensor,
    gram: Tensor,
    quantizers: Mapping[int, Quantizer],
    choose: bool,
    blocks: int = 1,
    refit: bool = True,
) -> dict[int, tuple[Quantizer, Tensor]]:
    """Returns the best grid for every width, and the target rounded to it.

    Codes and scales are fitted in turn: the scale of each channel by least squares for its codes, and the codes by
    coordinate descent for the scale. All grids of all widths are fitted at once, as copies of the rows.

    Args:
        weight: Weight of the layer, `(M, ...)`.
        target: Values to round, `(groups, K, rows)`.
        gram: Damped moments, `(groups, K, K)`.
        quantizers: Quantizers by width; only uniform ones with one free scale per channel are fitted.
        choose: Whether `adaptive` quantizers may gain or lose zero points.
        blocks: Blocks of columns in each group, which share their grid; see `as_columns`. The shapes above have every
            block as a group.
        refit: Whether codes are fitted again to the fitted scale.

    Returns:
        Width → quantizer with the fitted grid, and the rounded target, same shape.
    """
    rows, columns, groups = target.shape[2], target.shape[1], len(target) // blocks
    energy = float(output_error(target, torch.zeros_like(target), gram).sum())

    def noticed(start: _Start) -> bool:
        """Whether rounding to the nearest level, which is no better than the fit, has an error that matters."""
        rounded = start.grid(groups).shared(blocks).nearest(target)
        return float(output_error(target, rounded, gram).sum()) > _NOTICED * energy

    starts = [
        start
        for width, quantizer in quantizers.items()
        if isinstance(quantizer, UniformQuantizer) and quantizer.free_scale
        for start in _starts(weight.flatten(1), quantizer, width, choose, noticed)
    ]
    if not starts:
        return {}
    grid, copies = Grid.beside([start.grid(groups) for start in starts]), target.repeat(1, 1, len(starts))
    grid = grid.shared(blocks)
    values = diffuse(copies, gram, grid)
    for _ in range(_REFITS if refit else 0):
        factor = _best_factor(copies, values, gram, blocks)
        grid, values = grid.scaled(factor), values * factor
        values = descend(copies, values, gram, grid)
    factor = _best_factor(copies, values, gram, blocks)
    scales, values = grid.scaled(factor).scale[::blocks, 0], values * factor
    several = len(starts) > len({start.width for start in starts})
    error = _errors(copies, values, gram, blocks).view(groups, len(starts), rows) if several else None
    found: dict[int, tuple[Quantizer, Tensor]] = {}
    for width, quantizer in quantizers.items():
        mine = [number for number, start in enumerate(starts) if start.width == width]
        if not mine:
            continue
        assert isinstance(quantizer, UniformQuantizer)
        # (groups, rows)
        owner = torch.full((groups, rows), mine[0]) if error is None else _chosen(error, starts, mine, energy)
        picked = owner * rows + torch.arange(rows)
        scale, zero = scales.gather(1, picked).flatten(), None
        if starts[mine[0]].binary and bool((owner == mine[0]).all()):
            scale = scale / 2  # the fitted scale is the distance between −α and +α
        elif any(starts[number].zero_point is not None for number in set(owner.flatten().tolist())):
            zeros = torch.stack([start.zeros(groups) for start in starts], 1)
            zero = zeros.gather(1, owner[:, None])[:, 0].flatten()
        places = picked.repeat_interleave(blocks, 0)[:, None].expand(-1, columns, -1)
        found[width] = quantizer.regridded(scale, zero), values.gather(2, places)
    return found


@dataclass(frozen=True, eq=False)
class _Start:
    """A grid that the fit starts from; `scale` and `zero_point` are `(M,)`."""

    width: int
    scale: Tensor
    zero_point: Tensor | None
    binary: bool = False

    def zeros(self, groups: int) -> Tensor:
        none = torch.zeros(len(self.scale), dtype=torch.int32)
        return (none if self.zero_point is None else self.zero_point).view(groups, -1)

    def grid(self, groups: int) -> Grid:
        scale, zero = self.scale.view(groups, 1, -1), self.zeros(groups)[:, None].float()
        none = torch.zeros_like(scale)
        if self.binary:
            return Grid(2 * scale, none, none + 1, none + 0.5)
        low, high = code_range(self.width, signed=True)
        return Grid(scale, low - zero, high - zero, none)


def _starts(
    rows: Tensor, quantizer: UniformQuantizer, width: int, choose: bool, noticed: Callable[[_Start], bool]
) -> list[_Start]:
    """Returns the grids to try for a width.

    These are the symmetric grid and, unless it is fine enough, asymmetric ones; only the quantizer's own grid if it is
    not adaptive or there is no choice.
    """
    scale, zero = quantizer.scale.detach(), quantizer.zero_point
    if not (quantizer.adaptive and choose):
        return [_Start(width, scale, zero, zero is None and is_binary(quantizer.bits, quantizer.signed))]
    if zero is not None:
        scale = mse_scale(rows, width, signed=True, candidates=_CLIPS)
    symmetric = _Start(width, scale, None, is_binary(width, signed=True))
    if width == 1:  # levels 0 and S, or −S and 0
        codes = (torch.full((len(rows),), code, dtype=torch.int32) for code in (-1, 0))
        return [symmetric, *(_Start(width, 2 * scale, code) for code in codes)]
    if not noticed(symmetric):
        return [symmetric]
    return [symmetric, _Start(width, *mse_affine(rows, width, signed=True, candidates=_CLIPS))]


def _chosen(error: Tensor, starts: list[_Start], mine: list[int], energy: float) -> Tensor:
    """Returns the number of the start that each row takes, `(groups, rows)`.

    It is the first one, unless others reduce the error enough to be worth their zero points.
    """
    first, *others = mine
    owner = torch.full((error.shape[0], error.shape[2]), first)
    if not others:
        return owner
    # A symmetric channel has a zero point of 0, but {−1, +1} cannot be written as such a grid
    open_to = others if starts[first].binary else mine
    among = error[:, open_to]
    before, after = float(error[:, first].sum()), float(among.amin(1).sum())
    if before > _NOTICED * energy and before - after > _WORTH * before:
        owner = torch.tensor(open_to)[among.argmin(1)]
    return owner


def _errors(target: Tensor, rounded: Tensor, gram: Tensor, blocks: int) -> Tensor:
    """Returns `output_error`, added up over the blocks of each group."""
    error = output_error(target, rounded, gram)
    return error if blocks == 1 else error.view(-1, blocks, error.shape[1]).sum(1)


def _best_factor(target: Tensor, rounded: Tensor, gram: Tensor, blocks: int) -> Tensor:
    """Returns the least-squares factor for each row's scale, with unchanged codes, `(groups, 1, n)`."""
    seen = gram @ rounded
    along, own = (seen * target).sum(1, keepdim=True), (seen * rounded).sum(1, keepdim=True)
    if blocks > 1:
        along, own = (
            of.view(-1, blocks, of.shape[2]).sum(1, keepdim=True).repeat_interleave(blocks, 0) for of in (along, own)
        )
    return torch.where((along > 0) & (own > 0), along / own.clamp_min(1e-30), torch.ones_like(own)).clamp(0.5, 2.0)
