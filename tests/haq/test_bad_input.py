"""Bad input of every kind gives one line that says so and exit code 2, and leaves every file as it was.

The cases are in `bad_input/`, by kind. They run in this process, so that all of them together take only seconds.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from haq.cli import main
from tests.haq.bad_input import CASES
from tests.haq.bad_input.case import Case
from tests.haq.bad_input.good import write_good_input


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("good")
    write_good_input(home)
    return home


@pytest.fixture
def home(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the good input as current folder, with a folder for temporary files and a cache inside."""
    copy = tmp_path / "home"
    shutil.copytree(good, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tmp").mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tempfile, "tempdir", str(copy / "tmp"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield copy
    for path in copy.rglob("*"):  # made read-only by a case
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def snapshot(home: Path) -> dict[str, object]:
    """Returns every file and folder with its kind and content."""
    found: dict[str, object] = {}
    for path in sorted(home.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        mode = path.lstat().st_mode
        content = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(home))] = stat.S_IFMT(mode), content
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    case: Case, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ray_workers(*options: object) -> None:
        raise AssertionError("Ray is started, so the input was taken for good")

    monkeypatch.setattr(import_module("haq.search.running"), "ray_workers", ray_workers)
    case.prepare()
    before = snapshot(home)
    monkeypatch.setattr(sys, "argv", ["haq", *case.arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it would be another line
        with pytest.raises(SystemExit) as stopped:
            main()
    said = capsys.readouterr().err.splitlines()
    assert (stopped.value.code, len(said)) == (2, 1), said
    assert said[0].startswith("error: ")
    assert said[0].isprintable()
    rest = said[0].replace(f"{home}/", "").replace(str(home), ".")
    for part in case.message.split(" … "):
        assert part in rest, said[0]
        rest = rest[rest.index(part) + len(part) :]
    assert snapshot(home) == before, "files are as they were"


def test_the_good_input_is_good(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a case might be refused for something else."""
    commands = (
        "report run", "export run --format csv", "export run --format packed -o net.st", "hardware board.yaml",
        "table costs.csv --model user.py:net --data npz:data", "table costs.parquet",
        "table cycles.npy --clock-mhz 100 --model user.py:net --data npz:data",
        "quantize --policy bits.json --model user.py:net --weights weights.pt --data npz:data",
        "profile --model user.py:net --data npz:data --hardware board.yaml",
    )  # fmt: skip
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["haq", *command.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0, (command, capsys.readouterr().err)


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 500
