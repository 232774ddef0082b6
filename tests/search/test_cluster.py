"""Ray of one's own, a cluster of two nodes, and what is missing there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.runs import RunFolder
from haq.search import run


@pytest.fixture
def cluster() -> Iterator[str]:
    """Two nodes with a core each, and a GPU in name on the first; yields the head's address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    nodes.add_node(num_cpus=1, num_gpus=1)
    yield nodes.address
    nodes.shutdown()


def test_a_search_runs_on_a_cluster(cluster: str, tiny: Path, tmp_path: Path) -> None:
    options = {
        "--model": f"{tiny}:model", "--data": f"{tiny}:data", "--constraint": "latency=50%", "--bits": "2,4,8",
        "--trials": "6", "--qat-steps": "3", "--finetune-steps": "2", "--workers": "2", "--gpus-per-trial": "0.5",
        "--address": cluster, "--out": str(tmp_path / "run"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "haq",
        "search",
        "--free-ends",
        *(part for option in options.items() for part in option),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    folder = RunFolder.open(tmp_path / "run")
    assert folder.finished
    assert [trial.error for trial in folder.read_trials()] == [None] * 6


def config_for(tiny: Path, **changed: object) -> SearchConfig:
    options: dict[str, object] = {
        "constraints": ("latency=50%",), "model": f"{tiny}:model", "data": f"{tiny}:data", "bits": (2, 4, 8),
        "pin_ends": False,
    }  # fmt: skip
    return SearchConfig(**{**options, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_one_line_and_leaves_nothing(
    address: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--address {address}: no Ray cluster answers"):
        run(config_for(tiny, address=address), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 64: Ray finds \d+ GPUs"):
        run(config_for(tiny, gpus_per_trial=64.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_of_a_gpu_is_checked() -> None:
    with pytest.raises(ConfigError, match="--gpus-per-trial -1: must be between 0 and 64"):
        SearchConfig(("latency=50%",), gpus_per_trial=-1.0)
