"""Policies as rows of integers: the candidate pair of each decision, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from haq.envs import Budget
from haq.envs.candidates import Field
from haq.policy import BitPolicy, LayerBits

__all__ = ["Floats", "Indices", "Lattice"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

ROUNDING = 1e-9
"""How far a sum of costs, in units of its limit, may exceed it."""


class Lattice:
    """The candidates of a budget; P policies with F decisions are `(P, F)` indices of pairs.

    Most decisions are of one free layer, some of several that are tied. Where decisions have different numbers of
    candidates, the arrays repeat the last one of those that have fewer; no index leads there.

    Args:
        budget: Candidates, pinned layers, ties and limits.

    Attributes:
        decisions: Names of the layers of each decision.
        pairs: Candidates of each decision.
        counts: How many these are, `(F,)`.
        costs: `(limits, F, pairs)`, in units of each limit. A limit on working memory is left out: it is no sum over
            layers.
        steps: `(down or up, fields, F, pairs)`: the pair with the next width of a field, or the same one at the end.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, table = budget, budget.table
        self.decisions = budget.decisions
        self.pairs = [budget.candidates(layers[0]) for layers in self.decisions]
        self.counts: Indices = np.array([len(pairs) for pairs in self.pairs], np.intp)
        self._position = {
            layers: {pair: index for index, pair in enumerate(pairs)}
            for layers, pairs in zip(self.decisions, self.pairs, strict=True)
        }
        self._rows = np.arange(len(self.decisions))
        limits = [limit for limit in budget.constraints if limit.field in table.additive]
        fixed = budget.uniform(budget.bits[0])
        self.costs: Floats = np.zeros((len(limits), len(self.decisions), max(self.counts, default=0)))
        self._spent: Floats = np.zeros(len(limits))
        for row, limit in enumerate(limits):
            field = limit.field
            cells = self.of_each(partial(budget.cost, field=field))
            free = sum(budget.cost(layers, fixed[layers[0]], field) for layers in self.decisions)
            self.costs[row] = cells / limit.limit
            self._spent[row] = (table.cost(fixed)[field] - free) / limit.limit
        self.steps: Indices = np.array(
            [[self.of_each(partial(self._moved_to, field, up)) for field in budget.fields] for up in (False, True)],
            np.intp,
        )

    def of_each(self, value: Callable[[tuple[str, ...], LayerBits], float]) -> Floats:
        """Returns a value of every decision and candidate, `(F, pairs)`.

        Args:
            value: Gives it for the layers of a decision and a pair.
        """
        most = max(self.counts, default=0)
        rows = [
            [value(layers, pair) for pair in (*pairs, *pairs[-1:] * (most - len(pairs)))]
            for layers, pairs in zip(self.decisions, self.pairs, strict=True)
        ]
        return np.array(rows, np.float64).reshape(len(rows), most)

    def _moved_to(self, field: Field, up: bool, layers: tuple[str, ...], pair: LayerBits) -> int:
        return self._position[layers][self.budget.step(layers[0], pair, field, up) or pair]

    def indices(self, policy: BitPolicy) -> Indices:
        """Returns the number of each decision's candidate, `(F,)`."""
        return np.array([self._position[layers][policy[layers[0]]] for layers in self.decisions], np.intp)

    def policy(self, indices: Indices) -> BitPolicy:
        """Returns the policy with these pairs, `(F,)`, in the free layers."""
        chosen: dict[str, LayerBits] = {}
        for tied, pairs, index in zip(self.decisions, self.pairs, indices, strict=True):
            chosen |= dict.fromkeys(tied, pairs[index])
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
        return rng.integers(self.counts, size=(count, len(self.decisions))).astype(np.intp)

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
                policy[row] = self.steps[up, field, row, policy[row]]
        return moved

    def wandered(self, indices: Indices, rng: np.random.Generator, spend: bool = True) -> BitPolicy:
        """Fits a policy to the budget by random steps down, then random steps up.

        Args:
            indices: Of the candidates, `(F,)`.
            rng: Draws the steps.
            spend: Whether what is left of the budget is spent.
        """
        current = indices[None].copy()
        fields, count = self.steps.shape[1], len(self.decisions)
        while self.over(current).any():
            lower = self.steps[0][:, self._rows, current[0]]
            movable = np.argwhere(lower != current[0])
            if not len(movable):
                break
            field, row = movable[rng.integers(len(movable))]
            current[0, row] = lower[field, row]
        raised = spend
        while raised:
            raised = False
            for step in rng.permutation(fields * count):
                tried = current.copy()
                field, row = divmod(int(step), count)
                tried[0, row] = self.steps[1, field, row, current[0, row]]
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
