"""What belongs to the whole process, so that a function should leave it as it was."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch

__all__ = ["changed", "process_state"]


def process_state() -> dict[str, Any]:
    """Returns a value for each name of something that can be changed."""
    state: dict[str, Any] = {f"os.environ[{name!r}]": value for name, value in os.environ.items()}
    for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and (own := _own(logger)) != _UNTOUCHED:
            state[f"logging.getLogger({name!r})"] = own
    for number in signal.valid_signals():
        state[f"handler of {getattr(number, 'name', number)}"] = signal.getsignal(number)
    return state | {
        "logging.disable": logging.root.manager.disable,
        "warnings.filters": list(warnings.filters),
        "sys.path": list(sys.path),
        "working directory": os.getcwd(),
        "sys.excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
        "faulthandler": faulthandler.is_enabled(),
        "threads of torch": torch.get_num_threads(),
        "gradients of torch": torch.is_grad_enabled(),
        "default dtype of torch": torch.get_default_dtype(),
        "deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled(),
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of numpy": str(np.random.get_state(legacy=False)),
        "random state of Python": random.getstate(),
        "errors of numpy": np.geterr(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns a line for each name whose value differs."""
    return [
        f"{name}: {_shown(before.get(name))} became {_shown(after.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _own(logger: logging.Logger) -> tuple[Any, ...]:
    return logger.level, logger.disabled, logger.propagate, list(logger.handlers), list(logger.filters)


_UNTOUCHED = _own(logging.Logger(""))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:140]} … {text[-140:]}"
