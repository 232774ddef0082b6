"""The examples run from beginning to end at their smallest scale."""

import runpy
import sys
from pathlib import Path

import pytest

from .documents import ROOT

EXAMPLES = {
    "cifar10.py": ["--weights", "resnet20-cifar10.pt", "--data", "cifar10", "--out", "runs/cifar10"],
    "own_table.py": ["--out", "runs/own-table"],
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *EXAMPLES[name], "--smoke"])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
