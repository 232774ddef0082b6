"""Cost tables as Parquet files: one row for each layer and legal pair of widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from haq.errors import HardwareError
from haq.files import replacing
from haq.hwmodels.memory import MemoryPlan
from haq.hwmodels.table import TABLE_FIELDS, CostTable

__all__ = ["read_table", "write_table"]

_KEY = b"haq"
_AXES = {"layer": pa.string(), "w_bits": pa.int64(), "a_bits": pa.int64()}
_METADATA = ("hardware", "batch", "origin", "version")
_DETAIL = "detail_"  # before the names of columns that say more about a cell than its costs


def write_table(table: CostTable, path: Path) -> None:
    """Writes `table` with columns `layer`, `w_bits`, `a_bits` and one for each metric; see `CostTable.save`."""
    shape = (len(table.layers), len(table.w_bits), len(table.a_bits))
    legal = np.isfinite(next(iter(table.metrics.values())))
    rows, w_index, a_index = (index[legal] for index in np.indices(shape))
    columns = {
        "layer": np.array(table.layers, dtype=object)[rows],
        "w_bits": np.array(table.w_bits)[w_index],
        "a_bits": pa.array([table.a_bits[index] for index in a_index], _AXES["a_bits"]),
        **{metric: costs[legal] for metric, costs in table.metrics.items()},
        **{_DETAIL + name: values[legal] for name, values in table.details.items()},
    }
    metadata: dict[str, Any] = {key: getattr(table, key) for key in _METADATA}
    metadata |= {"rest": dict(table.rest), "provenance": dict(table.provenance)}
    metadata["memory"] = table.memory.to_dict() if table.memory else None
    content = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(metadata)})
    with replacing(path) as temporary:
        pq.write_table(content, temporary, write_page_checksum=True)


def read_table(path: Path) -> CostTable:
    """Reads a table whose rows may have any order; layers come as they first appear; see `CostTable.load`."""
    try:
        # `pq.read_table` would take a folder named `latency=60` for a column
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read()
        content.validate(full=True)
    except FileNotFoundError:
        raise HardwareError(f"cost table {str(path)!r} does not exist") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise HardwareError(f"cannot read cost table {path}: {' '.join(str(error).split())}") from None
    try:
        return CostTable(**_metadata(content), **_axes_and_metrics(content))
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from None


def _metadata(content: Any) -> dict[str, Any]:
    try:
        metadata = json.loads((content.schema.metadata or {})[_KEY])
        memory = metadata.get("memory")
        return {
            **{key: str(metadata[key]) for key in _METADATA},
            "batch": int(metadata["batch"]),
            "rest": {str(metric): float(cost) for metric, cost in (metadata.get("rest") or {}).items()},
            "memory": MemoryPlan.from_dict(memory) if memory else None,
            "provenance": {str(key): str(value) for key, value in (metadata.get("provenance") or {}).items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HardwareError(
            f"lacks the metadata of a cost table ({', '.join(_METADATA)}); save it with CostTable.save"
        ) from None


def _axes_and_metrics(content: Any) -> dict[str, Any]:
    metrics = [metric for metric in TABLE_FIELDS if metric in content.column_names]
    details = [name for name in content.column_names if name.startswith(_DETAIL)]
    schema = pa.schema(
        [pa.field(name, kind, nullable=name == "a_bits") for name, kind in _AXES.items()]
        + [pa.field(name, pa.float64()) for name in (*metrics, *details)]
    )
    if missing := [name for name in _AXES if name not in content.column_names]:
        raise HardwareError(f"lacks the column {missing[0]!r}; a cost table has {', '.join(_AXES)} and its metrics")
    try:
        columns = content.select(schema.names).cast(schema)
    except ValueError as error:  # of Arrow, or of `cast` for an axis without a value
        raise HardwareError(f"has a column of the wrong type: {' '.join(str(error).split())}") from None

    layer, w_bits, a_bits = (columns[name].to_pylist() for name in _AXES)
    layers, w_axis, a_axis = (
        tuple(dict.fromkeys(layer)),
        tuple(sorted(set(w_bits))),
        tuple(sorted(set(a_bits), key=lambda a: (a is None, a))),
    )
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
        "details": {name.removeprefix(_DETAIL): cube(name, np.nan) for name in details},
    }
