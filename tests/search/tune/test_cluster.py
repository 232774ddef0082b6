"""A local Ray, a cluster of two nodes, and errors for what they lack."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.runs import RunFolder
from haq.search import run


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes, each with one core and a simulated GPU."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    nodes.add_node(num_cpus=1, num_gpus=1)
    yield nodes
    nodes.shutdown()


def test_a_search_on_a_cluster_survives_the_loss_of_a_node(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    options = {
        "--model": f"{tiny}:model", "--data": f"{tiny}:data", "--constraint": "latency=50%", "--bits": "2,4,8",
        "--trials": "30", "--qat-steps": "3", "--finetune-steps": "2", "--workers": "2", "--gpus-per-trial": "0.5",
        "--address": cluster.address, "--out": str(tmp_path / "run"),
    }  # fmt: skip
    arguments = [part for option in options.items() for part in option]
    file = tmp_path / "run" / "trials.jsonl"
    with (tmp_path / "said").open("w") as said:
        search = subprocess.Popen([sys.executable, "-m", "haq", "search", "--free-ends", *arguments], stderr=said)
    deadline = time.monotonic() + 120
    while not (file.is_file() and file.read_bytes().count(b"\n") >= 4):
        assert search.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    *finished, _ = file.read_text().split("\n")
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    assert search.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    folder = RunFolder.open(tmp_path / "run")
    assert folder.finished
    assert file.read_text().split("\n")[: len(finished)] == finished, "none is lost"
    trials = folder.read_trials()
    assert sorted(trial.number for trial in trials) == list(range(1, 31)), "and none is run twice"
    assert [trial.error for trial in trials] == [None] * 30, "what ran there is run elsewhere"


def config_for(tiny: Path, **changed: object) -> SearchConfig:
    options: dict[str, object] = {
        "constraints": ("latency=50%",), "model": f"{tiny}:model", "data": f"{tiny}:data", "bits": (2, 4, 8),
        "pin_ends": False,
    }  # fmt: skip
    return SearchConfig(**{**options, **changed})  # type: ignore[arg-type]


def listening(pids: set[int]) -> set[str]:
    """Returns the addresses that processes listen on, IPv4 and IPv6, as the kernel writes them in hexadecimal."""
    links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*") if link.is_symlink()]
    sockets = set()
    for link in links:
        with suppress(OSError):  # closed since
            sockets.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == "0A" and fields[9] in sockets:
                found.add(local.split(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's tables of sockets")
def test_a_ray_of_its_own_listens_on_the_loopback_address_alone_and_has_no_dashboard() -> None:
    """Anyone who can reach Ray's ports can run code."""
    program = (
        "from haq.search.tune.cluster import ray_workers\nwith ray_workers(1):\n    print('up', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    own = {process.pid, *descendants(process.pid)}
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in own]
    addresses = listening(own)
    process.communicate(b"\n")
    assert any(b"raylet" in command for command in commands), "Ray's processes are among them"
    # Unless `RAY_USAGE_STATS_ENABLED` is 0, a process of this name without pages collects Ray's usage statistics
    dashboards = [command for command in commands if b"dashboard/dashboard.py" in command]
    assert all(b"--disable-frontend" in command for command in dashboards)
    assert addresses
    assert addresses <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def descendants(pid: int) -> set[int]:
    children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return children.union(*map(descendants, children))


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    program = """
from haq.errors import ConfigError
from haq.search.tune.cluster import ray_workers
for address in ("127.0.0.1:1", "nowhere", "127.0.0.1:port", "127.0.0.1:99999"):
    try:
        with ray_workers(1, address):
            print("connected")
    except ConfigError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    assert all(re.match("--address [^ ]+: no Ray cluster answers", line) for line in lines), lines


def test_a_gpu_that_is_not_there_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 64: Ray finds \d+ GPUs"):
        run(**config_for(tiny, gpus_per_trial=64.0).options(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_of_a_gpu_is_checked() -> None:
    with pytest.raises(ConfigError, match="--gpus-per-trial -1: must be between 0 and 64"):
        SearchConfig(("latency=50%",), gpus_per_trial=-1.0)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write")
def test_folders_that_ray_cannot_write() -> None:
    """Ray stores a secret in the home folder; if it cannot, haq passes it in another way. It needs temporary files."""
    script = (
        "from haq.errors import ConfigError\nfrom haq.search.tune.cluster import ray_workers\n"
        "try:\n    with ray_workers(1):\n        print('started')\nexcept ConfigError as error:\n    print(error)"
    )
    for variables, said in (
        ({"HOME": "/proc/nohome"}, "started"),
        ({"TMPDIR": "/proc/none"}, "Ray cannot start: '/proc/none': No such file or directory; set TMPDIR to a folder"),
    ):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | variables
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert said in done.stdout, done.stderr
