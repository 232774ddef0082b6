"""Every internal of Ray that haq uses: a test's name says what an update of it broke.

`test_cluster.py` holds what follows from them: on which addresses Ray listens.
"""

import faulthandler
import inspect
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler

from haq.search.tune import ray_internals as internals

ROOT = Path(__file__).resolve().parents[3]


def test_ENABLE_RAY_CLUSTER() -> None:
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    assert constants.ENABLE_RAY_CLUSTERS_ENV_VAR in internals.QUIET, "the same for Ray's own processes"
    with internals.local():
        assert constants.ENABLE_RAY_CLUSTER is False
    assert constants.ENABLE_RAY_CLUSTER is before


def test_DEFAULT_ENV_VARS(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DEFAULT_ENV_VARS = {" in inspect.getsource(class_cache), "if Ray has none, `local` need not clear them"
    monkeypatch.setitem(class_cache.DEFAULT_ENV_VARS, "ADDED", "1")  # they are clear while tests share one Ray
    before = dict(class_cache.DEFAULT_ENV_VARS)
    with internals.local():
        assert not class_cache.DEFAULT_ENV_VARS
    assert before == class_cache.DEFAULT_ENV_VARS


def test_options_of_ray_init() -> None:
    """`_node_ip_address` and `_system_config`, and the settings in it."""
    source = inspect.getsource(ray.init)
    for name in internals.start_options((), 1):
        assert f'"{name}"' in source, name
    settings = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    for name in internals.start_options((), 1)["_system_config"]:
        assert name.encode() in settings, name


def test__brackets() -> None:
    scheduler = ASHAScheduler(metric="m", mode="max", max_t=4, grace_period=1, reduction_factor=2)
    for number, objective in enumerate((0.1, 0.5, 0.9)):
        internals.enter(scheduler, f"before-{number}", 1, objective)
    (bracket,) = scheduler._brackets
    recorded = {milestone: sorted(results.values()) for milestone, results in bracket._rungs}
    assert recorded == {1: [0.1, 0.5, 0.9], 2: [], 4: []}


def test_changes_are_undone() -> None:
    mine, known = logging.getLogger("ray").level, set(os.environ)  # tests may share one Ray, which has set some
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    crashes = faulthandler.is_enabled()
    os.environ["RAY_KEPT"] = "1"
    try:
        with internals.environment_restored(), internals.changes_undone():
            logging.getLogger("ray").setLevel(mine + 5)
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGUSR1, lambda *_: None)
            faulthandler.enable()
            os.environ.update(RAY_KEPT="2", RAY_ADDED="1", TUNE_ADDED="1", PYTHONBREAKPOINT="x", OTHER_ADDED="1")
        assert os.environ.pop("RAY_KEPT") == "1"
        assert os.environ.pop("OTHER_ADDED") == "1", "what is not Ray's is nothing to undo"
    finally:
        for name in ("RAY_KEPT", "OTHER_ADDED"):
            os.environ.pop(name, None)
    assert {"RAY_ADDED", "TUNE_ADDED", "PYTHONBREAKPOINT"} & set(os.environ) <= known
    assert logging.getLogger("ray").level == mine
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    assert faulthandler.is_enabled() == crashes


def test_what_ray_leaves_in_a_process() -> None:
    """A Ray that is started and stopped leaves nothing; where it is new in a version, this names it."""
    program = """
import sys
import ray, torch
from ray import tune
from haq.search.tune.cluster import ray_workers
from tests.process_state import changed, process_state
before = process_state()
with ray_workers(1):
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
left = [line for line in changed(before, process_state()) if not line.startswith("random state")]  # Ray draws some
sys.exit("\\n".join(left) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
