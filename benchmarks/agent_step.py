"""Seconds that an agent takes to decide one policy and to fit it to the budget, by the number of layers.

python benchmarks/agent_step.py [--layers 25 50 100 200] [--agents predictor,haq,evolution,random]

Medians of 10 proposals, with 20 policies scored before; the network is a chain of convolutions that is never run.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from haq.constraints import Constraint
from haq.envs import Budget
from haq.hwmodels import CostTable, get_hardware
from haq.layers import LayerSpec
from haq.policy import BitPolicy
from haq.registry import AGENTS
from haq.scores import Score
from haq.search.agents.task import Task
from haq.search.sensitivity import Sensitivity

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
SCORED, TIMED = 20, 10


def make_task(count: int) -> Task:
    """Returns `count` convolutions of 16 to 64 channels at half the uniform 8-bit latency and size."""
    layers = [
        LayerSpec(
            f"conv{i}",
            "conv",
            c,
            c,
            (3, 3),
            (1, 1),
            (1, 1),
            (1, 1),
            1,
            (16, 16),
            (16, 16),
            256 * 9 * c * c,
            9 * c * c,
            0,
        )
        for i, c in ((i, 16 * (1 + i % 4)) for i in range(count))
    ]
    table = CostTable.build(get_hardware("edge"), layers, WIDTHS, WIDTHS)
    limits = [Constraint("latency", 0.5, relative=True), Constraint("size", 0.5, relative=True)]
    budget = Budget(table, limits, WIDTHS, {})
    lost = np.random.default_rng(0).uniform(0.1, 1.0, (count, 1)) * 4.0 ** -np.array(WIDTHS, float)
    measured = Sensitivity("kl", tuple(layer.name for layer in layers), WIDTHS, lost, lost)
    return Task(layers, budget, measured, Score(1.0, 0.01, 1, 0.0, "float"), "loss", SCORED, 0)


def time_agent(name: str, task: Task) -> float:
    """Returns the median seconds of a proposal; learning from its outcome is network training and not counted."""
    agent, first = AGENTS[name].agent_for(task)
    seen: dict[BitPolicy, float] = {}
    seconds = []
    waiting = [policy for _, policy in first]
    while len(seen) < SCORED + TIMED:
        start = time.perf_counter()
        policy = waiting.pop(0) if waiting else (agent.propose(seen) or ("", None))[1]
        seconds.append(time.perf_counter() - start)
        assert policy is not None
        lost = sum(4.0 ** -(bits.w_bits or 8) + 4.0 ** -(bits.a_bits or 8) for bits in policy.values())
        seen[policy] = float(np.exp(-lost))
        agent.learn(policy, seen[policy])
    return median(seconds[-TIMED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--agents", default="predictor,haq,evolution,random")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| agent | " + " | ".join(f"{count} layers" for count in options.layers) + " |")
    print("|---|" + "---|" * len(options.layers))
    for name in options.agents.split(","):
        cells = [f"{1e3 * time_agent(name, make_task(count)):.0f} ms" for count in options.layers]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
