"""Rules reach every part of a search: its budget, its agents, its run folder, and what is exported."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from haq.config import SearchConfig
from haq.errors import ConfigError, HaqError
from haq.policy import BitPolicy, LayerBits
from haq.registry import AGENTS
from haq.runs import RunFolder
from haq.search import resume, run
from haq.search.problem import pose
from haq.search.running import run as search

from ..in_turn import searching_in_turn
from .conftest import Recorder, config_for

BRANCHES = """
import numpy as np
import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.last(torch.relu(self.left(x) + self.right(x)))).flatten(1))


def model():
    torch.manual_seed(0)
    return Branches()


def data():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.normal(0, 0.3, (120, 1, 4, 4)).astype(np.float32)
    x[y == 0, :, :, :2] += 1
    return (x[:80], y[:80]), (x[80:], y[80:])
"""

RULES: dict[str, Any] = {"pin": "stem=4/8", "float": "head", "bits_of": {"last": "4,8"}, "tie": "left,right"}


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "branches.py"
    path.write_text(BRANCHES)
    return path


def test_rules_are_in_the_budget_and_are_told(branches: Path) -> None:
    heard = Recorder()
    found = pose(config_for(branches, **RULES, constraints=("latency=70%",)), heard)
    assert [layer.name for layer in found.layers] == ["stem", "left", "right", "last"]
    assert found.budget.pinned == {"stem": LayerBits(4, 8)}
    assert found.budget.decisions == (("left", "right"), ("last",))
    assert {pair.w_bits for pair in found.budget.candidates("last")} == {4, 8}
    assert "in floating point: head, 29.4% of the weights of all layers" in heard.said
    assert "tied: left, right" in heard.said


@pytest.mark.parametrize("agent", AGENTS)
def test_a_search_keeps_its_rules(branches: Path, tmp_path: Path, agent: str) -> None:
    config = config_for(
        branches, **RULES, constraints=("latency=70%",), agent=agent, trials=4, qat_steps=0, finetune_steps=0
    )
    with searching_in_turn():
        found = run(**config.options(), out=tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    kept = yaml.safe_load((folder.path / "config.yaml").read_text())["search"]
    assert {kind: kept[kind] for kind in RULES} == {
        "pin": ["stem=4/8"], "float": ["head"], "bits_of": ["last=4,8"], "tie": ["left,right"]
    }  # fmt: skip
    policies = [trial.policy for trial in folder.read_trials()]
    assert policies
    for policy in (*policies, found.best.policy):
        assert list(policy) == ["stem", "left", "right", "last"]
        assert policy["stem"] == LayerBits(4, 8)
        assert policy["left"] == policy["right"]
        assert policy["last"].w_bits in (4, 8)
    assert resume(tmp_path / "run").best.policy == found.best.policy


def test_an_export_leaves_layers_in_floating_point(branches: Path, tmp_path: Path) -> None:
    config = config_for(branches, **RULES, constraints=("size=85%",), trials=2, qat_steps=0, finetune_steps=0)
    with searching_in_turn():
        found = run(**config.options(), out=tmp_path / "run")
    found.export("onnx", tmp_path / "net.onnx")
    import onnx

    held = onnx.load(tmp_path / "net.onnx").graph.initializer
    assert any(
        list(tensor.dims) in ([2, 64], [64, 2]) and tensor.data_type == onnx.TensorProto.FLOAT for tensor in held
    )


def test_layers_that_read_one_tensor_are_tied_where_the_hardware_says_so(branches: Path, tmp_path: Path) -> None:
    edge = Path(__file__).parents[2] / "configs" / "hardware" / "edge.yaml"
    board = tmp_path / "board.yaml"
    board.write_text(yaml.safe_dump({**yaml.safe_load(edge.read_text()), "name": "board", "ties": ["shared-input"]}))
    config = config_for(branches, constraints=("latency=70%",), hardware=str(board))
    found = pose(config, Recorder())
    assert found.budget.decisions == (("stem",), ("left", "right"), ("last",), ("head",))
    found.table.save(tmp_path / "costs.parquet")
    board.write_text(edge.read_text())
    again = pose(config, Recorder(), RunFolder(tmp_path))
    assert again.budget.decisions == found.budget.decisions, "a run keeps the ties that it began with"
    table = pose(
        config_for(branches, constraints=("latency=70%",), hardware=str(tmp_path / "costs.parquet")), Recorder()
    )
    assert table.budget.decisions == found.budget.decisions
    with pytest.raises(ConfigError, match="needs the same widths for layers that read one tensor"):
        pose(replace(config, hardware=str(tmp_path / "costs.parquet"), pin=("left=8",)), Recorder())


def test_widths_to_start_from_must_keep_the_rules(branches: Path) -> None:
    start = BitPolicy(dict.fromkeys(("stem", "left", "right", "last"), LayerBits(4, 8)))
    config = config_for(branches, **RULES, constraints=("latency=100%",))
    assert pose(replace(config, start=start), Recorder()).start == start
    for changed, message in (
        ({"left": LayerBits(8, 8)}, "start: different widths for layers 'left' and 'right', which are tied; change"),
        ({"stem": LayerBits(8, 8)}, "start: 8/8 bits (weights/activations) for layer 'stem', which is no candidate"),
        ({"head": LayerBits(8, 8)}, "start: layer 'head' is not in both the policy and the network"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            pose(replace(config, start=BitPolicy({**start, **changed})), Recorder())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pin": "stm=8"},
            "--pin stm=8: no layer matches 'stm' (did you mean 'stem'?); the layers are stem, left, right",
        ),
        ({"tie": "last,head"}, "--tie last,head: layer 'last' is conv and layer 'head' is linear"),
        ({"pin": "stem=16"}, "--pin stem=16: hardware 'edge' does not run layer 'stem' so; it runs 1-8/1-8 bits"),
        ({"bits_of": "stem=4/16"}, "--bits-of stem=4/16: hardware 'edge' does not run layer 'stem' so"),
        ({"float": "*"}, "nothing is left to search"),
        ({"pin": "stem=1", "scheme": "qil"}, "--pin stem=1: --scheme qil is defined for"),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(
    branches: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    config = config_for(branches, constraints=("latency=70%",), **options)
    with pytest.raises(HaqError, match=re.escape(message)) as found:
        search(config, tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


def test_no_rules_leave_the_configuration_as_it_was() -> None:
    assert not {"pin", "float", "bits_of", "tie"} & SearchConfig(("size=50%",)).to_dict().keys()
