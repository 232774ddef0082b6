"""The command line as a user meets it: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from haq.runs import RunFolder


def haq(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "haq", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_shows_examples_for_every_command() -> None:
    assert "Examples:" in haq("--help").stdout
    for command in ("search", "report", "export", "schemes", "quantize", "compare"):
        result = haq(command, "--help")
        assert result.returncode == 0
        assert "Examples:" in result.stdout
    assert haq("--version").stdout.startswith("haq, version")


USER = """
from torch import nn
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def no_module():
    return 3
def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "taken").mkdir()
    torch.save({"1.weight": torch.zeros(3, 3)}, tmp_path / "misfit.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    for part in ("train", "test"):
        np.savez(tmp_path / "wrong" / f"{part}.npz", x=np.zeros((0, 8, 8, 1), np.uint8), y=np.zeros(0, int))
    return tmp_path


LIMIT = ("--constraint", "latency=50%")
OWN = ("--model", "user.py:model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no constraint"),
        ((*OWN, "--constraint", "latency=0.001ms", "--free-ends"), "the smallest reachable latency is"),
        (("--resume", "taken", "--trials", "3"), "--trials cannot be changed with --resume"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(folder.rglob("*"))
    result = haq("search", *arguments, cwd=folder)
    (error,) = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert error.startswith("error: ")
    assert message in error
    after = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert after == before, "nothing is written"


def test_report_and_export_of_what_is_not_a_run(tmp_path: Path) -> None:
    for command in ("report", "export"):
        result = haq(command, str(tmp_path / "none"))
        assert result.returncode == 2
        assert "does not exist; give the folder that `haq search` wrote" in result.stderr


def test_export(make_run: object, tmp_path: Path) -> None:
    run: RunFolder = make_run("done")  # type: ignore[operator]
    printed = haq("export", str(run.path))
    assert printed.returncode == 0
    assert '"w_bits"' in printed.stdout
    target = tmp_path / "bits.yaml"
    assert haq("export", str(run.path), "--format", "yaml", "-o", str(target)).returncode == 0
    assert "w_bits:" in target.read_text()
    assert haq("export", str(run.path), "--format", "ymal").returncode == 2
