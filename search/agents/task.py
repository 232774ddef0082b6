"""Who proposes the policies of a search, and which ones are tried first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from haq.envs import BitAllocationEnv, Budget
from haq.layers import LayerSpec
from haq.policy import BitPolicy
from haq.scores import RankBy, Score
from haq.search.agents.baselines import Listed, Programme, Random, uniform_policies
from haq.search.agents.lattice import Lattice
from haq.search.agents.programme import Penalties, allocate
from haq.search.agents.projection import Projection
from haq.search.agents.protocol import Agent
from haq.search.sensitivity import Sensitivity

__all__ = ["AGENTS", "INFORMED", "SEEDLESS", "First", "Task", "make_agent", "penalties_of"]

First = Sequence[tuple[str, BitPolicy]]
"""Policies to score before the agent is asked, with their origin."""

_WARMUP_SHARE, _WARMUP_MOST = 0.25, 20  # HAQ: 20, of 600 episodes


@dataclass(frozen=True)
class Task:
    """What an agent may know.

    Attributes:
        layers: Of the network.
        budget: Candidates, pinned layers and limits.
        sensitivity: What each free layer loses at each width; `INFORMED` agents need it.
        float_score: Of the float network, on the validation images.
        rank_by: What objectives are made of.
        trials: Policies that will be scored in all.
        seed: Of everything random.
    """

    layers: Sequence[LayerSpec]
    budget: Budget
    sensitivity: Sensitivity | None
    float_score: Score
    rank_by: RankBy
    trials: int
    seed: int

    @cached_property
    def penalties(self) -> Penalties:
        """What each pair of widths costs in quality, by the measured sensitivities."""
        assert self.sensitivity is not None, "the agent's name is missing in INFORMED"
        return penalties_of(self.sensitivity, self.budget)

    @property
    def programme(self) -> First:
        """The solution of the integer programme."""
        solved = allocate(self.budget, self.penalties)
        return [("programme", solved)] if solved is not None else []

    @property
    def by_hand(self) -> First:
        """What anyone would try: the best uniform policy, and the widest one, fitted to the budget in two ways."""
        uniform = uniform_policies(self.budget)[:1]
        decreased = self.budget.decrease(self.budget.uniform(self.budget.bits[-1]))
        spent = self.budget.spend(decreased)
        return [*(("uniform", policy) for policy in uniform), ("decreased", decreased), ("spent", spent)]


def make_agent(name: str, task: Task) -> tuple[Agent, First]:
    """Returns an agent of `AGENTS`, and the policies to score before it is asked."""
    return AGENTS[name](task)


def _uniform(task: Task) -> tuple[Agent, First]:
    return Listed("uniform", uniform_policies(task.budget)), []


def _random(task: Task) -> tuple[Agent, First]:
    return Random(Lattice(task.budget), task.seed), []


def _evolution(task: Task) -> tuple[Agent, First]:
    from haq.search.agents.evolution import Evolution

    return Evolution(Lattice(task.budget), task.seed), []


def _ilp(task: Task) -> tuple[Agent, First]:
    return Programme(task.budget, task.penalties), []


def _predictor(task: Task) -> tuple[Agent, First]:
    from haq.search.agents.guided import Guide

    return Guide(Projection(task.budget, task.penalties), task.seed), [*task.programme, *task.by_hand]


def _haq(task: Task) -> tuple[Agent, First]:
    from haq.search.agents.ddpg import DDPGAgent
    from haq.search.agents.episode_agent import Walker

    env = BitAllocationEnv(task.layers, task.budget, float_score=task.float_score, rank_by=task.rank_by)
    warmup = min(int(_WARMUP_SHARE * task.trials), _WARMUP_MOST)
    return Walker(env, DDPGAgent(env, warmup, task.seed)), []


def _ddpg(task: Task) -> tuple[Agent, First]:
    from haq.search.agents.dreamer import Dreamer

    agent = Dreamer(Projection(task.budget, task.penalties), task.layers, task.seed)
    return agent, [*task.programme, *task.by_hand]


AGENTS: dict[str, Callable[[Task], tuple[Agent, First]]] = {
    "predictor": _predictor,
    "ddpg": _ddpg,
    "haq": _haq,
    "evolution": _evolution,
    "ilp": _ilp,
    "random": _random,
    "uniform": _uniform,
}
"""Name, as in `--agent`, → what makes it. A test holds the names of `haq.config` to be the same."""

INFORMED = {"predictor", "ddpg", "ilp"}
"""Agents that need sensitivities."""

SEEDLESS = {"ilp", "uniform"}
"""Agents that draw nothing at random."""


def penalties_of(sensitivity: Sensitivity, budget: Budget) -> Penalties:
    """Adds up what weights and activations lose, for every candidate pair of the layers that were measured."""
    weights, inputs = sensitivity.weight_costs, sensitivity.activation_costs
    column = {width: index for index, width in enumerate(sensitivity.widths)}

    def penalty(row: int, w_bits: int | None, a_bits: int | None) -> float:
        lost = weights[row, column[w_bits]] if w_bits is not None else 0.0
        lost += inputs[row, column[a_bits]] if inputs is not None and a_bits is not None else 0.0
        return max(float(lost), 0.0)

    return {
        name: {pair: penalty(row, pair.w_bits, pair.a_bits) for pair in budget.pairs}
        for row, name in enumerate(sensitivity.layers)
    }
