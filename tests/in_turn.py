"""Searches whose trials run one after the other in this process.

Ray starts a process for the trials of every search, which takes seconds. It is for tests of what stands around a
search; tests/search is about Ray, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ray import tune
from torch import nn

from haq.data import Samples
from haq.policy import BitPolicy
from haq.search import conclusion, finals, picking, running
from haq.search.tune import tuning
from haq.search.tune.searcher import BitSearcher
from haq.search.tune.trainable import QuantizationTrial
from haq.search.workload import Workload

__all__ = ["searching_in_turn"]


@contextmanager
def searching_in_turn() -> Iterator[None]:
    """Does what searches do side by side in turn, while its block runs; nothing starts Ray."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "run_trials", _in_turn)
        patch.setattr(conclusion, "finetune_all", _finetuned)
        patch.setattr(conclusion, "test_all", _tested)
        patch.setattr(tune, "with_parameters", _with_parameters)
        patch.setattr(running, "only_here", lambda gpus: True)
        patch.setattr(running, "more_processes", lambda count: None)
        for module in (running, picking):
            patch.setattr(module, "ray_workers", _no_workers)
        yield
    torch.set_num_threads(threads)


@contextmanager
def _no_workers(*_: Any) -> Iterator[None]:
    yield


def _with_parameters(trainable: type[QuantizationTrial], **parameters: Any) -> type[QuantizationTrial]:
    class Bound(trainable):  # type: ignore[valid-type, misc]
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config, **parameters)

    return Bound


def _in_turn(trainable: Any, searcher: BitSearcher, trials: int, *_: Any) -> None:
    for number in range(trials):
        name = str(number)
        suggestion = searcher.suggest(name)
        if not isinstance(suggestion, dict):
            return
        trial = trainable(config=suggestion)
        result = trial.step()
        while not result["done"]:
            result = trial.step()
        searcher.on_trial_complete(name, result)


def _finetuned(workload: Workload, policies: Mapping[str, BitPolicy], steps: int, *_: Any) -> dict[str, Any]:
    return {name: list(finals._finetune(workload, policy, steps))[-1] for name, policy in policies.items()}


def _tested(networks: Mapping[str, nn.Module], test: Samples, *_: Any) -> dict[str, float]:
    return {name: finals._test_top1(network, test, {}) for name, network in networks.items()}
