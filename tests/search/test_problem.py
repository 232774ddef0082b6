"""The limits of a device apply to every search on it, wherever its costs come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from haq.config import SearchConfig
from haq.errors import ConfigError, ConstraintError
from haq.hwmodels.tables.formats import load_table, save_table
from haq.runs import RunFolder
from haq.search import Silent
from haq.search.problem import pose

from .conftest import config_for

EDGE = Path(__file__).parents[2] / "configs" / "hardware" / "edge.yaml"


def board(path: Path, **limits: float) -> str:
    """A hardware file like that of `edge`, for a device with less memory."""
    units = {"size": "B", "ram": "B", "latency": "ms"}
    entries = {
        key: {"value": value, "unit": units[key], "source": "chosen: for tests"} for key, value in limits.items()
    }
    path.write_text(yaml.safe_dump({**yaml.safe_load(EDGE.read_text()), "name": "board", "limits": entries}))
    return str(path)


def limits_of(config: SearchConfig, run: RunFolder) -> dict[str, float]:
    return {limit.metric: limit.limit for limit in pose(config, Silent(), run).budget.constraints}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_limits_travel_with_a_table(tiny: Path, tmp_path: Path, suffix: str) -> None:
    config = config_for(tiny, constraints=("energy=90%",), hardware=board(tmp_path / "b.yaml", size=300.0, ram=600.0))
    direct = pose(config, Silent())
    assert {limit.metric for limit in direct.budget.constraints} == {"energy", "size", "ram"}
    save_table(direct.table, tmp_path / f"costs{suffix}")
    again = pose(config_for(tiny, constraints=("energy=90%",), hardware=str(tmp_path / f"costs{suffix}")), Silent())
    assert list(map(str, again.budget.constraints)) == list(map(str, direct.budget.constraints))
    assert "size ≤ 300 B (board holds no more)" in map(str, again.budget.constraints)
    policy = again.budget.uniform(8)
    assert again.table.cost(policy)["size_bytes"] > 300 >= again.table.cost(again.budget.decrease(policy))["size_bytes"]


def test_a_limit_that_no_policy_meets_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = config_for(tiny, constraints=("energy=90%",), hardware=board(tmp_path / "b.yaml", size=300.0))
    save_table(pose(config, Silent()).table, tmp_path / "costs.csv")
    text = (tmp_path / "costs.csv").read_text()
    assert '# limits: {"size": 300.0}\n' in text
    (tmp_path / "costs.csv").write_text(text.replace("300.0", "100"))
    with pytest.raises(ConstraintError, match=r"no policy meets size ≤ 100 B \(board holds no more\)"):
        pose(config_for(tiny, constraints=("energy=90%",), hardware=str(tmp_path / "costs.csv")), Silent())


def test_a_resumed_run_keeps_the_limits_that_it_started_with(tiny: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for weights_only in (False, True):
        config = config_for(
            tiny, constraints=("size=90%",), hardware=board(tmp_path / "b.yaml", size=300.0), weights_only=weights_only
        )
        pose(config, Silent()).table.save(run.costs)
        board(tmp_path / "b.yaml", size=200.0)
        assert limits_of(config, run)["size"] == 300
        board(tmp_path / "b.yaml")
        assert limits_of(config, run)["size"] == 300
        pose(config, Silent()).table.save(run.costs)
        board(tmp_path / "b.yaml", size=200.0)
        assert limits_of(config, run)["size"] > 300


def test_runs_from_before_tables_had_limits_follow_the_file(tiny: Path, tmp_path: Path) -> None:
    config = config_for(tiny, constraints=("energy=90%",), hardware=board(tmp_path / "b.yaml", size=300.0))
    run = RunFolder(tmp_path)
    replace(pose(config, Silent()).table, limits=None).save(run.costs)
    assert load_table(run.costs).limits is None
    assert limits_of(config, run)["size"] == 300


def test_weights_alone_must_fit_the_device_too(tiny: Path, tmp_path: Path) -> None:
    hardware = board(tmp_path / "b.yaml", size=300.0, ram=100.0)
    found = pose(config_for(tiny, constraints=("size=90%",), hardware=hardware, weights_only=True), Silent())
    assert list(map(str, found.budget.constraints)) == ["size ≤ 300 B (b holds no more)"]


def test_passes_that_would_fail_at_the_end_are_refused_at_the_start(tiny: Path) -> None:
    config = config_for(tiny, scheme="kmeans", weights_only=True, constraints=("size=60%",), ptq="auto")
    with pytest.raises(ConfigError, match="--ptq sequential,adaround with --scheme kmeans: AdaRound needs a uniform"):
        pose(config, Silent())
    pose(replace(config, ptq=("sequential",)), Silent())
