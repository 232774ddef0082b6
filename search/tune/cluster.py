"""Starting Ray the way a command-line tool should: quiet, local, and gone afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from haq.errors import ConfigError
from haq.io.files import writable
from haq.io.prefixes import one_line
from haq.threads import cores

__all__ = ["more_processes", "only_here", "ray_workers"]

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the same for Ray's own processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets running trials end
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.jsonl is our log; CSV and JSON copies cost time a trial
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a policy is proposed when a worker is free, with all that was learnt by then
}

_ANSWER_S = 5.0
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_TASKS = "haq.search.tune.trainable", "haq.search.finals", "torch._dynamo"
"""Modules whose imports take a worker's process seconds; PyTorch's optimizers import the last one."""


@contextmanager
def ray_workers(workers: int, address: str | None = None, gpus: float = 0.0) -> Iterator[None]:
    """Runs its block with Ray: of its own on this machine, on a cluster, or inside one that is already running.

    A Ray of its own has `workers` CPUs, listens on the loopback address only, and its dashboard is off.

    Args:
        workers: Tasks at a time.
        address: Of a cluster's head, `HOST:PORT`, or `auto` for the one that this machine belongs to.
        gpus: GPUs that each task takes, such as a quarter.

    Raises:
        ConfigError: No cluster answers, or there is no GPU.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails is reported with its reason
    if ray.is_initialized():
        _check_gpus(gpus)
        yield
        return
    if address is None:
        _start(workers, gpus)
    else:
        _connect(address)
    try:
        _check_gpus(gpus)
        yield
    finally:
        ray.shutdown()


def _start(workers: int, gpus: float) -> None:
    import ray
    import torch

    with suppress(ImportError, AttributeError):  # of another Ray: its actors start later, that is all
        from ray.tune.execution import class_cache

        # For PyTorch Lightning alone; with variables of their own, Tune's actors would be no match for those workers
        class_cache.DEFAULT_ENV_VARS.clear()
    # Ray keeps to the loopback address by itself on macOS and Windows only, and decides so when it is imported
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    if not writable(Path.home() / ".ray"):  # where Ray keeps the secret that its processes share
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A runtime_env would keep Ray from starting workers before there are tasks
    with _explained(), _inherited(_ENVIRONMENT):
        ray.init(
            "local",  # not a cluster that happens to run on this machine
            num_cpus=workers,
            num_gpus=torch.cuda.device_count() if gpus else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            _node_ip_address="127.0.0.1",
            # Workers import while the driver calibrates, and idle ones are kept: the next task finds them ready
            _system_config={
                "preload_python_modules": list(_TASKS),
                "num_workers_soft_limit": 2 * workers,
                "idle_worker_killing_time_threshold_ms": 86_400_000,
            },
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Says where Ray's own files are when it cannot write them."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename!r}: {error.strerror}" if error.filename else one_line(error)
        raise ConfigError(
            f"Ray cannot start: {reason}; set TMPDIR to a folder with a short name that can be written"
        ) from None


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for processes that the block starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def only_here(gpus: float = 0.0) -> bool:
    """Whether Ray has nothing that threads of this process have not: no GPU is asked for, and no CPU is elsewhere."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return not gpus and resources.get("CPU", 0.0) <= cores()


def more_processes(count: int) -> None:
    """Has Ray start processes beside those that are busy, so that the tasks that follow need not wait for imports."""
    import ray

    task = ray.remote(num_cpus=0)(_imported)
    for _ in range(count):
        task.remote()


def _imported() -> None:
    for name in _TASKS:
        import_module(name)


def _connect(address: str) -> None:
    import ray

    try:
        if address != "auto":  # Ray itself tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _ENVIRONMENT})
    except (ConnectionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"--address {address}: no Ray cluster answers ({reason}); start one with `ray start --head` and give its "
            "HOST:PORT, or leave the option out"
        ) from None


def _check_gpus(gpus: float) -> None:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    there = resources.get("GPU", 0.0)
    if gpus > there:
        raise ConfigError(f"--gpus-per-trial {gpus:g}: Ray finds {there:g} GPUs; leave the option out to use CPUs")
