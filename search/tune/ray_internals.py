"""Ray's internals that haq uses, and what Ray leaves changed in a process. No other file names one.

Checked with ray 2.60.0; `pyproject.toml` allows no newer minor version. `tests/search/tune/test_ray_internals.py` names
the internal that an update breaks. Why each is needed:

- `ray._private.ray_constants.ENABLE_RAY_CLUSTER`: Ray keeps to the loopback address by itself on macOS and Windows
  only, and decides so when it is imported.
- `_node_ip_address` of `ray.init`: the same for the address of the node.
- `_system_config` of `ray.init`: workers import what tasks need before there are tasks, and are kept while idle.
- `ray.tune.execution.class_cache.DEFAULT_ENV_VARS`: for PyTorch Lightning alone; with variables of their own, Tune's
  actors would not fit those workers. Where it is missing, actors start later, and nothing else happens.
- `_brackets` of `ASHAScheduler`, and their `on_result`: Ray keeps the state of a scheduler as a pickle, which a run
  folder must not hold, so trials of an interrupted search are entered into the rungs.
- Variables of the environment in `QUIET`, some of which are not documented.
- What `ray.init` and Tune change and `ray.shutdown` leaves: handlers of SIGTERM and SIGUSR1, `faulthandler`, and the
  variables `RAY_AUTH_MODE` and `PYTHONBREAKPOINT`.

`haq.io.user_code` also uses `ray.cloudpickle`, which documents what it is used for.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

__all__ = ["QUIET", "changes_undone", "enter", "environment_restored", "local", "start_options"]

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # ENABLE_RAY_CLUSTER of Ray's own processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets running trials end
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.jsonl is our log; CSV and JSON copies cost time a trial
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a policy is proposed when a worker is free, with all that was learnt by then
}
"""Variables of the environment; Ray reads some of them when it is imported."""

_OTHERS = ("PYTHONBREAKPOINT",)  # variables that Ray sets besides its own
_LOGGERS = ("ray", "ray.tune")


def start_options(modules: Sequence[str], processes: int) -> dict[str, Any]:
    """Returns arguments of `ray.init` for a Ray that only this machine reaches and whose workers are ready.

    Args:
        modules: Names of what workers import before there are tasks.
        processes: How many idle workers are kept.
    """
    return {
        "_node_ip_address": "127.0.0.1",
        "_system_config": {
            "preload_python_modules": list(modules),
            "num_workers_soft_limit": processes,
            "idle_worker_killing_time_threshold_ms": 86_400_000,
        },
    }


@contextmanager
def local() -> Iterator[None]:
    """Lets a Ray that the block starts use the loopback address alone, and its actors the workers that are ready."""
    import ray

    constants, variables = ray._private.ray_constants, {}
    with suppress(ImportError, AttributeError):
        from ray.tune.execution import class_cache

        variables = class_cache.DEFAULT_ENV_VARS
    before, kept = constants.ENABLE_RAY_CLUSTER, dict(variables)
    constants.ENABLE_RAY_CLUSTER = False
    variables.clear()
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        variables.update(kept)


def enter(scheduler: Any, trial: str, reached: int, objective: float) -> None:
    """Enters a result into the rungs of an `ASHAScheduler` that has one bracket, as if the trial had run under it.

    Args:
        scheduler: Changed in place.
        trial: Name, which no other trial has.
        reached: Number of the result, from 1.
        objective: Higher is better.
    """
    (bracket,) = scheduler._brackets
    bracket.on_result(SimpleNamespace(trial_id=trial), reached, objective)


@contextmanager
def environment_restored() -> Iterator[None]:
    """Gives the variables of Ray and Tune their values of before when the block ends."""
    before = {name: value for name, value in os.environ.items() if _is_rays(name)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if _is_rays(name) and name not in before]:
            del os.environ[name]
        os.environ.update(before)


def _is_rays(name: str) -> bool:
    return name.startswith(("RAY_", "TUNE_")) or name in _OTHERS


@contextmanager
def changes_undone() -> Iterator[None]:
    """Undoes when the block ends what is set inside it: levels of Ray's loggers, signal handlers, and `faulthandler`.

    Signal handlers are restored in the main thread, where alone they can be set.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    crashes = faulthandler.is_enabled()
    signals = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not crashes:
            faulthandler.disable()
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # else it was set outside of Python, which cannot set it again
                    signal.signal(number, handler)
