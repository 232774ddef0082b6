"""Policies as rows of integers: the candidate pair of each free layer, and what it costs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haq.envs import Budget
from haq.policy import BitPolicy

__all__ = ["Floats", "Indices", "Lattice"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

ROUNDING = 1e-9
"""How far a sum of costs, in units of its limit, may exceed it."""


class Lattice:
    """The candidates of a budget; P policies of F free layers are `(P, F)` indices of pairs.

    Args:
        budget: Candidates, pinned layers and limits.

    Attributes:
        free: Layers whose widths are chosen.
        pairs: Candidates of each.
        costs: `(limits, F, pairs)`, in units of each limit. A limit on working memory is left out: it is no sum over
            layers.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, table = budget, budget.table
        self.free = [name for name in table.layers if name not in budget.pinned]
        self.pairs = list(budget.pairs)
        limits = [limit for limit in budget.constraints if limit.field in table.additive]
        fixed = budget.uniform(budget.bits[0])
        shape = (len(limits), len(self.free), len(self.pairs))
        self.costs: Floats = np.zeros(shape)
        self._spent: Floats = np.zeros(len(limits))
        for row, limit in enumerate(limits):
            cells = [[table.layer_cost(name, pair, limit.field) for pair in self.pairs] for name in self.free]
            free = sum(table.layer_cost(name, fixed[name], limit.field) for name in self.free)
            self.costs[row] = np.array(cells) / limit.limit
            self._spent[row] = (table.cost(fixed)[limit.field] - free) / limit.limit
        self._position = {pair: index for index, pair in enumerate(self.pairs)}
        self._rows = np.arange(len(self.free))
        self.steps: npt.NDArray[np.intp] = np.array(
            [
                [
                    [
                        self._position.get(budget.step(pair, field, up) or pair, index)
                        for index, pair in enumerate(self.pairs)
                    ]
                    for field in budget.fields
                ]
                for up in (False, True)
            ],
            np.intp,
        )  # (down or up, fields, pairs): the pair with the next width of a field, or the same one at the end

    def indices(self, policy: BitPolicy) -> Indices:
        """Returns the number of each free layer's candidate, `(F,)`."""
        return np.array([self._position[policy[name]] for name in self.free], np.intp)

    def policy(self, indices: Indices) -> BitPolicy:
        """Returns the policy with these pairs, `(F,)`, in the free layers."""
        chosen = {name: self.pairs[index] for name, index in zip(self.free, indices, strict=True)}
        layers = {name: chosen.get(name) or self.budget.pinned[name] for name in self.budget.table.layers}
        return BitPolicy(layers, self.budget.scheme)

    def totals(self, indices: Indices) -> Floats:
        """Returns what policies cost, `(limits, P)`, in units of the limits."""
        totals: Floats = self._spent[:, None] + self.costs[:, self._rows, indices].sum(axis=-1)
        return totals

    def over(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Returns whether policies exceed each limit, `(limits, P)`."""
        return self.totals(indices) > 1 + ROUNDING

    def random(self, rng: np.random.Generator, count: int = 1) -> Indices:
        """Returns random candidates, `(count, F)`, whatever they cost."""
        return rng.integers(len(self.pairs), size=(count, len(self.free))).astype(np.intp)

    def moved(self, indices: Indices, most: int, rng: np.random.Generator) -> Indices:
        """Returns policies with 1 to `most` widths moved by a step, down or up.

        Args:
            indices: Of the candidates, `(P, F)`.
            most: Moves of a policy at most; a width may be moved twice.
            rng: Draws how many moves, and which.
        """
        moved = indices.copy()
        for policy in moved:
            for _ in range(int(rng.integers(1, most + 1))):
                up, field = rng.integers(2), rng.integers(self.steps.shape[1])
                row = rng.integers(len(policy))
                policy[row] = self.steps[up, field, policy[row]]
        return moved

    def wandered(self, indices: Indices, rng: np.random.Generator, spend: bool = True) -> BitPolicy:
        """Fits a policy to the budget by random steps down, then random steps up.

        Args:
            indices: Of the candidates, `(F,)`.
            rng: Draws the steps.
            spend: Whether what is left of the budget is spent.
        """
        current = indices[None].copy()
        fields, free = self.steps.shape[1], len(self.free)
        while self.over(current).any():
            lower = self.steps[0][:, current[0]]
            movable = np.argwhere(lower != current[0])
            if not len(movable):
                break
            field, row = movable[rng.integers(len(movable))]
            current[0, row] = lower[field, row]
        raised = spend
        while raised:
            raised = False
            for step in rng.permutation(fields * free):
                tried = current.copy()
                field, row = divmod(int(step), free)
                tried[0, row] = self.steps[1, field, current[0, row]]
                if tried[0, row] != current[0, row] and not self.over(tried).any():
                    current, raised = tried, True
        return self.settled(current[0], spend)

    def settled(self, indices: Indices, spend: bool = False) -> BitPolicy:
        """Returns the policy; HAQ's sequential decrease fits it to limits that are no sums over layers.

        Args:
            indices: Of the candidates, `(F,)`.
            spend: Whether what the decrease leaves of the budget is spent.
        """
        policy = self.policy(indices)
        if self.budget.allows(policy):
            return policy
        policy = self.budget.decrease(policy)
        return self.budget.spend(policy) if spend else policy
