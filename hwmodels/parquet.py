"""Cost tables as Parquet files: one row for each layer and pair of widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from haq.constraints import METRICS
from haq.errors import HardwareError
from haq.files import replacing
from haq.hwmodels.table import CostTable

__all__ = ["read_table", "write_table"]

_KEY = b"haq"
_AXES = {"layer": pa.string(), "w_bits": pa.int64(), "a_bits": pa.int64()}
_METADATA = ("hardware", "batch", "origin", "version")


def write_table(table: CostTable, path: Path) -> None:
    """Writes `table` with columns `layer`, `w_bits`, `a_bits` and one for each metric; see `CostTable.save`."""
    shape = (len(table.layers), len(table.w_bits), len(table.a_bits))
    rows, w_index, a_index = (index.ravel() for index in np.indices(shape))
    columns = {
        "layer": np.array(table.layers, dtype=object)[rows],
        "w_bits": np.array(table.w_bits)[w_index],
        "a_bits": pa.array([table.a_bits[index] for index in a_index], _AXES["a_bits"]),
        **{metric: costs.ravel() for metric, costs in table.metrics.items()},
    }
    metadata = json.dumps({key: getattr(table, key) for key in _METADATA})
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata({_KEY: metadata}), temporary, write_page_checksum=True)


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
        batch = int(metadata["batch"])
        return {**{key: str(metadata[key]) for key in _METADATA}, "batch": batch}
    except (KeyError, TypeError, ValueError):
        raise HardwareError(
            f"lacks the metadata of a cost table ({', '.join(_METADATA)}); save it with CostTable.save"
        ) from None


def _axes_and_metrics(content: Any) -> dict[str, Any]:
    metrics = [metric.field for metric in METRICS.values() if metric.field in content.column_names]
    schema = pa.schema(
        [pa.field(name, kind, nullable=name == "a_bits") for name, kind in _AXES.items()]
        + [pa.field(metric, pa.float64()) for metric in metrics]
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
    expected = [(name, w, a) for name in layers for w in w_axis for a in a_axis]
    if absent := [cell for cell in expected if cell not in cells]:
        name, w, a = absent[0]
        raise HardwareError(f"has no row for layer {name!r} at w_bits={w}, a_bits={a}; measure or add it")
    order = np.array([cells[cell] for cell in expected], dtype=np.intp)
    shape = (len(layers), len(w_axis), len(a_axis))
    return {
        "layers": layers,
        "w_bits": w_axis,
        "a_bits": a_axis,
        "metrics": {metric: columns[metric].to_numpy()[order].reshape(shape) for metric in metrics},
    }
