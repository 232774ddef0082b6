"""A problem small enough to enumerate, on which every agent must do its work."""

from __future__ import annotations

import itertools

import numpy as np

from haq.constraints import Constraint
from haq.envs import Budget
from haq.policy import BitPolicy
from haq.scores import Score
from haq.search.agents.task import Task, penalties_of
from haq.search.sensitivity import Sensitivity

from ..envs.conftest import make_layers, make_table

WIDTHS = (2, 3, 4, 8)


class Toy:
    """A few layers whose weights have four widths; layers hurt each other, which no sum of penalties knows.

    Args:
        seed: Of how sensitive the layers are.
        trials: That an agent is told.
        layers: How many there are.
    """

    def __init__(self, seed: int, trials: int = 60, layers: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.layers = make_layers(layers)
        limits = [Constraint("size", 0.45, relative=True)]
        self.budget = Budget(make_table(layers, WIDTHS), limits, WIDTHS, {}, a_bits=(8,))
        rates = rng.uniform(0.2, 2.0, (layers, 1))
        lost = rates * 4.0 ** -(np.array(WIDTHS, float) - 2)
        names = tuple(layer.name for layer in self.layers)
        sensitivity = Sensitivity("kl", names, WIDTHS, lost, np.zeros_like(lost))
        self.penalties = penalties_of(sensitivity, self.budget)
        self._together = np.triu(rng.uniform(0.0, 3.0, (layers, layers)), 1)
        self.task = Task(self.layers, self.budget, sensitivity, Score(1.0, 0.01, 1, 0.0, "float"), "loss", trials, seed)

    def objective(self, policy: BitPolicy) -> float:
        parts = np.array([self.penalties[name][bits] for name, bits in policy.items()])
        return float(np.exp(-(parts.sum() + parts @ self._together @ parts)))

    def optimum(self) -> tuple[float, int]:
        """Returns the best objective inside the budget, and the number of all policies."""
        every = [
            BitPolicy(dict(zip(self.budget.table.layers, pairs, strict=True)))
            for pairs in itertools.product(self.budget.pairs, repeat=len(self.layers))
        ]
        return max(self.objective(policy) for policy in every if self.budget.allows(policy)), len(every)
