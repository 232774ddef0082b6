"""How long a search on a large network takes until its first trial ends, stage by stage, and how much memory.

python benchmarks/large.py --network resnet50
python benchmarks/large.py --network bert

The networks and their data are random: only time and memory are measured. All options of the search are its defaults.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.search import run

_TRAIN, _TEST, _CLASSES, _WORDS, _TOKENS = 256, 64, 10, 30_522, 128
Split = tuple[NDArray[np.generic], NDArray[np.int64]]


class Logits(nn.Module):
    """A network of Hugging Face that takes one tensor and returns one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


def resnet50(seed: int) -> tuple[nn.Module, tuple[Split, Split]]:
    """Returns ResNet-50 with random weights, and random pictures of 224 × 224."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    network = Logits(ResNetForImageClassification(ResNetConfig(num_labels=_CLASSES)))
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        return rng.standard_normal((count, 3, 224, 224), np.float32), rng.integers(0, _CLASSES, count)

    return network, (split(_TRAIN), split(_TEST))


def bert(seed: int) -> tuple[nn.Module, tuple[Split, Split]]:
    """Returns BERT-base with random weights, and random texts of 128 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    network = Logits(BertForSequenceClassification(BertConfig(num_labels=_CLASSES)))
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        return rng.integers(0, _WORDS, (count, _TOKENS)), rng.integers(0, _CLASSES, count)

    return network, (split(_TRAIN), split(_TEST))


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, tuple[Split, Split]]]] = {"resnet50": resnet50, "bert": bert}


class Enough(KeyboardInterrupt):
    """Ends a search after the trials that were wanted."""


class Stages:
    """Notes when each stage began, and the memory and processor time of all processes until then.

    Args:
        trials: The search ends after so many.
    """

    def __init__(self, trials: int) -> None:
        self._trials, self._own, self._start = trials, psutil.Process(), time.monotonic()
        self._stage, self._since, self._cpu = "prepare", self._start, 0.0
        self._seconds: dict[int, float] = {}
        self._peak, self._peak_of_all = 0.0, 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()
        print(f"{'stage':<14} {'seconds':>8} {'CPU s':>8} {'GiB':>6}", flush=True)

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task != self._stage:
            self.end(task)
        elif done == total:
            self.end("search")
        if task == "search" and done >= 1:
            self.end(f"after {done}")
            if done >= self._trials:
                raise Enough

    def end(self, following: str) -> None:
        """Prints the stage that ends."""
        now, cpu = time.monotonic(), sum(self._seconds.values())
        spent, used = now - self._since, cpu - self._cpu
        if spent > 0.1:
            print(f"{self._stage:<14} {spent:8.1f} {used:8.1f} {self._peak:6.1f}", flush=True)
        self._stage, self._since, self._cpu, self._peak = following, now, cpu, 0.0

    def total(self) -> None:
        """Prints the sums."""
        seconds, cpu = time.monotonic() - self._start, sum(self._seconds.values())
        print(f"{'all':<14} {seconds:8.1f} {cpu:8.1f} {self._peak_of_all:6.1f}", flush=True)

    def _watch(self) -> None:
        while True:
            held = 0.0
            for process in (self._own, *self._own.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    self._seconds[process.pid] = times.user + times.system
                    held += process.memory_full_info().pss / 2**30  # memory that is shared counts once
                except psutil.Error:
                    continue
            self._peak, self._peak_of_all = max(self._peak, held), max(self._peak_of_all, held)
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet50")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--constraint", default="size=50%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--qat-steps", type=int, default=24)
    options = parser.parse_args()
    stages = Stages(options.trials)
    network, data = NETWORKS[options.network](options.seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(
                network, data, constraints=options.constraint, seed=options.seed, out=Path(folder) / "run",
                qat_steps=options.qat_steps, observer=stages,
            )  # fmt: skip
        except KeyboardInterrupt:
            pass
        finally:
            stages.total()


if __name__ == "__main__":
    sys.exit(main())
