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
        (("--constraint", "latncy=3ms"), "unknown constraint 'latncy' (did you mean 'latency'?)"),
        (("--constraint", "latency=3kB"), "unknown unit 'kB'"),
        (("--constraint", "latency=3"), "no unit in constraint"),
        (("--constraint", "latency=-3ms"), "must be a positive number"),
        ((*OWN, "--constraint", "latency=0.001ms", "--free-ends"), "the smallest reachable latency is"),
        ((*LIMIT, "--model", "nowhere.py:f"), "nowhere.py' does not exist; give an existing file.py:function"),
        ((*LIMIT, "--model", "resnt20"), "did you mean 'resnet20'"),
        ((*LIMIT, "--model", "user.py:modle"), "has no function 'modle' (did you mean 'model'?)"),
        ((*LIMIT, "--model", "user.py:no_module"), "returned int, not a torch.nn.Module"),
        ((*LIMIT, "--model", "user.py:wide"), "fails on a sample of shape (1, 1, 8, 8)"),
        ((*LIMIT, *OWN, "--weights", "misfit.pt"), "1.weight is (3, 3) but should be (10, 64)"),
        ((*LIMIT, *OWN, "--weights", "none.pt"), "none.pt' does not exist"),
        ((*LIMIT, *OWN, "--data", "npz:empty"), "train.npz' does not exist"),
        ((*LIMIT, *OWN, "--data", "npz:wrong"), "is empty"),
        ((*LIMIT, *OWN, "--data", "digit"), "did you mean 'digits'"),
        ((*LIMIT, *OWN, "--hardware", "egde"), "did you mean 'edge'"),
        ((*LIMIT, *OWN, "--bits", "0,9"), "--bits: 0 is not a width"),
        ((*LIMIT, *OWN, "--bits", "16"), "16"),
        ((*LIMIT, *OWN, "--scheme", "lqs"), "unknown scheme 'lqs' (did you mean 'lsq'?)"),
        ((*LIMIT, *OWN, "--scheme", "ttq"), "--scheme ttq is defined for 2 bits, not 3; there is nothing to search"),
        ((*LIMIT, *OWN, "--weights-only"), "constrain size or bops"),
        ((*LIMIT, *OWN, "--trials", "0"), "--trials 0: must be at least 1"),
        ((*LIMIT, *OWN, "--trials", "many"), "'many' is not a valid integer"),
        ((*LIMIT, *OWN, "--out", "taken"), "--resume taken`, or give another --out"),
        ((*LIMIT, "--colour"), "No such option"),
        (("--resume", "taken"), "is not a run folder"),
        (("--resume", "taken", "--trials", "3"), "--trials cannot be changed with --resume"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(folder.rglob("*"))
    result = haq("search", *arguments, cwd=folder)
    *notes, error = result.stderr.strip().splitlines()
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert error.startswith("error: ")
    assert message in error
    assert all(line.startswith("run folder: ") for line in notes), "what a search says before it is refused"
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
