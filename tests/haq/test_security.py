"""No file of a user or a stranger runs code, leads out of its folder, or commands the terminal.

Each payload would write a file named `marker` in the current folder.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from haq.cli import main
from haq.cli.terminal import console
from haq.runs import RunFolder
from tests.haq.bad_input.good import write_good_input

ROOT = Path(__file__).resolve().parents[2]
OWN = ["--model", "user.py:net", "--data", "npz:data"]
SEARCH = ["search", *OWN, "--constraint", "latency=80%"]
YAML = "!!python/object/apply:os.mkdir ['marker']"


class Payload:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("marker",)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_good_input(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs `haq`, which must say one line and not run the payload; returns the line."""
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    line: str = capsys.readouterr().err.rstrip("\n")
    assert not Path("marker").exists(), "the payload has run"
    assert stopped.value.code == 2
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def _saved(path: Path) -> None:
    torch.save({"0.weight": Payload()}, path)


def _legacy(path: Path) -> None:
    torch.save({"0.weight": Payload()}, path, _use_new_zipfile_serialization=False)


def _scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def _objects_npz(path: Path) -> None:
    np.savez(path, x=np.array([Payload()] * 4, object), y=np.zeros(4, int), allow_pickle=True)


def _pickle_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", pickle.dumps(Payload()))
        file.writestr("y.npy", pickle.dumps(Payload()))


def _objects_npy(path: Path) -> None:
    np.save(path, np.array([Payload()] * 3, object), allow_pickle=True)


def _extension_parquet(path: Path) -> None:
    """A column of an extension type whose parameters are a pickle, and pandas metadata that names one."""
    table = pq.read_table(path)
    column = table.schema.field("layer").with_metadata(
        {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Payload())}
    )
    schema = table.schema.set(0, column).with_metadata({b"pandas": b'{"index_columns": ["a"], "columns": 3}'})
    pq.write_table(table.cast(schema), path)


@pytest.mark.parametrize(
    ("file", "spoil", "arguments"),
    [
        *(
            ("weights.pt", spoil, [*SEARCH, "--weights", "weights.pt"])
            for spoil in (_pickled, _saved, _legacy, _scripted)
        ),
        *(("data/train.npz", spoil, SEARCH) for spoil in (_pickled, _objects_npz, _pickle_in_zip)),
        *(
            ("cycles.npy", spoil, ["table", "cycles.npy", *OWN, "--clock-mhz", "9"])
            for spoil in (_pickled, _objects_npy)
        ),
        *(("costs.parquet", spoil, ["table", "costs.parquet"]) for spoil in (_pickled, _extension_parquet)),
        *(
            ("run/model.pt", spoil, ["export", "run", "--format", "packed"])
            for spoil in (_pickled, _saved, _legacy, _scripted)
        ),
        ("board.yaml", lambda path: path.write_text(YAML), ["hardware", "board.yaml"]),
        ("board.yaml", lambda path: path.write_text(f"name: {YAML}"), ["hardware", "board.yaml"]),
        ("bits.json", lambda path: path.write_text(YAML), ["quantize", "--policy", "bits.json"]),
        ("run/config.yaml", lambda path: path.write_text(f"search: {YAML}"), ["report", "run"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_file_with_a_payload_is_refused_and_the_payload_does_not_run(
    file: str,
    spoil: Callable[[Path], object],
    arguments: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(Path(file))
    refused(arguments, monkeypatch, capsys)


def test_the_payload_would_run(home: Path) -> None:
    """Otherwise the tests above show nothing."""
    pickle.loads(pickle.dumps(Payload()))
    assert Path("marker").is_dir()


def test_nothing_is_unpickled_anywhere() -> None:
    """Ways to read a pickle, and the arguments that switch them off."""
    for path in [path for folder in ("haq", "hwmodels", "envs", "search") for path in (ROOT / folder).rglob("*.py")]:
        if path.parts[-2:] == ("testing", "schemes.py"):  # a conformance suite: it pickles what it was given itself
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
                assert called != "torch.load" or given.get("weights_only") == "True", f"{path}: {called}"
                reads = called == "np.load" or called.endswith("format.read_array")
                assert not reads or given.get("allow_pickle") == "False", f"{path}: {called}"
                assert called not in ("pd.read_pickle", "torch.jit.load", "DDPG.load"), f"{path}: {called}"
                assert called not in ("Tuner.restore", "tune.Tuner.restore"), f"{path}: it unpickles the run folder"
                assert called != "yaml.load" or "_Loader" in ast.unparse(node), f"{path}: {called}"
        assert not re.search(r"trust_remote_code=True|load_replay_buffer|eval\(compile", text), path


# Paths


def test_a_link_does_not_lead_out_of_a_run_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "secret").write_text("mine\n")
    for name in ("trials.jsonl", "best.json", "costs.parquet", "bench.partial"):
        shutil.copytree("run", "other")
        Path("other", name).unlink(missing_ok=True)
        Path("other", name).symlink_to("../secret")
        assert "leads out of the run folder" in refused(["report", "other"], monkeypatch, capsys)
        shutil.rmtree("other")
    assert (home / "secret").read_text() == "mine\n"


def test_a_run_folder_may_itself_be_reached_by_a_link(home: Path) -> None:
    Path("alias").symlink_to("run")
    assert RunFolder.open(Path("alias")).read_best()


def test_names_of_layers_are_no_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(Path("run/best.json").read_text())
    content["policy"] = {"../../escaped": {"w_bits": 4, "a_bits": 4}}
    Path("run/best.json").write_text(json.dumps(content))
    before = {path for path in home.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["haq", "export", "run"])
    with pytest.raises(SystemExit):
        main()
    assert {path for path in home.rglob("*") if path.is_file()} == before


# The terminal and the page

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e</script><script>alert(1)</script>"


def test_tables_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(EVIL)
    table.add_row(Text(EVIL))
    for content in (table, Text(EVIL), EVIL):
        console.print(content, markup=False)
    shown = capsys.readouterr().out
    assert "\\x1b" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.parametrize("arguments", [["table", "costs.csv"], ["report", "run"], ["report", "run", "half"]])
def test_commands_escape_control_characters(
    arguments: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (Path("costs.csv"), *Path().glob("run/*.json*"), Path("run/config.yaml")):
        content = path.read_text()
        evil = EVIL if path.suffix == ".csv" else json.dumps(EVIL)[1:-1]
        path.write_text(content.replace("0,", evil + ",").replace('"0"', f'"{evil}"').replace("haq: 0.1.0", "haq: x"))
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err), said
    for page in Path("run").glob("*.html"):
        assert EVIL not in page.read_text()
        assert "<script>alert" not in page.read_text()


def test_an_error_that_quotes_the_user_is_printable(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["search", "--constraint", EVIL],
        ["export", EVIL],
        [EVIL],
        ["search", f"--{EVIL}"],
        ["search", "--trials", EVIL],
        ["hardware", f"{EVIL}.yaml"],
        [*SEARCH, "--model", f"{EVIL}.py:net"],
    ):
        refused(arguments, monkeypatch, capsys)


def test_warnings_escape_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["haq", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert logging.lastResort is not None
    record = logging.LogRecord("haq", logging.WARNING, "", 0, "data %s", (EVIL,), None)
    assert logging.lastResort.format(record).isprintable()


def test_export_escapes_control_characters_for_a_terminal_and_keeps_them_for_a_program(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("run/best.json")
    path.write_text(path.read_text().replace('"0"', '"\\u009b31m"'))
    monkeypatch.setattr(sys, "argv", ["haq", "export", "run"])
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(SystemExit):
            main()
        assert ("\x9b" in capsys.readouterr().out) != terminal
