"""Fitting a policy to its budget both ways: lowering what costs least quality, then spending what is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haq.envs import Budget
from haq.policy import BitPolicy
from haq.search.programme import Penalties

__all__ = ["Projection"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_ROUNDING = 1e-9


class Projection:
    """Moves policies onto the budget, one candidate width of one layer at a time.

    Over budget, the width is lowered that costs least penalty for what it saves; under budget, the one is raised that
    gains most for what it costs and still fits. HAQ's sequential decrease (`Budget.decrease`) asks neither.

    Args:
        budget: Candidates, pinned layers and limits.
        penalties: Of every free layer and candidate pair.
    """

    def __init__(self, budget: Budget, penalties: Penalties) -> None:
        self.budget = budget
        self.free = [name for name in budget.table.layers if name not in budget.pinned]
        self.pairs = list(budget.pairs)
        self.penalties: Floats = np.array([[penalties[name][pair] for pair in self.pairs] for name in self.free])
        limits = [limit for limit in budget.constraints if limit.field in budget.table.metrics]
        base = budget.uniform(budget.bits[0])
        costs, spent = [], []
        for limit in limits:
            cells = [[budget.table.layer_cost(n, pair, limit.field) for pair in self.pairs] for n in self.free]
            rest = budget.table.cost(base)[limit.field] - sum(
                budget.table.layer_cost(name, base[name], limit.field) for name in self.free
            )
            costs.append(np.array(cells) / limit.limit)
            spent.append(rest / limit.limit)
        shape = (0, len(self.free), len(self.pairs))
        self._costs: Floats = np.array(costs) if costs else np.zeros(shape)
        self._spent: Floats = np.array(spent)
        position = {pair: index for index, pair in enumerate(self.pairs)}
        self._steps = {
            up: np.array(
                [
                    [position.get(budget.step(pair, field, up) or pair, index) for index, pair in enumerate(self.pairs)]
                    for field in budget.fields
                ],
                np.intp,
            )
            for up in (False, True)
        }

    def indices(self, policy: BitPolicy) -> Indices:
        """Returns which candidate pair each free layer has, `(F,)`."""
        position = {pair: index for index, pair in enumerate(self.pairs)}
        return np.array([position[policy[name]] for name in self.free], np.intp)

    def policy(self, indices: Indices) -> BitPolicy:
        """Returns the policy with these pairs in the free layers."""
        chosen = {name: self.pairs[index] for name, index in zip(self.free, indices, strict=True)}
        layers = {name: chosen.get(name) or self.budget.pinned[name] for name in self.budget.table.layers}
        return BitPolicy(layers, self.budget.scheme)

    def random_step(self, index: int, rng: np.random.Generator) -> int:
        """Returns a candidate with one width a step up or down."""
        up, field = bool(rng.integers(2)), int(rng.integers(len(self.budget.fields)))
        return int(self._steps[up][field, index])

    def random(self, rng: np.random.Generator) -> Indices:
        """Returns any candidate for each layer."""
        return rng.integers(len(self.pairs), size=len(self.free)).astype(np.intp)

    def fit(self, indices: Indices, spend: bool = True) -> BitPolicy:
        """Returns a policy that meets every limit, near the one given and with as little penalty as it can.

        Args:
            indices: Of the candidates, `(F,)`.
            spend: Whether what is left of the budget is spent.
        """
        current = self._lower(indices.copy())
        current = self._raise(current) if spend else current
        policy = self.policy(current)
        return policy if self.budget.allows(policy) else self.budget.decrease(policy)

    def _lower(self, current: Indices) -> Indices:
        rows = np.arange(len(current))
        totals = self._totals(current)
        while (totals > 1 + _ROUNDING).any():
            over = totals > 1 + _ROUNDING
            moved = self._steps[False][:, current]  # (fields, F)
            saved = (self._costs[:, rows, current][:, None] - self._costs[:, rows, moved])[over].sum(axis=0)
            lost = self.penalties[rows, moved] - self.penalties[rows, current]
            rate = np.where(saved > 0, np.maximum(lost, 0.0) / np.where(saved > 0, saved, 1.0), np.inf)
            if not np.isfinite(rate).any():
                break
            field, row = np.unravel_index(rate.argmin(), rate.shape)
            current[row] = moved[field, row]
            totals = self._totals(current)
        return current

    def _raise(self, current: Indices) -> Indices:
        rows = np.arange(len(current))
        while True:
            totals = self._totals(current)
            moved = self._steps[True][:, current]
            added = self._costs[:, rows, moved] - self._costs[:, rows, current][:, None]
            fits = (totals[:, None, None] + added <= 1 + _ROUNDING).all(axis=0) & (moved != current)
            gained = np.where(fits, self.penalties[rows, current] - self.penalties[rows, moved], 0.0)
            if gained.max(initial=0.0) <= 0:
                return current
            price = np.maximum(added, 0.0).sum(axis=0)
            rate = np.where(gained > 0, gained / np.maximum(price, 1e-12), -np.inf)
            field, row = np.unravel_index(rate.argmax(), rate.shape)
            current[row] = moved[field, row]

    def _totals(self, current: Indices) -> Floats:
        totals: Floats = self._spent + self._costs[:, np.arange(len(current)), current].sum(axis=1)
        return totals
