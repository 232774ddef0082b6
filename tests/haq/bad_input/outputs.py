"""Exports, and paths that cannot be written."""

from pathlib import Path

from tests.haq.bad_input.case import Case, link

_OWN = "--model user.py:net --data npz:data"


def _file(path: Path) -> None:
    path.write_text("")


CASES = [
    Case("export run --format ymal", "unknown format 'ymal' (did you mean 'yaml'?); use one of json, yaml"),
    Case("export run --format ''", "unknown format ''"),
    Case("export run -o data", "cannot write 'data': Is a directory"),
    Case("export run -o user.py/bits.json", "cannot write 'user.py/bits.json'"),
    Case("export run -o /proc/bits.json", "cannot write '/proc/bits.json'"),
    Case(f"export run -o {'x' * 300}.json", "cannot write … File name too long"),
    Case("export run --format packed -o data", "cannot write 'data': Is a directory"),
    Case("export run --format torchao", "torchao"),
    Case("report run --out nowhere/page.html", "folder 'nowhere' does not exist; make it first"),
    Case("report run --out data", "data"),
    Case("report run --out /proc/page.html", "cannot write the page: … give another --out FILE"),
    Case("table costs.csv -o costs.json", "'costs.json' is no cost table; its name must end in .parquet"),
    Case("table costs.csv -o user.py/costs.parquet", "cannot write 'user.py/costs.parquet'"),
    Case("table costs.csv -o folder.csv", "cannot write 'folder.csv': Is a directory", {"folder.csv": Path.mkdir}),
    Case("table costs.csv -o cycles.npy", "cycles.npy: an array of cycles needs a clock; give --clock-mhz"),
    Case("table costs.csv -o other.npy --clock-mhz 100", "HAQ's arrays hold every pair of 1 to 8 bits"),
    Case(f"profile {_OWN} -o roofline.pgn", "roofline.pgn"),
    Case(f"measure {_OWN} -o costs.parquet", "-o costs.parquet exists; remove it, or give another name"),
    Case(f"measure {_OWN} -o costs.txt", "-o costs.txt: a measured table is written as .parquet"),
    Case(f"measure {_OWN} -o nowhere/costs.parquet", "folder 'nowhere' does not exist; make it first"),
    Case(
        f"measure {_OWN} -o new.parquet", "holds another measurement that was interrupted",
        {"new.parquet.partial": '{"header": {}}\n'},
    ),
    Case(
        f"measure {_OWN} -o new.parquet", "holds another measurement that was interrupted",
        {"new.parquet.partial": "[" * 100_000},
    ),
    Case(f"sensitivity {_OWN} -o values.csv", "-o values.csv: values are written as .json, maps as .png"),
    Case(f"quantize {_OWN} --bits 4 -o data", "data"),
    Case(f"quantize {_OWN} --bits 4 -o user.py/net.pt", "user.py"),
    Case(
        f"search {_OWN} --constraint latency=80% --out data",
        "'data' exists; resume it with `haq search --resume data`",
    ),
    Case(f"search {_OWN} --constraint latency=80% --out user.py/run", "is not a writable folder"),
    Case(
        f"search {_OWN} --constraint latency=80% --out dangling", "'dangling' exists", {"dangling": link("nowhere")}
    ),
]  # fmt: skip
