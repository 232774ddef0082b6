"""Starting Ray the way a command-line tool should: quiet, local, and gone afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ray_workers"]

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the same for Ray's own processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.jsonl is our log; CSV and JSON copies cost time a trial
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a policy is proposed when a worker is free, with all that was learnt by then
}


@contextmanager
def ray_workers(workers: int) -> Iterator[None]:
    """Runs its block with a Ray instance of `workers` CPUs on this machine, or inside one that is already running.

    Ray listens on the loopback address only, and its dashboard is off.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray keeps to the loopback address by itself on macOS and Windows only, and decides so when it is imported
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        num_cpus=workers,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    try:
        yield
    finally:
        ray.shutdown()
