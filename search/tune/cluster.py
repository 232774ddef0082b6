"""Starts Ray as a command-line tool should: quiet, local, and stopped afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path

from haq.errors import ConfigError
from haq.io.files import writable
from haq.io.prefixes import one_line
from haq.search.tune.ray_internals import QUIET, changes_undone, environment_restored, local, start_options
from haq.threads import cores

__all__ = ["more_processes", "only_here", "ray_workers"]

_ANSWER_S = 5.0
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_TASKS = "haq.search.tune.trainable", "haq.search.finals", "torch._dynamo"
"""Modules that take a worker seconds to import; PyTorch's optimizers import the last one."""


@contextmanager
def ray_workers(workers: int, address: str | None = None, gpus: float = 0.0) -> Iterator[None]:
    """Runs its block with Ray: a local one, a cluster, or the Ray that this process already uses.

    A local Ray has `workers` CPUs, listens on the loopback address only, and has no dashboard. When the block ends, the
    process is as before: the environment, the levels of Ray's loggers, signal handlers and Ray's settings.

    Args:
        workers: Tasks at a time.
        address: `HOST:PORT` of a cluster's head, or `auto` for the cluster that this machine belongs to.
        gpus: GPUs for each task, such as 0.25.

    Raises:
        ConfigError: No cluster answers, Ray cannot write its files, or there are too few GPUs.
    """
    with environment_restored():
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        with changes_undone():
            logging.getLogger("ray").setLevel(logging.ERROR)
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails is reported with its reason
            if ray.is_initialized():
                _check_gpus(gpus)
                yield
                return
            with ExitStack() as stack:
                if address is None:
                    stack.enter_context(local())
                    _start(workers, gpus)
                else:
                    _connect(address)
                stack.callback(ray.shutdown)
                _check_gpus(gpus)
                yield


def _start(workers: int, gpus: float) -> None:
    import ray
    import torch

    if not writable(Path.home() / ".ray"):  # where Ray keeps the secret that its processes share
        os.environ.setdefault("RAY_AUTH_TOKEN", _secret())
    # Not a runtime_env: with one, Ray would start no workers before there are tasks
    with _explained(), _inherited(_ENVIRONMENT):
        ray.init(
            "local",  # not a cluster that happens to run on this machine
            num_cpus=workers,
            num_gpus=torch.cuda.device_count() if gpus else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            # Workers import while the driver calibrates, and idle workers are kept for the next task
            **start_options(_TASKS, processes=2 * workers),
        )


@cache
def _secret() -> str:
    """Returns the same secret for every Ray that this process starts: Ray may remember the first."""
    return secrets.token_hex(32)


@contextmanager
def _explained() -> Iterator[None]:
    """Reports which file Ray cannot write, and how to move Ray's files."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename!r}: {error.strerror}" if error.filename else one_line(error)
        raise ConfigError(
            f"Ray cannot start: {reason}; set TMPDIR to a folder with a short name that can be written"
        ) from None


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for processes that the block starts."""
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
    """Whether threads of this process can do as much as Ray: no GPU is needed, and Ray's CPUs are all here."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return not gpus and resources.get("CPU", 0.0) <= cores()


def more_processes(count: int) -> None:
    """Lets Ray start more processes, so that the next tasks need not wait for imports."""
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
