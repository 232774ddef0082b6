"""How carefully each layer of a network is rounded: large layers of large networks with less care, by counts alone.

Rounding with full care takes time that grows with K² for each output channel and K³ for the layer, where K is the
length of a dot product. Small networks get full care in all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from haq.layers.running import groups_of
from haq.quant.compensation.moments import is_product
from haq.quant.effort import MACS_PER_SECOND

__all__ = ["Care", "Plan", "Shape", "blocks_of", "cares", "rounding_plans", "rounding_work"]

_SECONDS = 80.0  # that two cores may take to round all layers for all widths
_BLOCK = 1024  # columns whose errors compensate each other in a quick rounding
_MOST_BLOCKS = 16
_STARTS = 1.6  # grids tried for each width with full care, with and without zero points, on average
_PASSES, _QUICK_PASSES = 9.0, 2.0  # products of moments and weight for each grid
_STEP = 900.0  # rounding one value costs as much as so many multiplications, in each pass
_GRID = 3600.0  # choosing the grid of one width costs as much for each weight as so many multiplications
_FACTORS = 4.0  # Cholesky factors and an inverse, in double precision, in multiples of K³
_COLUMNS, _COLUMNS_EACH = 8192, 3  # for the moments; see `Reads`


class Care(IntEnum):
    """How a weight is rounded."""

    NEAREST = 0
    """Each weight to its nearest level."""
    QUICK = 1
    """Compensated within blocks of columns, in one pass, on the grid with the least error of the weights."""
    FULL = 2
    """Compensated among all columns, with scales and zero points that suit it."""


@dataclass(frozen=True)
class Shape:
    """A weight as matrices.

    Attributes:
        groups: Number of matrices.
        columns: K, length of a dot product.
        rows: Output channels of a group.
    """

    groups: int
    columns: int
    rows: int


def blocks_of(columns: int) -> int:
    """Returns the number of equal blocks of at most 1,024 columns, or 1 if there is no such small number.

    Examples:
        >>> [blocks_of(columns) for columns in (27, 768, 3072, 4608, 5003)]
        [1, 1, 3, 6, 1]
    """
    least = -(-columns // _BLOCK)
    return next((count for count in range(least, _MOST_BLOCKS + 1) if columns % count == 0), 1)


def rounding_work(shape: Shape, widths: int, care: Care) -> float:
    """Returns the work of rounding a weight for several widths, in multiply-accumulates.

    Args:
        shape: Of the weight.
        widths: Number of widths.
        care: How it is rounded.
    """
    if care is Care.NEAREST:
        return 0.0
    blocks = blocks_of(shape.columns) if care is Care.QUICK else 1
    inside = shape.columns / blocks
    passes = widths * (_STARTS * _PASSES if care is Care.FULL else _QUICK_PASSES)
    read = max(_COLUMNS, _COLUMNS_EACH * inside)
    products = shape.rows * passes * (inside**2 + _STEP * inside)
    return shape.groups * blocks * (products + inside**2 * read + _FACTORS * inside**3)


def cares(shapes: Mapping[str, Shape], widths: int) -> dict[str, Care]:
    """Returns how carefully each layer is rounded, so that all together take at most about 80 seconds on two cores.

    The most expensive layer is the next to get less care, until the rest fits.

    Args:
        shapes: Layer name → shape of its weight.
        widths: Number of widths.
    """
    chosen = dict.fromkeys(shapes, Care.FULL)
    work = {name: rounding_work(shape, widths, Care.FULL) for name, shape in shapes.items()}
    left = sum(work.values()) - _SECONDS * MACS_PER_SECOND
    for care in (Care.QUICK, Care.NEAREST):
        for name in sorted(shapes, key=lambda name: -work[name]):
            if left <= 0:
                return chosen
            cheaper = rounding_work(shapes[name], widths, care)
            left -= work[name] - cheaper
            work[name], chosen[name] = cheaper, care
    return chosen


@dataclass(frozen=True)
class Plan:
    """How one layer is rounded.

    Attributes:
        care: How carefully.
        blocks: Blocks of its columns; see `haq.quant.compensation.Reads`.
        work: Multiply-accumulates, with those that every layer needs.
    """

    care: Care
    blocks: int
    work: float


def rounding_plans(layers: Mapping[str, Any], widths: int) -> dict[str, Plan]:
    """Returns how each layer is rounded; layers that are no products always round to the nearest levels.

    Args:
        layers: Layer name → module.
        widths: Number of widths.
    """
    shapes = {
        name: Shape(groups_of(layer), layer.weight[0].numel(), layer.weight.shape[0] // groups_of(layer))
        for name, layer in layers.items()
        if is_product(layer)
    }
    found = cares(shapes, widths)
    plans = {}
    for name, layer in layers.items():
        care, shape = found.get(name, Care.NEAREST), shapes.get(name)
        blocks = (0, blocks_of(shape.columns), 1)[care] if shape else 0
        work = rounding_work(shape, widths, care) if shape else 0.0
        plans[name] = Plan(care, blocks, work + widths * _GRID * layer.weight.numel())
    return plans
