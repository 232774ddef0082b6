"""A search takes models, data, hardware, agents and schemes by name or as objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from haq.config import SearchConfig
from haq.data import ImageData, get_data
from haq.errors import ConfigError, DataError, HaqError, HardwareError, ModelError
from haq.hwmodels import CostTable, get_hardware
from haq.io.user_code import call_named
from haq.policy import BitPolicy, LayerBits
from haq.quant.schemes import get_scheme
from haq.registry import AGENTS
from haq.search import Named, pick, resume, run
from haq.search.agents import AgentKind
from haq.search.results import Result

pytestmark = pytest.mark.usefixtures("in_turn")

SMALL: Mapping[str, object] = {
    "constraints": "latency=60%", "bits": "2,4,8", "trials": 3, "qat_steps": 0, "finetune_steps": 0, "workers": 1,
    "val_images": 20, "pin_ends": False,
}  # fmt: skip


@pytest.fixture
def network(tiny: Path) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = call_named(f"{tiny}:model", "model", ModelError)
    return model


@pytest.fixture
def arrays(tiny: Path) -> object:
    return call_named(f"{tiny}:data", "data", DataError)


def same(one: Result, other: Result) -> bool:
    return [trial.policy for trial in one.trials] == [trial.policy for trial in other.trials]


def test_objects_give_the_same_result_as_names(network: nn.Module, arrays: object, tiny: Path, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    named = run(f"{tiny}:model", f"{tiny}:data", "edge", out=tmp_path / "named", **SMALL)
    given = run(network, arrays, get_hardware("edge"), out=tmp_path / "given", batch=16, **SMALL)
    assert same(named, given)
    assert given.best.test_top1 == named.best.test_top1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training, "the caller's network stays as it was"
    config = given.read_config()
    assert (config.model, config.data, config.hardware) == ("object:Tiny", "object:tuple", "object:edge")
    assert given.export("packed", tmp_path / "net.safetensors") == tmp_path / "net.safetensors"
    assert isinstance(given.network(), nn.Module)


def test_a_run_of_objects_is_opened_with_them(network: nn.Module, arrays: object, tiny: Path, tmp_path: Path) -> None:
    run(network, arrays, out=tmp_path / "run", **SMALL)
    later = Result(tmp_path / "run")
    with pytest.raises(DataError, match=r"data 'tuple' was given as an object; .*Named\(data=...\)"):
        later.export("packed")
    with pytest.raises(ModelError, match=r"model 'Tiny' was given as an object; give it again .*--model"):
        later.export("packed", named=Named(data=arrays))
    assert later.export("packed", named=Named(model=network, data=arrays)) == later.path / "model.safetensors"
    assert later.export("packed", named=Named(model=f"{tiny}:model", data=f"{tiny}:data"))
    torch.manual_seed(1)
    other = type(network)()
    with pytest.raises(ModelError, match="weights .* have changed"):
        later.export("packed", named=Named(model=other, data=arrays))
    picked = pick(later, "latency=90%", tmp_path / "picked", named=Named(model=network, data=arrays))
    assert picked.finished


def test_data_may_be_data_sets_or_splits(arrays: object, network: nn.Module, tmp_path: Path) -> None:
    (x_train, y_train), (x_test, y_test) = arrays  # type: ignore[misc]
    sets = [TensorDataset(*map(torch.as_tensor, split)) for split in ((x_train, y_train), (x_test, y_test))]
    data = get_data(sets, 20, 0)
    np.testing.assert_array_equal(data.test.x, np.asarray(x_test))
    assert isinstance(data, ImageData)
    assert get_data(data, 20, 0) is data
    assert run(network, data, out=tmp_path / "run", **SMALL).finished
    halves = [TensorDataset(torch.as_tensor(x), torch.as_tensor(y) + 0.5) for x, y in arrays]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"y is float32 .*; y must be integers"):
        get_data(halves, 20, 0)  # they are no classes, and would be cut to some
    with pytest.raises(DataError, match=r"data must be \(\(x_train, y_train\), \(x_test, y_test\)\), or a pair of"):
        run(network, [1, 2, 3], out=tmp_path / "no", **SMALL)
    assert not (tmp_path / "no").exists()


def test_a_users_own_table_and_cost_model(network: nn.Module, arrays: object, tmp_path: Path) -> None:
    first = run(network, arrays, out=tmp_path / "one", **SMALL)
    table = CostTable.load(first.costs)
    again = run(network, arrays, table, out=tmp_path / "two", **SMALL)
    assert same(first, again)
    with pytest.raises(HardwareError, match="hardware 'dict' is dict, which has no name; give a haq.hwmodels.Hardware"):
        run(network, arrays, {"latency": 1}, out=tmp_path / "no", **SMALL)  # type: ignore[arg-type]


def test_a_users_own_agents(network: nn.Module, arrays: object, tmp_path: Path) -> None:
    kind: AgentKind = AGENTS["random"]
    options = {**SMALL, "seed": 3}
    named = run(network, arrays, agent="random", out=tmp_path / "named", **options)
    made = run(network, arrays, agent=kind, out=tmp_path / "kind", **options)
    called = run(network, arrays, agent=kind.make, out=tmp_path / "function", **options)
    assert same(named, made)
    assert same(named, called)
    with pytest.raises(ConfigError, match="agent 'object:int' is int; give a haq.search.agents.AgentKind, a function"):
        run(network, arrays, agent=5, out=tmp_path / "no", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the agent's function returned NoneType, which lacks propose"):
        run(network, arrays, agent=lambda task: None, out=tmp_path / "none", **options)  # type: ignore[arg-type]


def test_an_unfinished_run_of_an_agent_object_asks_for_it(network: nn.Module, arrays: object, tmp_path: Path) -> None:
    kind: AgentKind = AGENTS["random"]
    full = run(network, arrays, agent=kind, out=tmp_path / "run", **SMALL)
    (full.path / "best.json").unlink()
    lines = (full.path / "trials.jsonl").read_text().splitlines(keepends=True)
    (full.path / "trials.jsonl").write_text("".join(lines[:2]))
    (full.path / "searcher.pt").unlink()
    with pytest.raises(ConfigError, match=r"agent 'AgentKind' was given as an object; give it again with named=Named"):
        resume(full, named=Named(model=network, data=arrays))
    again = resume(full, named=Named(model=network, data=arrays, agent=kind))
    assert len(again.trials) == 3


def test_a_users_own_scheme_is_used_and_named(network: nn.Module, arrays: object, tmp_path: Path) -> None:
    scheme = get_scheme("linear", clip="minmax")
    found = run(network, arrays, scheme=scheme, out=tmp_path / "run", **SMALL)
    assert found.best.policy.scheme == "object:linear"
    assert found.network() is not None
    with pytest.raises(ConfigError, match="scheme 'object:<lambda>' is function, not a haq.quant.schemes.Scheme"):
        run(network, arrays, scheme=lambda: 0, out=tmp_path / "no", **SMALL)  # type: ignore[arg-type]


def test_a_search_starts_from_a_policy(network: nn.Module, arrays: object, tmp_path: Path) -> None:
    first = run(network, arrays, agent="uniform", out=tmp_path / "one", **SMALL)
    layers = list(first.best.policy)
    start = BitPolicy.uniform(layers, 4)
    found = run(network, arrays, start=start, out=tmp_path / "two", **SMALL)
    assert found.trials[0].origin == "start"
    assert found.trials[0].policy == start
    assert found.read_config().start == start
    wide = BitPolicy.uniform(layers, 8)
    lowered = run(network, arrays, start=wide, out=tmp_path / "three", **SMALL).trials[0]
    assert lowered.origin == "start"
    assert lowered.cost["latency_ms"] <= found.best.constraints["latency_ms"]
    with pytest.raises(ConfigError, match="start: layer 'nowhere' is not in both the policy and the network"):
        run(network, arrays, start=BitPolicy({**start, "nowhere": LayerBits(4, 4)}), out=tmp_path / "no", **SMALL)
    with pytest.raises(ConfigError, match=r"start: 3/3 bits .* for layer .* the search allows 2,4,8/2,4,8; change the"):
        run(network, arrays, start=BitPolicy({**start, layers[1]: LayerBits(3, 3)}), out=tmp_path / "no", **SMALL)


def test_a_network_without_shapes_is_refused(arrays: object, tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(ModelError, match=r"weight '1.weight' of 'Sequential' has no shape yet; run the model once"):
        run(lazy, arrays, out=tmp_path / "no", **SMALL)
    with pytest.raises(HaqError, match="model=tuple: must be text or a torch.nn.Module"):
        Named(model=["latency=50%"])
    assert not (tmp_path / "no").exists()


def test_a_config_file_repeats_a_run(network: nn.Module, tiny: Path, tmp_path: Path) -> None:
    first = run(f"{tiny}:model", f"{tiny}:data", out=tmp_path / "one", **SMALL)
    config = SearchConfig.load(first.path / "config.yaml")
    assert config == first.read_config()
    assert same(run(**config.options(), out=tmp_path / "two"), first)
