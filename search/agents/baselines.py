"""What a search must beat: uniform widths, random policies, and the integer programme alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq.envs import Budget
from haq.io.files import write_text
from haq.policy import BitPolicy, LayerBits
from haq.search.agents.agent_state import read_json
from haq.search.agents.lattice import Lattice
from haq.search.agents.programme import Penalties, allocate
from haq.search.agents.protocol import AgentKind

if TYPE_CHECKING:
    from haq.search.agents.protocol import Agent, First
    from haq.search.agents.task import Task

__all__ = ["ILP", "RANDOM", "UNIFORM", "Listed", "Programme", "Random", "uniform_policies"]

_DRAWS = 400


def uniform_policies(budget: Budget) -> list[BitPolicy]:
    """Returns every policy with the same pair of widths in all free layers that fits, the widest first.

    Layers that may not have the pair get their nearest candidate.
    """

    def width(pair: LayerBits) -> tuple[int, int]:
        return (pair.w_bits or 0) + (pair.a_bits or 0), min(pair.w_bits or 0, pair.a_bits or 0)

    policies = dict.fromkeys(map(budget.uniform_of, sorted(budget.pairs, key=width, reverse=True)))
    return [policy for policy in policies if budget.allows(policy)]


class Stateless:
    """Base of agents whose proposals follow from their seed and from outcomes: `extra` is all there is to save."""

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`."""
        write_text(path, json.dumps(extra))

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        extra: dict[str, Any] = read_json(path)
        return extra


class Listed(Stateless):
    """Proposes the policies of a list and stops.

    Args:
        origin: Under which they are reported.
        policies: In this order.
    """

    def __init__(self, origin: str, policies: Sequence[BitPolicy]) -> None:
        self._origin, self._policies = origin, policies

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        return next(((self._origin, policy) for policy in self._policies if policy not in seen), None)


class Programme(Stateless):
    """Proposes the solutions of the integer programme, the next best one each time.

    Args:
        budget: Candidates, pinned layers, ties and limits.
        penalties: Of every free layer and candidate pair.
    """

    def __init__(self, budget: Budget, penalties: Penalties) -> None:
        self._budget, self._penalties = budget, penalties

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        policy = allocate(self._budget, self._penalties, seen)
        return ("programme", policy) if policy is not None and policy not in seen else None


class Random(Stateless):
    """Proposes random policies, fitted to the budget by random steps.

    Args:
        lattice: Of the budget.
        seed: Of the draws. The draws for the n-th proposal do not depend on earlier ones.
    """

    def __init__(self, lattice: Lattice, seed: int) -> None:
        self._lattice, self._seed = lattice, seed

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        drawn = (policy for policy in self._draws(len(seen)) if policy not in seen)
        policy = next(drawn, None)
        return ("random", policy) if policy is not None else None

    def _draws(self, number: int) -> Iterator[BitPolicy]:
        rng = np.random.default_rng([self._seed, 5, number])
        for draw in range(_DRAWS):
            spend = draw < _DRAWS // 2  # in small problems few policies spend the whole budget
            yield self._lattice.wandered(self._lattice.random(rng)[0], rng, spend)


def _uniform(task: Task) -> tuple[Agent, First]:
    return Listed("uniform", uniform_policies(task.budget)), []


def _random(task: Task) -> tuple[Agent, First]:
    return Random(Lattice(task.budget), task.seed), []


def _ilp(task: Task) -> tuple[Agent, First]:
    return Programme(task.budget, task.penalties), []


UNIFORM = AgentKind(_uniform, random=False)
RANDOM = AgentKind(_random)
ILP = AgentKind(_ilp, informed=True, random=False)
