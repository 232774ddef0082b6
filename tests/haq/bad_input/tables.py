"""Cost tables: CSV, Parquet and HAQ's arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.haq.bad_input.case import Case, Spoil, cut, edited, encoded, folder, link

_HEAD = "# hardware: edge\n# batch: 16\n# origin: measured\n# version: 1\n"
_COLUMNS = "layer,w_bits,a_bits,latency_ms\n"


def _csv(spoil: Spoil, message: str, command: str = "table costs.csv") -> Case:
    return Case(command, message, {"costs.csv": spoil})


def _rows(rows: str, message: str) -> Case:
    return _csv(_HEAD + _COLUMNS + rows, message)


def _parquet(spoil: Spoil, message: str, command: str = "table costs.parquet") -> Case:
    return Case(command, message, {"costs.parquet": spoil})


def _arrow(change: Callable[[Any], Any]) -> Spoil:
    return lambda path: pq.write_table(change(pq.read_table(path)), path) and None


def _npy(array: Any, message: str) -> Case:
    def write(path: Path) -> None:
        np.save(path, array, allow_pickle=True)

    command = "table cycles.npy --clock-mhz 100 --model user.py:net --data npz:data"
    return Case(command, message, {"cycles.npy": write})


_SEARCH = "search --model user.py:net --data npz:data --constraint latency=80% --hardware"

CASES = [
    Case("table nowhere.csv", "cost table 'nowhere.csv' does not exist"),
    Case("table nowhere.parquet", "cost table 'nowhere.parquet' does not exist"),
    Case("table costs.xlsx", "'costs.xlsx' is no cost table; its name must end in .parquet, .csv, .npy"),
    Case("hardware nowhere.csv", "cost table 'nowhere.csv' does not exist"),
    Case(f"{_SEARCH} nowhere.csv", "cost table 'nowhere.csv' does not exist"),
    Case(f"{_SEARCH} costs.csv --batch 3", "costs.csv: the costs are for a batch of 16, not 3; give --batch 16"),
    _csv("", "costs.csv: has no columns; a cost table has layer, w_bits, a_bits and any of latency_ms"),
    _csv("\n\n\n", "costs.csv: "),
    _csv(b"\xff\xfe\x00\xd8", "cannot read cost table costs.csv: it is not whole UTF-16 text"),
    _csv(edited("# hardware: edge\n", ""), "does not say the hardware; add a line such as '# hardware: edge'"),
    _csv(encoded("utf-16-be"), "costs.csv: holds NUL characters, as UTF-16 does without a mark at its start"),
    _csv(b"\xe9" + _HEAD.encode(), "cannot read cost table costs.csv: it is not UTF-8 text (byte 0); save it as UTF-8"),
    _csv(link("/dev/zero"), "cannot read cost table costs.csv: it is larger than 256 MiB"),
    _csv(folder, "cannot read cost table costs.csv: Is a directory"),
    _csv(link("nowhere"), "cost table 'costs.csv' does not exist"),
    _csv(link("/dev/null"), "costs.csv: has no columns"),
    _csv(edited("# batch: 16\n", ""), "costs.csv: does not say the batch; add a line such as '# batch: 16'"),
    _csv(edited("# batch: 16", "# batch: sixteen"), "batch: 'sixteen' is not a whole number; write '# batch: 16'"),
    _csv(edited("# batch: 16", "# batch: 0"), "batch=0: a cost table is for a batch of at least 1"),
    _csv(edited("# batch: 16", "# batch: -16"), "batch: '-16' is not a whole number"),
    _csv(edited("# batch: 16", "# batch: ²"), "batch: '²'"),
    _csv(edited("# batch: 16", "# batch: 16\n# batch: 16"), "has two lines '# batch: …'; keep one"),
    _csv(edited("# origin: modelled", "# origin: guessed"), "origin='guessed': costs are modelled or measured"),
    _csv(edited("# origin", "# orogin"), "cannot read the line '# orogin: modelled' (did you mean 'origin'?)"),
    _csv(edited("# origin: modelled", '# origin: "mod'), "broken JSON after the colon"),
    _csv(edited("# origin: modelled", "# origin: " + "[" * 100_000), "costs.csv: "),
    _csv(edited("# origin: modelled", "# origin: modelled\n# rest: [1]"), "costs.csv: lacks the metadata"),
    _csv(edited("# origin: modelled", '# origin: modelled\n# memory: {"steps": 1}'), "costs.csv: lacks the metadata"),
    _csv(edited("# hardware: edge", "# hardware: \x1b[31m\n# bad"), "cannot read the line '# bad'"),
    _csv(edited("w_bits", "w_bit"), "column 'w_bit' is unknown (did you mean 'w_bits'?)"),
    _csv(edited("latency_ms", "latency_us"), "a cost table keeps latency in ms, in the column 'latency_ms'"),
    _csv(edited("energy_mj", "latency_ms"), "has two columns 'latency_ms'; keep one"),
    _csv(_HEAD + "layer,w_bits,latency_ms\nconv,8,1\n", "lacks the column 'a_bits'"),
    _csv(_HEAD + "layer,w_bits,a_bits\nconv,8,8\n", "a cost table needs at least one of latency_ms"),
    _csv(_HEAD + _COLUMNS, "a cost table needs layers of distinct names"),
    _csv(_HEAD, "costs.csv: "),
    _rows("conv,8,8\n", "cannot be read as CSV"),
    _rows("conv,8,8,1,1\n", "cannot be read as CSV"),
    _rows("conv,8.5,8,1\n", "row 6: w_bits is 8.5, but widths are 1, 2, 3"),
    _rows("conv,8,eight,1\n", "row 6: a_bits='eight' is no number"),
    _rows("conv,99999999999999999999,8,1\n", "row 6: w_bits is 1e+20, but widths are"),
    _rows("conv,8,8,fast\n", "row 6: latency_ms='fast' is no number"),
    _rows("conv,8,8,1;5\n", "row 6: latency_ms='1;5' is no number"),
    _rows("conv,8,8,-1\n", "latency_ms=-1.0 for layer 'conv' at w_bits=8, a_bits=8: a cost is finite and not negative"),
    _rows("conv,8,8,nan\n", "latency_ms=nan for layer 'conv' at w_bits=8, a_bits=8: a cost is finite"),
    _rows("conv,8,8,\n", "latency_ms=nan for layer 'conv'"),
    _rows("conv,8,8,inf\n", "latency_ms=inf for layer 'conv' at w_bits=8, a_bits=8: a pair of widths"),
    _rows("conv,8,8,1e400\n", "latency_ms=inf for layer 'conv'"),
    _rows("conv,,8,1\n", "w_bits"),
    _rows("conv,9,8,1\n", "w_bits is 9, but widths are 1, 2, 3"),
    _rows("conv,0,8,1\n", "w_bits is 0"),
    _rows("conv,8,-1,1\n", "a_bits is -1, but widths are 1, 2, 3"),
    _rows("conv,8,8,1\nconv,8,8,2\n", "has two rows for layer 'conv' at w_bits=8, a_bits=8; keep one"),
    _rows("a,8,8,1\nb,4,4,1\n", "has no row for layer 'a' at w_bits=4, a_bits=4; measure or add it"),
    _rows('"conv,8,8,1\n', "costs.csv: "),
    _rows("conv\x00,8,8,1\nconv\x00,8,8,1\n", r"has two rows for layer 'conv\x00'"),
    _rows("\x1b[2J,8,8,-1\n", r"for layer '\x1b[2J'"),
    _rows("conv,8,8,1\n" * 2 + "x" * 100_000, "cannot be read as CSV"),
    _csv(
        _HEAD + _COLUMNS + "stem,8,8,1\n", "layer '0' of the network is not in the cost table; measure or build",
        f"{_SEARCH} costs.csv --batch 16",
    ),
    _csv(
        edited("0,2,2,", "9,2,2,"), "has no row for layer '9' at w_bits=2, a_bits=4",
        "table costs.csv --model user.py:net --data npz:data",
    ),
    # Parquet
    _parquet(b"", "cannot read cost table costs.parquet"),
    _parquet(b"PAR1", "cannot read cost table costs.parquet"),
    _parquet(b"PAR1" + bytes(range(200)) + b"PAR1", "cannot read cost table costs.parquet"),
    _parquet("layer,w_bits\n", "cannot read cost table costs.parquet"),
    _parquet(cut(0.5), "cannot read cost table costs.parquet"),
    _parquet(folder, "cannot read cost table costs.parquet"),
    _parquet(link("/dev/null"), "cannot read cost table costs.parquet"),
    _parquet(_arrow(lambda t: t.replace_schema_metadata({})), "lacks the metadata of a cost table"),
    _parquet(_arrow(lambda t: t.replace_schema_metadata({b"haq": b"[]"})), "lacks the metadata of a cost table"),
    _parquet(_arrow(lambda t: t.replace_schema_metadata({b"haq": b"[" * 100_000})), "lacks the metadata"),
    _parquet(_arrow(lambda t: t.replace_schema_metadata({b"haq": b"\xff\xff"})), "lacks the metadata"),
    _parquet(_arrow(lambda t: t.drop_columns(["a_bits"])), "lacks the column 'a_bits'"),
    _parquet(_arrow(lambda t: t.append_column("layer", t["layer"])), "costs.parquet"),
    _parquet(_arrow(lambda t: t.slice(0, 0)), "a cost table needs layers of distinct names"),
    _parquet(
        _arrow(lambda t: t.set_column(1, "w_bits", pa.array([2.5] * len(t)))), "has a column of the wrong type"
    ),
    _parquet(
        _arrow(lambda t: t.set_column(0, "layer", pa.array([None] * len(t), pa.string()))),
        "has a column of the wrong type",
    ),
    _parquet(
        _arrow(lambda t: t.set_column(0, "layer", pa.array([[1]] * len(t)))), "has a column of the wrong type"
    ),
    # HAQ's arrays
    _npy(np.ones((3, 8)), "cycles.npy: has shape (3, 8), but HAQ's arrays have layers x 8 x 8"),
    _npy(np.ones((2, 8, 8)), "cycles.npy: has 2 layers, but the model has 3; give the model that it was made for"),
    _npy(np.full((3, 8, 8), np.nan), "nan cycles for layer '0' at w_bits=1, a_bits=1"),
    _npy(np.full((3, 8, 8), -1), "-1.0 cycles for layer '0'"),
    _npy(np.full((3, 8, 8), "x"), "cycles.npy: holds <U1"),
    _npy(np.array([{}] * 3, object), "cannot read cost table cycles.npy as .npy without pickle"),
    _npy(np.ones((3, 8, 8), complex), "cycles.npy: holds complex128"),
    Case(
        "table cycles.npy --clock-mhz 100 --model user.py:net --data npz:data",
        "cannot read cost table cycles.npy as .npy", {"cycles.npy": cut(0.5)},
    ),
    Case(
        "table cycles.npy --clock-mhz 100 --model user.py:net --data npz:data",
        "cannot read cost table cycles.npy as .npy", {"cycles.npy": b""},
    ),
]  # fmt: skip
