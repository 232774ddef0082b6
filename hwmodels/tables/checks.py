"""Checks of a cost table: its axes, its costs and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from haq.errors import HardwareError, did_you_mean
from haq.metrics import METRICS, layer_fields
from haq.policy import WIDTHS

if TYPE_CHECKING:
    from haq.hwmodels.tables.table import CostTable

__all__ = ["Origin", "check_axes", "check_costs", "check_limits", "legal_pairs", "listed"]

Origin = Literal["modelled", "measured", "interpolated"]
"""How costs were obtained."""


def check_axes(table: CostTable) -> None:
    """Checks layers, widths, batch and origin.

    Raises:
        HardwareError: One of them is wrong, or the table has no costs.
    """
    if not table.layers or len(set(table.layers)) != len(table.layers):
        raise HardwareError(f"a cost table needs layers of distinct names, but got {list(table.layers)!r}")
    for axis, widths in (("w_bits", table.w_bits), ("a_bits", table.a_bits)):
        if axis == "a_bits" and widths == (None,):
            continue
        if not widths or list(widths) != [width for width in WIDTHS if width in widths]:
            raise HardwareError(
                f"{axis}={list(widths)!r}: a cost table needs ascending widths of {listed(WIDTHS)} bits"
            )
    if table.batch < 1:
        raise HardwareError(f"batch={table.batch}: a cost table is for a batch of at least 1")
    if table.origin not in get_args(Origin):
        raise HardwareError(f"origin={table.origin!r}: costs are {' or '.join(get_args(Origin))}")
    if not table.metrics:
        raise HardwareError(f"a cost table needs at least one of {', '.join(layer_fields())}")


def check_limits(table: CostTable) -> None:
    """Checks what the device holds.

    Raises:
        HardwareError: A limit is of no metric, or no positive number.
    """
    for metric, limit in (table.limits or {}).items():
        if metric not in METRICS:
            raise HardwareError(
                f"limit of {metric!r}: unknown{did_you_mean(metric, METRICS)}; known: {', '.join(METRICS)}"
            )
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < np.inf:
            unit = METRICS[metric].kept_unit
            raise HardwareError(f"limit of {metric!r} is {limit!r}: must be a positive number{unit and f' of {unit}'}")


def check_costs(table: CostTable, metric: str, costs: npt.NDArray[np.float64]) -> None:
    """Checks the costs of one field.

    Args:
        table: With its axes.
        metric: The field.
        costs: Of every cell, `(L, W, A)`.

    Raises:
        HardwareError: The field is unknown, or the costs have another shape, are negative or NaN.
    """
    if metric not in (known := layer_fields()):
        raise HardwareError(
            f"{metric!r} is not a cost{did_you_mean(metric, known)}; a table may hold {', '.join(known)}"
        )
    shape = (len(table.layers), len(table.w_bits), len(table.a_bits))
    if costs.shape != shape:
        raise HardwareError(f"{metric} has shape {costs.shape}, but the layers and widths of the table make it {shape}")
    wrong = np.argwhere(~(costs >= 0))
    if len(wrong):
        row, w, a = wrong[0]
        raise HardwareError(
            f"{metric}={costs[row, w, a]} for layer {table.layers[row]!r} at w_bits={table.w_bits[w]}, "
            f"a_bits={table.a_bits[a]}: a cost is finite and not negative; build or measure the table again"
        )


def legal_pairs(table: CostTable) -> npt.NDArray[np.bool_]:
    """Returns which pairs of widths have a price, `(W, A)`.

    Raises:
        HardwareError: A pair has a price in some layers or metrics, but not in all.
    """
    legal: npt.NDArray[np.bool_] = np.isfinite(next(iter(table.metrics.values()))[0])
    for metric, costs in table.metrics.items():
        odd = np.argwhere(np.isfinite(costs) != legal)
        if len(odd):
            row, w, a = odd[0]
            raise HardwareError(
                f"{metric} of layer {table.layers[row]!r} at w_bits={table.w_bits[w]}, a_bits={table.a_bits[a]} is "
                f"{costs[row, w, a]}, unlike other costs at these widths; a pair is priced in every layer or in none"
            )
    return legal


def listed(widths: Sequence[int | None]) -> str:
    """Writes widths for people; `None` is floating point."""
    return ",".join("float" if width is None else str(width) for width in widths)
