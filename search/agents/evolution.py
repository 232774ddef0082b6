"""The evolutionary baseline: pymoo's genetic algorithm over widths, with policies repaired to fit the budget."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem
from pymoo.termination.max_gen import MaximumGenerationTermination

from haq.policy import BitPolicy
from haq.search.agents.baselines import Random, Stateless
from haq.search.agents.lattice import Lattice
from haq.search.agents.protocol import AgentKind

if TYPE_CHECKING:
    from haq.search.agents.protocol import Agent, First
    from haq.search.agents.task import Task

__all__ = ["EVOLUTION", "Evolution"]

_POPULATION = 20
_MOVES = 2
_SMALLEST = 1e-6


class Evolution(Stateless):
    """A genetic algorithm with elitism: binary tournaments, uniform crossover, and one or two widths moved by a step.

    Each decision is one variable, the pair of widths of a layer or of tied layers. Policies from crossover and mutation
    are fitted to the budget by random steps. The policies of a generation are proposed one by one; while the last of
    them are being scored, random policies are proposed. Generations follow from the seed and the scores, so a restored
    agent repeats them.

    Args:
        lattice: Of the budget.
        seed: Of everything random.

    References:
        Blank and Deb: pymoo, Multi-Objective Optimization in Python, IEEE Access 8, 2020.
    """

    def __init__(self, lattice: Lattice, seed: int) -> None:
        self._lattice, self._random = lattice, Random(lattice, seed)
        self._scored: dict[BitPolicy, float] = {}
        rng = np.random.default_rng([seed, 6])
        self._problem = Problem(n_var=len(lattice.decisions), n_obj=1, xl=0, xu=lattice.counts - 1, vtype=int)
        self._algorithm = GA(
            pop_size=_POPULATION,
            sampling=IntegerRandomSampling(),
            crossover=UniformCrossover(),
            mutation=_Mutation(lattice, rng),
            repair=_ToBudget(lattice, rng),
            eliminate_duplicates=True,
        )
        self._algorithm.setup(self._problem, termination=MaximumGenerationTermination(math.inf), seed=seed)
        self._generation: Population | None = self._algorithm.ask()

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        while self._generation is not None:  # pymoo ends when it finds no new offspring
            policies = self._policies()
            if fresh := [policy for policy in policies if policy not in seen and policy not in self._scored]:
                return "evolution", fresh[0]
            if not all(policy in self._scored for policy in policies):
                break  # some are still being scored
            self._advance(policies)
        return self._random.propose(seen)

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        self._scored[policy] = -math.log(max(objective, _SMALLEST))

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        self.learn(policy, objective)

    def _policies(self) -> list[BitPolicy]:
        assert self._generation is not None
        return [self._lattice.policy(indices) for indices in self._generation.get("X").astype(np.intp)]

    def _advance(self, policies: list[BitPolicy]) -> None:
        losses = np.array([[self._scored[policy]] for policy in policies])
        Evaluator().eval(StaticProblem(self._problem, F=losses), self._generation)
        self._algorithm.tell(infills=self._generation)
        self._generation = self._algorithm.ask()


class _ToBudget(Repair):  # type: ignore[misc]  # pymoo has no types
    """Fits policies to the budget by random steps."""

    def __init__(self, lattice: Lattice, rng: np.random.Generator) -> None:
        super().__init__()
        self._lattice, self._rng = lattice, rng

    def _do(self, problem: Problem, X: npt.NDArray[Any], **kwargs: Any) -> npt.NDArray[Any]:
        lattice = self._lattice
        return np.array([lattice.indices(lattice.wandered(row.astype(np.intp), self._rng)) for row in X])


class _Mutation(Mutation):  # type: ignore[misc]
    """Moves a few widths by a step."""

    def __init__(self, lattice: Lattice, rng: np.random.Generator) -> None:
        super().__init__()
        self._lattice, self._rng = lattice, rng

    def _do(self, problem: Problem, X: npt.NDArray[Any], **kwargs: Any) -> npt.NDArray[Any]:
        return self._lattice.moved(X.astype(np.intp), _MOVES, self._rng)


def _evolution(task: Task) -> tuple[Agent, First]:
    return Evolution(Lattice(task.budget), task.seed), []


EVOLUTION = AgentKind(_evolution)
