"""Cost tables in other forms: CSV for people and spreadsheets, and the NumPy arrays of HAQ.

A CSV file has the columns of the Parquet file. Above them stands what Parquet keeps in its metadata, one `# key: value`
a line:

    # hardware: edge
    # batch: 16
    # origin: measured
    # version: kernels 1.2
    layer,w_bits,a_bits,latency_ms
    conv1,8,8,0.25

HAQ's array holds cycles, `[layer, w_bits − 1, a_bits − 1]`, for 1 to 8 bits; it names neither the layers nor the clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from haq.errors import HardwareError, did_you_mean
from haq.hwmodels.accelerators.footprint import footprint
from haq.hwmodels.tables.arrow import AXES, DETAIL, KEY, METADATA, OPTIONAL, from_arrow, to_arrow
from haq.hwmodels.tables.spreadsheet import Sheet, decode, read_sheet
from haq.hwmodels.tables.table import CostTable, Origin
from haq.io.files import replacing
from haq.io.safe_yaml import read_bytes, reason_of
from haq.layers import LayerSpec
from haq.metrics import METRICS, layer_fields, metric_of
from haq.policy import WIDTHS

__all__ = ["SUFFIXES", "load_table", "read_csv", "read_npy", "save_table", "write_csv", "write_npy"]

SUFFIXES = (".parquet", ".csv", ".npy")
"""File formats of a table."""

_HAQ_WIDTHS = tuple(range(1, 9))
_SLOWEST_MHZ = 1e-9
_MOST_MIB = 256


def load_table(
    path: Path,
    layers: Sequence[LayerSpec] | None = None,
    clock_mhz: float | None = None,
    batch: int = 16,
    hardware: str | None = None,
    origin: Origin = "modelled",
) -> CostTable:
    """Reads a table in the format of the file's suffix.

    Args:
        path: The file.
        layers: For `.npy` alone, like all that follow; see `read_npy`.
        clock_mhz: Turns cycles into time.
        batch: Samples that the cycles are for.
        hardware: Name of the hardware.
        origin: How the cycles were obtained.

    Raises:
        HardwareError: The suffix is unknown, a `.npy` lacks layers or clock, or the file is not a valid cost table.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        return CostTable.load(path)
    if suffix == ".csv":
        return read_csv(path)
    if layers is None or clock_mhz is None:
        missing = "--clock-mhz" if clock_mhz is None else "--model"
        raise HardwareError(f"{path}: an array of cycles names neither clock nor layers; give {missing} as well")
    return read_npy(path, layers, clock_mhz, batch, hardware, origin)


def save_table(table: CostTable, path: Path, clock_mhz: float | None = None) -> None:
    """Writes a table in the format of the file's suffix.

    Args:
        table: The table.
        path: The file.
        clock_mhz: For `.npy`: turns time into cycles.

    Raises:
        HardwareError: The suffix is unknown, the format cannot hold the table, or the file cannot be written.
    """
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            table.save(path)
        elif suffix == ".csv":
            write_csv(table, path)
        elif clock_mhz is None:
            raise HardwareError(f"{path}: an array of cycles needs a clock; give --clock-mhz")
        else:
            write_npy(table, path, clock_mhz)
    except OSError as error:
        raise HardwareError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise HardwareError(f"{str(path)!r} is no cost table; its name must end in {', '.join(SUFFIXES)}")
    return path.suffix.lower()


# CSV


def write_csv(table: CostTable, path: Path) -> None:
    """Writes `table` as text that `read_csv` restores exactly.

    Raises:
        HardwareError: The name of a layer starts or ends with blanks, which spreadsheets drop.
    """
    if blank := [name for name in table.layers if name != name.strip() or not name]:
        raise HardwareError(f"{path}: layer {blank[0]!r} has blanks around its name, which CSV loses; write .parquet")
    content = to_arrow(table)
    metadata = json.loads(content.schema.metadata[KEY])
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for key in (*METADATA, *(key for key in OPTIONAL if metadata.get(key))):
            file.write(f"# {key}: {_written(metadata[key])}\n")
        for row in (content.column_names, *zip(*(column.to_pylist() for column in content.columns), strict=True)):
            file.write(",".join(map(_quoted, row)) + "\n")


def read_csv(path: Path) -> CostTable:
    """Reads a table with rows and columns in any order; layers keep the order in which they first appear.

    Columns are `layer`, `w_bits`, `a_bits`, at least one cost, and any that start with `detail_`; an empty `a_bits` is
    floating point. A pair of widths that the hardware cannot run has no rows. The file may come from a spreadsheet; see
    `haq.hwmodels.tables.spreadsheet`.

    Raises:
        HardwareError: The file cannot be read, or is not a complete and valid cost table.
    """
    try:
        text = decode(read_bytes(path, _MOST_MIB))
    except FileNotFoundError:
        raise HardwareError(f"cost table {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise HardwareError(f"cannot read cost table {path}: {reason_of(error)}") from None
    try:
        sheet = read_sheet(text, (*AXES, *layer_fields()))
        _check_columns(sheet.names)
        return from_arrow(_arrow(sheet).replace_schema_metadata({KEY: json.dumps(_header(sheet))}))
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from None


def _arrow(sheet: Sheet) -> Any:
    index = sheet.names.index("layer")
    if unnamed := [number for number, cells in sheet.rows if not cells[index]]:
        raise HardwareError(f"row {unnamed[0]}: layer is empty; write its name in every row")
    numbers = sheet.numbers([name for name in sheet.names if name != "layer"])
    columns: dict[str, Any] = {"layer": pa.array([cells[index] for _, cells in sheet.rows], pa.string())}
    for name, values in numbers.items():
        if name not in AXES:
            columns[name] = pa.array(values, pa.float64())
            continue
        for (number, _), width in zip(sheet.rows, values, strict=True):
            if not (width in WIDTHS or (name == "a_bits" and isnan(width))):
                known = ", ".join(map(str, WIDTHS))
                found = "is empty" if isnan(width) else f"is {width:g}"
                raise HardwareError(f"row {number}: {name} {found}, but widths are {known}; write one of these")
        columns[name] = pa.array([None if isnan(width) else int(width) for width in values], AXES[name])
    return pa.table(columns)


def _quoted(value: object) -> str:
    """Returns one field; floats as `repr` writes them. The `csv` module would leave a lone carriage return unquoted."""
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _written(value: object) -> str:
    """Returns text as it is where it reads back the same, and everything else as JSON.

    A quotation mark after a comma would start a cell in quotes.
    """
    plain = isinstance(value, str) and value.isprintable() and value == value.strip(", ") and value[:1] not in '"[{'
    return str(value) if plain and ',"' not in str(value) else json.dumps(value).replace(',"', '\\u002c"')


def _header(sheet: Sheet) -> dict[str, Any]:
    known = (*METADATA, *OPTIONAL)
    entries: dict[str, Any] = {"limits": {}}
    for cells in sheet.notes:
        line = sheet.delimiter.join(cells).rstrip(sheet.delimiter).strip()
        key, colon, text = (part.strip() for part in line.removeprefix("#").partition(":"))
        key = key.lower()
        if not (colon and text) or key not in known:
            raise HardwareError(
                f"cannot read the line {line!r}{did_you_mean(key, known)}; lines that start with # are '# key: value', "
                f"with a key of {', '.join(known)}"
            )
        if entries.get(key):
            raise HardwareError(f"has two lines '# {key}: …'; keep one")
        try:
            # Cells were split at JSON's own commas; a spreadsheet may have put something else between them
            whole = ",".join(cells).partition(":")[2].strip(", ")
            entries[key] = json.loads(whole) if text[:1] in ('"', "[", "{") else text
        except (ValueError, RecursionError):
            raise HardwareError(f"cannot read the line {line!r}: broken JSON after the colon") from None
    if missing := [key for key in METADATA if key not in entries]:
        example = {"hardware": "edge", "batch": "16", "origin": "measured", "version": "kernels 1.2"}[missing[0]]
        raise HardwareError(f"does not say the {missing[0]}; add a line such as '# {missing[0]}: {example}' at its top")
    if not str(entries["batch"]).isdecimal():
        raise HardwareError(f"batch: {entries['batch']!r} is not a whole number; write '# batch: 16'")
    return entries


def _check_columns(names: Sequence[str]) -> None:
    fields = layer_fields()
    if not names:
        raise HardwareError(f"has no columns; a cost table has {', '.join(AXES)} and any of {', '.join(fields)}")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise HardwareError(f"has two columns {repeated[0]!r}; keep one")
    known = (*AXES, *fields)
    for name in names:
        if name in known or name.startswith(DETAIL):
            continue
        for metric in (metric for metric in METRICS.values() if len(metric.units) > 1):
            if re.split("[^a-z]", name.lower())[0] == metric.name and metric.field in fields:
                raise HardwareError(f"column {name!r}: {_unit_wanted(metric.field)}")
        raise HardwareError(
            f"column {name!r} is unknown{did_you_mean(name, known)}; a cost table has {', '.join(AXES)} and any of "
            f"{', '.join(fields)}"
        )
    if missing := [name for name in AXES if name not in names]:
        raise HardwareError(f"lacks the column {missing[0]!r}; a cost table has {', '.join(AXES)} and its metrics")


def _unit_wanted(field: str) -> str:
    metric = metric_of(field)
    unit = f"in {metric.kept_unit}" if metric.kept_unit else "as a plain number"
    return f"a cost table keeps {metric.name} {unit}, in the column {field!r}; convert the values and rename it"


# HAQ's arrays


def read_npy(
    path: Path,
    layers: Sequence[LayerSpec],
    clock_mhz: float,
    batch: int = 16,
    hardware: str | None = None,
    origin: Origin = "modelled",
) -> CostTable:
    """Reads HAQ's array of cycles; it never unpickles.

    Args:
        path: A `.npy` file of shape `(layers, 8, 8)`, `[layer, w_bits − 1, a_bits − 1]`.
        layers: The layers of its first axis, in the same order. Size and bit operations are counted from them.
        clock_mhz: Turns cycles into time.
        batch: Samples that the cycles are for.
        hardware: Name of the hardware; by default the name of the file.
        origin: How the cycles were obtained.

    Raises:
        HardwareError: The file cannot be read, has another shape, or a cell that is not a number of cycles.
    """
    _check_clock(clock_mhz)
    cycles = _cycles(path)
    if cycles.ndim != 3 or cycles.shape[1:] != (8, 8):
        raise HardwareError(f"{path}: has shape {cycles.shape}, but HAQ's arrays have layers x 8 x 8")
    if len(cycles) != len(layers):
        raise HardwareError(
            f"{path}: has {len(cycles)} layers, but the model has {len(layers)}; give the model that it was made for"
        )
    wrong = np.argwhere(~(np.isfinite(cycles) & (cycles >= 0)))
    if len(wrong):
        row, w, a = (int(index) for index in wrong[0])
        raise HardwareError(
            f"{path}: {cycles[row, w, a]} cycles for layer {layers[row].name!r} at w_bits={w + 1}, a_bits={a + 1}: a "
            "cost is finite and not negative; fix the array"
        )
    metrics: Mapping[str, npt.NDArray[np.float64]] = {
        "latency_ms": cycles / (clock_mhz * 1e3),
        **footprint(layers, _HAQ_WIDTHS, _HAQ_WIDTHS),
    }
    names = tuple(layer.name for layer in layers)
    try:
        return CostTable(
            hardware or path.stem, batch, names, _HAQ_WIDTHS, _HAQ_WIDTHS, metrics, origin,
            f"{path.name} at {clock_mhz:g} MHz",
        )  # fmt: skip
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from None


def write_npy(table: CostTable, path: Path, clock_mhz: float) -> None:
    """Writes the latencies as HAQ's array of cycles, float64. Names, units, limits and all other costs are lost.

    Args:
        table: The table.
        path: The file.
        clock_mhz: Turns time into cycles.

    Raises:
        HardwareError: The table has no latencies, or does not hold exactly the pairs of 1 to 8 bits.
    """
    _check_clock(clock_mhz)
    if "latency_ms" not in table.metrics:
        raise HardwareError(f"{path}: HAQ's arrays hold cycles, but the table has only {', '.join(table.metrics)}")
    latency = table.metrics["latency_ms"]
    if not (table.w_bits == table.a_bits == _HAQ_WIDTHS and np.isfinite(latency).all()):
        raise HardwareError(
            f"{path}: HAQ's arrays hold every pair of 1 to 8 bits, and the table does not; write .parquet or .csv"
        )
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, latency * (clock_mhz * 1e3), allow_pickle=False)


def _check_clock(clock_mhz: float) -> None:
    """Checks that cycles can be divided by `clock_mhz`; raises `HardwareError`."""
    if not _SLOWEST_MHZ <= clock_mhz < np.inf:
        raise HardwareError(f"--clock-mhz {clock_mhz:g}: must be a positive number")


def _cycles(path: Path) -> npt.NDArray[np.float64]:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise HardwareError(f"cost table {str(path)!r} does not exist") from None
    except Exception as error:  # NumPy raises many kinds for a damaged file
        reason = " ".join(str(error).split())
        raise HardwareError(f"cannot read cost table {path} as .npy without pickle: {reason}") from None
    if array.dtype.kind not in "iuf":
        raise HardwareError(f"{path}: holds {array.dtype}, but HAQ's arrays hold cycles, integers or floats")
    return np.asarray(array, np.float64)
