"""Leaving the process of a caller as it was: its random states, its import path, and what other packages print."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from haq.io.prefixes import verbosity_restored

__all__ = ["process_state_restored", "random_states_restored"]


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restores the random states of Python, NumPy and PyTorch when the block ends, which may then seed them.

    Agents do: stable-baselines3 seeds and draws from all three. States of GPUs are restored where CUDA is in use.
    """
    import numpy as np  # not above: who only imports `haq.search` needs neither
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Runs a whole command, such as a search, inside a program of the user's; also as a decorator.

    When the block ends, it restores the random states; `sys.path`, to which folders of the user's files are added; the
    filters of warnings; and how much Hugging Face's packages print. The number of threads and what Ray changes are
    restored where they are changed; see `haq.threads` and `haq.search.tune.ray_internals`.
    """
    path = list(sys.path)
    with random_states_restored(), warnings.catch_warnings(), verbosity_restored():
        try:
            yield
        finally:
            sys.path[:] = path
