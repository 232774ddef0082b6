"""What the agent and Ray Tune cost beside the trials: workers that only sleep, and the shares that are left over.

python benchmarks/overhead.py [--agent predictor] [--workers 8] [--trials 64] [--seconds 2]

A trial sleeps for as long as the calibration of a policy takes, and for as long again for each part of fine-tuning that
ASHA lets it have. Overhead is the time that workers wait between one sleep and the next, for the agent and Tune, as a
share of their whole time; that they start once, and that the last ones wait for nobody, is not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from haq.constraints import Constraint
from haq.envs import Budget
from haq.hwmodels import CostTable, get_hardware
from haq.layers import ends, trace
from haq.models.resnet import cifar_resnet
from haq.policy import BitPolicy, LayerBits
from haq.registry import AGENTS
from haq.runs import RunFolder
from haq.scores import Score
from haq.search.agents.task import Task
from haq.search.sensitivity import Sensitivity
from haq.search.tune.cluster import ray_workers
from haq.search.tune.searcher import METRIC, BitSearcher
from haq.search.tune.trainable import CHUNKS
from haq.search.tune.tuning import run_trials

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


class Sleeper(tune.Trainable):
    """Sleeps instead of computing, and reports a score that follows the widths."""

    def setup(self, config: dict[str, Any], seconds: float) -> None:  # type: ignore[override]
        """Starts the first trial of this process."""
        self._seconds, self._woke = seconds, 0.0
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in this process."""
        self._policy, self._scores, self._waited = BitPolicy.from_dict(json.loads(new_config["policy"])), [], 0.0
        return True

    def step(self) -> dict[str, Any]:
        """Sleeps, and reports the next score."""
        self._waited += time.time() - self._woke if self._woke else 0.0
        time.sleep(self._seconds)
        lost = sum(4.0 ** -(bits.w_bits or 8) + 4.0 ** -(bits.a_bits or 8) for bits in self._policy.values())
        self._scores.append(Score(1 - lost / 4, lost, 1, self._seconds, "qat", len(self._scores)).to_dict())
        done = len(self._scores) == 1 + CHUNKS
        result = {METRIC: float(np.exp(-lost)), "scores": self._scores, "error": None, "done": done}
        self._woke = time.time()
        return result | {"waited": self._waited}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keeps nothing."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Has nothing to restore."""


def make_task(trials: int) -> Task:
    """Returns ResNet-20 at half the uniform 8-bit latency, with sensitivities that fall fourfold a bit."""
    import torch

    layers = trace(cifar_resnet(20), torch.zeros(1, 3, 32, 32))
    table = CostTable.build(get_hardware("edge"), layers, WIDTHS, WIDTHS)
    budget = Budget(
        table, [Constraint("latency", 0.5, relative=True)], WIDTHS, dict.fromkeys(ends(layers), LayerBits(8, 8))
    )
    free = tuple(layer.name for layer in layers if layer.name not in budget.pinned)
    rates = np.random.default_rng(0).uniform(0.1, 1.0, (len(free), 1))
    lost = rates * 4.0 ** -np.array(WIDTHS, float)
    measured = Sensitivity("kl", free, WIDTHS, lost, lost)
    return Task(layers, budget, measured, Score(1.0, 0.01, 1, 0.0, "float"), "loss", trials, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="predictor")
    parser.add_argument("--workers", type=int, nargs="+", default=[8])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    print("| agent | workers | trials | slept | waited | wall | overhead |")
    print("|---|---|---|---|---|---|---|")
    for workers in options.workers:
        task = make_task(options.trials)
        agent, first = AGENTS[options.agent].agent_for(task)
        slept: list[float] = []
        waited: list[float] = []

        def finished(
            searcher: BitSearcher,
            proposal: Any,
            result: dict[str, Any] | None,
            slept: list[float] = slept,
            waited: list[float] = waited,
        ) -> None:
            slept.append(options.seconds * len((result or {}).get("scores", [])))
            waited.append((result or {}).get("waited", 0.0))

        with tempfile.TemporaryDirectory() as folder, ray_workers(workers):
            searcher = BitSearcher(agent, first, finished, "loss")
            trainable = tune.with_parameters(Sleeper, seconds=options.seconds)
            start = time.perf_counter()
            run_trials(trainable, searcher, options.trials, RunFolder(Path(folder)), workers)
            wall = time.perf_counter() - start
        print(
            f"| {options.agent} | {workers} | {len(slept)} | {sum(slept):.0f} s | {sum(waited):.1f} s | {wall:.0f} s "
            f"| {sum(waited) / (sum(slept) + sum(waited)):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
