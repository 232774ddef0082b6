"""A search of a network that its layers cover only in part: everything is counted, said and kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from haq.errors import ConfigError, ConstraintError
from haq.exports.formats import export_run
from haq.hwmodels import CostTable
from haq.runs import RunFolder
from haq.search import Silent, run
from haq.search.problem import pose
from haq.search.results import Result

from ..in_turn import searching_in_turn
from .conftest import TINY, Recorder, config_for

MIXED = (
    TINY
    + """

class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.eye(64) + 0.01 * torch.randn(64, 64))

    def forward(self, x):
        return torch.matmul(self.values, x[..., None])[..., 0]


class Mixed(Tiny):
    def __init__(self):
        super().__init__()
        self.mix = Mix()

    def forward(self, x):
        return self.linear(self.mix(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1)))


def model():
    return Mixed()
"""
)
WEIGHTS, LAYERS = 64 * 64, 4 * 9 + 4 * 4 * 9 + 2 * 64


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "mixed.py"
    path.write_text(MIXED)
    return path


@pytest.fixture(scope="module")
def found(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str]]:
    observer = Recorder()
    config = config_for(mixed, constraints=("latency=80%", "size=99.5%"), trials=2, qat_steps=0, finetune_steps=0)
    with searching_in_turn():
        result = run(**config.options(), out=tmp_path_factory.mktemp("runs") / "mixed", observer=observer)
    return result, observer.said


@pytest.fixture
def copied(found: tuple[Result, list[str]], tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(found[0].path, tmp_path / "run")))


def test_the_search_says_what_it_leaves(found: tuple[Result, list[str]]) -> None:
    share = f"{LAYERS / (LAYERS + WEIGHTS):.1%}".replace("%", " %")
    said = next(line for line in found[1] if "of the weights" in line)
    assert said.startswith(f"most of the network is not quantized: layers hold {share} of the weights; mix (4.10 k,")


def test_the_run_folder_keeps_it(found: tuple[Result, list[str]]) -> None:
    folder = RunFolder.open(found[0].path)
    rest = folder.read_rest()
    assert (rest.weights, rest.covered, rest.macs) == (WEIGHTS, LAYERS, WEIGHTS)
    table = CostTable.load(folder.costs)
    assert table.rest["size_bytes"] == 4 * WEIGHTS
    assert table.rest["latency_ms"] > 0
    floating = folder.read_baselines()["float"]
    assert floating is not None
    assert floating.cost["size_bytes"] == 4 * (WEIGHTS + LAYERS + 4 + 4 + 2)


def test_the_predicted_size_is_that_of_the_file(found: tuple[Result, list[str]], tmp_path: Path) -> None:
    folder = RunFolder.open(found[0].path)
    content = Path(export_run(folder, "packed", tmp_path / "net.safetensors")).read_bytes()
    tensors = len(content) - 8 - int.from_bytes(content[:8], "little")  # without the description of the layers
    assert folder.read_best().cost["size_bytes"] == pytest.approx(tensors, rel=0.03)


def test_a_relative_budget_is_of_the_whole_network(mixed: Path) -> None:
    with pytest.raises(
        ConstraintError, match=r"smallest reachable size is .* \(16\.4 kB of it outside of the layers\)"
    ):
        pose(config_for(mixed, constraints=("size=50%",)), Silent())


def test_a_run_goes_on_with_what_it_began_with(copied: RunFolder) -> None:
    config = copied.read_config()
    again = pose(config, Silent(), copied)
    assert again.rest == copied.read_rest()
    before = CostTable.load(copied.costs)
    policy = copied.read_best().policy
    assert again.table.cost(policy) == {**before.cost(policy)}


def test_a_run_from_before_the_rest_was_counted_keeps_its_prices(copied: RunFolder) -> None:
    replace(CostTable.load(copied.costs), rest={}).save(copied.costs)
    (copied.path / "rest.json").unlink()
    (copied.path / "fingerprints.json").unlink()
    again = pose(copied.read_config(), Silent(), copied)
    assert again.table.rest == {}
    assert not again.rest


def test_another_runs_rest_is_refused(copied: RunFolder) -> None:
    file = copied.path / "rest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "macs": 1}))
    with pytest.raises(ConfigError, match=r"rest\.json is not the file that this run wrote"):
        copied.check()
    file.write_text('{"parts": [], "covered": "much"}')
    with pytest.raises(ConfigError, match=r"rest\.json was not written by `haq search`: covered='much'"):
        copied.read_rest()
