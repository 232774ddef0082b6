"""A folder in which every documented command has what it names: small stand-ins of networks, data and runs.

Searches run in turn; see `tests/in_turn.py`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from haq.cli.main import cli
from haq.data import registry as data_registry
from haq.data.digits import read_digits
from haq.data.splitting import Splits
from haq.errors import ModelError
from haq.hwmodels.pricing import open_hardware
from haq.io.user_code import call_named
from haq.layers import trace
from haq.models.resnet import SmallResNet
from haq.registry import MODELS
from haq.runs import RunFolder

from ..in_turn import searching_in_turn
from .documents import blocks

SEARCH = (
    "--trials=2", "--qat-steps=1", "--finetune-steps=1", "--val-images=20", "--workers=1", "--bits=2,4,8",
)  # fmt: skip
RUNS = ("digits-resnet-edge-latency-10ms", "predictor", "random", "mine")
RESNET20_RUNS = (
    "resnet20-edge-latency-50pct",
    "resnet20-cpu-latency-50pct",
    "resnet20-edge-pareto-latency-size",
    "smaller",
)


def _digits(num_classes: int = 10, in_channels: int = 1) -> SmallResNet:
    return SmallResNet((16, 32), (1, 2), (1, 1), num_classes, in_channels)


def _resnet20(num_classes: int = 10, in_channels: int = 3) -> SmallResNet:
    return SmallResNet((16, 32), (1, 2), (1, 1), num_classes, in_channels)


def _few_digits() -> Splits:
    whole = read_digits()
    assert whole.val is not None
    train, val, test = (
        part.subset(range(count)) for part, count in ((whole.train, 200), (whole.val, 40), (whole.test, 40))
    )
    return Splits(train, val, test, whole.num_classes)


def haq(line: str, *more: str) -> str:
    """Runs a command line in this process, and returns what it prints."""
    result = CliRunner().invoke(cli, [*shlex.split(line)[1:], *more], prog_name="haq")
    if result.exception is not None and not (isinstance(result.exception, SystemExit) and not result.exit_code):
        raise AssertionError(f"{line}\n{result.output}") from result.exception
    return result.output


@pytest.fixture(scope="package")
def smaller() -> Iterator[None]:
    """Built-in networks have fewer layers, `digits` fewer images, and nothing starts Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS._added, "digits-resnet", _digits)
        patch.setitem(MODELS._added, "resnet20", _resnet20)
        patch.setattr(data_registry, "read_digits", _few_digits)
        patch.setattr("webbrowser.open", lambda url: True)
        with searching_in_turn():
            yield


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory, smaller: None) -> Iterator[Path]:
    """The folder; tests work in copies."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "cache").mkdir()
    torch.manual_seed(0)
    torch.save(_digits().state_dict(), folder / "cache" / "digits-resnet-v1.pt")
    torch.save(_resnet20().state_dict(), folder / "resnet20-cifar10.pt")
    rng = np.random.default_rng(0)
    (folder / "cifar10").mkdir()
    for name, count in (("train", 200), ("test", 40)):
        y = np.arange(count) % 10
        x = rng.integers(0, 80, (count, 8, 8, 3)) + 16 * y[:, None, None, None]
        np.savez(folder / "cifar10" / f"{name}.npz", x=x.astype(np.uint8), y=y)
    for block in blocks("python", "yaml"):
        if block.page != "docs/models.md":  # whose network takes other images
            write_named(block.text, folder)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE", str(folder / "cache"))
        os.chdir(folder)
        try:
            _fill(folder)
        finally:
            os.chdir(before)
        yield folder


def write_named(text: str, folder: Path) -> bool:
    """Writes a block that begins with the name of its file; returns whether it does."""
    first = text.partition("\n")[0]
    if first.startswith("# my_"):
        (folder / first[2:].strip()).write_text(text)
        return True
    if first.startswith("name: my-"):
        (folder / "my_board.yaml").write_text(text)
        return True
    return False


def _fill(folder: Path) -> None:
    own = "--model resnet20 --weights resnet20-cifar10.pt --data npz:cifar10"
    first, *others = (Path("runs") / name for name in RUNS)
    haq(f"haq search --constraint latency=10ms --out {first}", *SEARCH)
    resnet20, *more = (Path("runs") / name for name in RESNET20_RUNS)
    haq(f"haq search {own} --constraint latency=50% --constraint size=50% --out {resnet20}", *SEARCH)
    for source, copies in ((first, others), (resnet20, more)):
        for copy in copies:
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("tune"))
    for run, name in ((first, "costs.parquet"), (resnet20, "cpu.parquet")):
        open_hardware("edge").price(RunFolder.open(run).read_layers(), tuple(range(1, 9)), 1).save(Path(name))
    haq(f"haq finetune {resnet20} --epochs 1 --out runs/tuned")
    layers = trace(call_named("my_net.py:build", "model", ModelError), torch.zeros(1, 1, 8, 8))
    open_hardware("edge").price(layers, tuple(range(1, 9)), 1).save(Path("mine.parquet"))
    haq(f"haq export {resnet20} -o bits.json")
    for form, file in (("onnx", "net.onnx"), ("qonnx", "model.qonnx.onnx"), ("packed", "model.safetensors")):
        haq(f"haq export {first} --format {form} -o {file}")
    shutil.copy("net.onnx", "mine.onnx")
    shutil.copy("net.onnx", "model.onnx")
    haq("haq table costs.parquet --clock-mhz 200 -o cycles.npy")  # as many layers as resnet20 has
    haq("haq table costs.parquet -o costs.csv")


@pytest.fixture
def workspace(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder, and the current one."""
    folder = tmp_path / "work"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("cache", "tune", "report*.html"))
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)
