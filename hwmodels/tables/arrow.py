"""Cost tables as Arrow tables, the form of Parquet and CSV files: one row for each layer and legal pair of widths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from haq.errors import HardwareError
from haq.hwmodels.tables.memory import MemoryPlan
from haq.hwmodels.tables.table import CostTable
from haq.metrics import layer_fields

__all__ = ["AXES", "DETAIL", "KEY", "METADATA", "OPTIONAL", "from_arrow", "to_arrow"]

KEY = b"haq"
"""Key of the schema's metadata that holds the rest of the table, as JSON."""

AXES = {"layer": pa.string(), "w_bits": pa.int64(), "a_bits": pa.int64()}
METADATA = ("hardware", "batch", "origin", "version")
OPTIONAL = ("limits", "rest", "provenance", "memory")
DETAIL = "detail_"
"""Prefix of the columns that say more about a cell than its costs."""


def to_arrow(table: CostTable) -> Any:
    """Returns columns `layer`, `w_bits`, `a_bits` and one for each metric and detail; the metadata holds the rest."""
    shape = (len(table.layers), len(table.w_bits), len(table.a_bits))
    legal = np.isfinite(next(iter(table.metrics.values())))
    rows, w_index, a_index = (index[legal] for index in np.indices(shape))
    columns = {
        "layer": np.array(table.layers, dtype=object)[rows],
        "w_bits": np.array(table.w_bits)[w_index],
        "a_bits": pa.array([table.a_bits[index] for index in a_index], AXES["a_bits"]),
        **{metric: costs[legal] for metric, costs in table.metrics.items()},
        **{DETAIL + name: values[legal] for name, values in table.details.items()},
    }
    metadata: dict[str, Any] = {key: getattr(table, key) for key in METADATA}
    metadata |= {"rest": dict(table.rest), "provenance": dict(table.provenance)}
    metadata["memory"] = table.memory.to_dict() if table.memory else None
    metadata["limits"] = None if table.limits is None else dict(table.limits)
    return pa.table(columns).replace_schema_metadata({KEY: json.dumps(metadata)})


def from_arrow(content: Any) -> CostTable:
    """Returns the cost table of rows in any order; layers keep the order in which they first appear.

    Raises:
        HardwareError: The content is not a complete and valid cost table.
    """
    return CostTable(**_metadata(content), **_axes_and_metrics(content))


def _metadata(content: Any) -> dict[str, Any]:
    try:
        metadata = json.loads((content.schema.metadata or {})[KEY])
        memory, limits = metadata.get("memory"), metadata.get("limits")
        return {
            **{key: str(metadata[key]) for key in METADATA},
            "batch": int(metadata["batch"]),
            "rest": {str(metric): float(cost) for metric, cost in (metadata.get("rest") or {}).items()},
            "limits": None if limits is None else dict(limits),
            "memory": MemoryPlan.from_dict(memory) if memory else None,
            "provenance": {str(key): str(value) for key, value in (metadata.get("provenance") or {}).items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise HardwareError(
            f"lacks the metadata of a cost table ({', '.join(METADATA)}); save it with CostTable.save"
        ) from None


def _axes_and_metrics(content: Any) -> dict[str, Any]:
    metrics = [metric for metric in layer_fields() if metric in content.column_names]
    details = [name for name in content.column_names if name.startswith(DETAIL)]
    schema = pa.schema(
        [pa.field(name, kind, nullable=name == "a_bits") for name, kind in AXES.items()]
        + [pa.field(name, pa.float64()) for name in (*metrics, *details)]
    )
    if missing := [name for name in AXES if name not in content.column_names]:
        raise HardwareError(f"lacks the column {missing[0]!r}; a cost table has {', '.join(AXES)} and its metrics")
    try:
        columns = content.select(schema.names).cast(schema)
    except (ValueError, KeyError, pa.ArrowException) as error:  # Arrow raises these, `cast` for an axis without a value
        raise HardwareError(f"has a column of the wrong type: {' '.join(str(error).split())}") from None

    layer, w_bits, a_bits = (columns[name].to_pylist() for name in AXES)
    layers, w_axis, a_axis = (
        tuple(dict.fromkeys(layer)),
        tuple(sorted(set(w_bits))),
        tuple(sorted(set(a_bits), key=lambda a: (a is None, a))),
    )
    if None in a_axis and len(a_axis) > 1:
        row = a_bits.index(None)
        raise HardwareError(
            f"a_bits is empty, which is floating point, for layer {layer[row]!r} at w_bits={w_bits[row]}, but "
            f"{a_axis[0]} elsewhere; give widths in all rows or in none"
        )
    _check_finite(columns, metrics)
    cells: dict[tuple[str, int, int | None], int] = {}
    for row, cell in enumerate(zip(layer, w_bits, a_bits, strict=True)):
        if cell in cells:
            raise HardwareError(f"has two rows for layer {cell[0]!r} at w_bits={cell[1]}, a_bits={cell[2]}; keep one")
        cells[cell] = row
    legal = dict.fromkeys((w, a) for _, w, a in cells)
    expected = [(name, w, a) for name in layers for w, a in legal]
    if absent := [cell for cell in expected if cell not in cells]:
        name, w, a = absent[0]
        raise HardwareError(f"has no row for layer {name!r} at w_bits={w}, a_bits={a}; measure or add it")
    order = np.array([cells[cell] for cell in expected], dtype=np.intp)
    place = (
        np.array([layers.index(name) for name, _, _ in expected], dtype=np.intp),
        np.array([w_axis.index(w) for _, w, _ in expected], dtype=np.intp),
        np.array([a_axis.index(a) for _, _, a in expected], dtype=np.intp),
    )

    def cube(name: str, outside: float) -> npt.NDArray[np.float64]:
        filled = np.full((len(layers), len(w_axis), len(a_axis)), outside)
        filled[place] = columns[name].to_numpy()[order]
        return filled

    return {
        "layers": layers,
        "w_bits": w_axis,
        "a_bits": a_axis,
        "metrics": {metric: cube(metric, np.inf) for metric in metrics},
        "details": {name.removeprefix(DETAIL): cube(name, np.nan) for name in details},
    }


def _check_finite(columns: Any, metrics: list[str]) -> None:
    """Refuses infinity: it means a pair that the hardware cannot run, and such a pair has no rows in a file."""
    for metric in metrics:
        infinite = np.flatnonzero(np.isposinf(columns[metric].to_numpy()))
        if len(infinite):
            layer, w_bits, a_bits = (columns[axis][int(infinite[0])].as_py() for axis in AXES)
            raise HardwareError(
                f"{metric}=inf for layer {layer!r} at w_bits={w_bits}, a_bits={a_bits}: a pair of widths that the "
                "hardware cannot run has no rows; leave them out"
            )
