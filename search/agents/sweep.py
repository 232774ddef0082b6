"""Several budgets in one run: each has an agent, and all agents share every evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConfigError, ConstraintError
from haq.io.files import write_text
from haq.policy import BitPolicy
from haq.search.agents.agent_state import read_json, reading
from haq.search.agents.protocol import Agent, AgentKind, First
from haq.search.agents.task import Task

__all__ = ["Sweep", "make_sweep", "swept_budgets"]

_LEVELS = {1: 6, 2: 4}  # number of metrics → budgets per metric
_FEWEST_LEVELS = 3
_SLACK = 1.05  # tightest budget over the smallest reachable cost, at which there would be no choice left


class Sweep:
    """Lets the agents of several budgets propose in turn; all of them learn from every outcome.

    Args:
        agents: One for each budget.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._agents, self._turn = list(agents), 0

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`; an agent that has nothing left to propose is skipped."""
        for _ in self._agents:
            agent = self._agents[self._turn % len(self._agents)]
            self._turn += 1
            if (proposal := agent.propose(seen)) is not None:
                return proposal
        return None

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        for agent in self._agents:
            agent.learn(policy, objective)

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        for agent in self._agents:
            agent.recall(policy, objective)

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`; each agent has its own file next to this one."""
        for number, agent in enumerate(self._agents):
            agent.save(_beside(path, number), {})
        write_text(path, json.dumps({"turn": self._turn, "extra": extra}))

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        content = read_json(path)
        for number, agent in enumerate(self._agents):
            agent.load(_beside(path, number))
        with reading(path):
            self._turn = int(content["turn"])
            extra: dict[str, Any] = content["extra"]
        return extra


def make_sweep(kind: AgentKind, task: Task, metrics: Sequence[str]) -> tuple[Sweep, First]:
    """Returns agents for all budgets, and the first policy that each of them wants scored.

    Args:
        kind: The kind of agent.
        task: A task with the widest budget.
        metrics: The metrics to sweep.

    Raises:
        ConfigError: The kind returns the same agent each time; an agent given as an object has only one budget.
    """
    made = [kind.agent_for(replace(task, budget=budget)) for budget in swept_budgets(task.budget, metrics)]
    if len({id(agent) for agent, _ in made}) < len(made):
        raise ConfigError("a sweep needs an agent for each budget: give a function that makes one, not an agent")
    return Sweep([agent for agent, _ in made]), [proposal for _, first in made for proposal in first[:1]]


def swept_budgets(widest: Budget, metrics: Sequence[str]) -> list[Budget]:
    """Returns budgets from the widest down to slightly more than the smallest reachable cost, in equal ratios.

    Every level of one metric is combined with every level of the others; budgets that no policy meets are left out.

    Args:
        widest: The widest budget. A metric that it does not limit starts at the uniform 8-bit network's cost.
        metrics: Keys of `METRICS`.
    """
    count = _LEVELS.get(len(metrics), _FEWEST_LEVELS)
    levels = []
    for metric in metrics:
        least, most = widest.reachable(metric) * _SLACK, widest.limit(metric)
        levels.append([Constraint(metric, float(limit)) for limit in np.geomspace(max(most, least), least, count)])
    budgets = []
    for limits in itertools.product(*levels):
        try:
            budgets.append(widest.tightened(limits))
        except ConstraintError:
            continue
    return budgets or [widest]


def _beside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
