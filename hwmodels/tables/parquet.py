"""Cost tables as Parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from haq.errors import HardwareError
from haq.hwmodels.tables.arrow import from_arrow, to_arrow
from haq.hwmodels.tables.table import CostTable
from haq.io.files import replacing

__all__ = ["read_table", "write_table"]


def write_table(table: CostTable, path: Path) -> None:
    """Writes `table`; see `CostTable.save`."""
    with replacing(path) as temporary:
        pq.write_table(to_arrow(table), temporary, write_page_checksum=True)


def read_table(path: Path) -> CostTable:
    """Reads a table; see `CostTable.load`."""
    try:
        # `pq.read_table` would read a folder named `latency=60` as a column
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read()
        content.validate(full=True)
    except FileNotFoundError:
        raise HardwareError(f"cost table {str(path)!r} does not exist") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise HardwareError(f"cannot read cost table {path}: {' '.join(str(error).split())}") from None
    try:
        return from_arrow(content)
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from None
