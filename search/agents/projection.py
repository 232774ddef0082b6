"""Fitting policies to their budget both ways: lowering what costs least quality, then spending what is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haq.envs import Budget
from haq.policy import BitPolicy
from haq.search.agents.lattice import ROUNDING, Floats, Indices, Lattice
from haq.search.agents.programme import Penalties

__all__ = ["Projection"]

_SMALLEST = 1e-12


class Projection(Lattice):
    """Fits policies to the budget, one step of one width at a time, many policies at once.

    Over budget, it lowers the width with the least penalty for what the step saves. Under budget, it raises the width
    with the largest gain for what the step costs, among steps that fit. HAQ's sequential decrease (`Budget.decrease`)
    considers neither.

    Args:
        budget: Candidates, pinned layers and limits.
        penalties: Of every free layer and candidate pair.

    Attributes:
        penalties: `(F, pairs)`.
    """

    def __init__(self, budget: Budget, penalties: Penalties) -> None:
        super().__init__(budget)
        self.penalties = self.of_each(lambda layers, pair: sum(penalties[name][pair] for name in layers))

    def fit(self, indices: Indices, spend: bool = True) -> BitPolicy:
        """Returns a policy near the given one, `(F,)`, that meets every limit; see `fit_all`."""
        return self.settled(self.fit_all(indices[None], spend)[0], spend)

    def fit_all(self, indices: Indices, spend: bool = True) -> Indices:
        """Returns policies that meet every limit that is a sum over layers, with as little penalty as possible.

        Args:
            indices: Of the candidates, `(P, F)`.
            spend: Whether what is left of the budget is spent.
        """
        fitted = self._lower(indices.copy())
        return self._raise(fitted) if spend else fitted

    def _lower(self, current: Indices) -> Indices:
        busy = np.flatnonzero(self.over(current).any(axis=0))
        while len(busy):
            now = current[busy]
            moved = self.steps[0][:, self._rows, now]  # (fields, P, F)
            saved = np.einsum("lfpr,lp->fpr", self._difference(now, moved), self.over(now))
            lost = np.maximum(self.penalties[self._rows, moved] - self.penalties[self._rows, now], 0.0)
            rate = np.where(saved > 0, lost / np.where(saved > 0, saved, 1.0), np.inf)
            going = self._take(current, busy, moved, -rate)
            busy = going[self.over(current[going]).any(axis=0)]
        return current

    def _raise(self, current: Indices) -> Indices:
        busy = np.flatnonzero(~self.over(current).any(axis=0))
        while len(busy):
            now = current[busy]
            moved = self.steps[1][:, self._rows, now]
            added = -self._difference(now, moved)  # (limits, fields, P, F)
            totals = self.totals(now)[:, None, :, None] + added
            fits = (totals <= 1 + ROUNDING).all(axis=0) & (moved != now)
            gained = self.penalties[self._rows, now] - self.penalties[self._rows, moved]
            price = np.maximum(np.maximum(added, 0.0).sum(axis=0), _SMALLEST)
            busy = self._take(current, busy, moved, np.where(fits & (gained > 0), gained / price, -np.inf))
        return current

    def _difference(self, now: Indices, moved: Indices) -> Floats:
        """Returns what the moves save, `(limits, fields, P, F)`."""
        saved: Floats = self.costs[:, self._rows, now][:, None] - self.costs[:, self._rows, moved]
        return saved

    def _take(self, current: Indices, busy: Indices, moved: Indices, worth: Floats) -> Indices:
        """Makes the move of most worth in each policy; returns the numbers of the policies that had a move.

        Args:
            current: All policies, `(all, F)`; changed in place.
            busy: Numbers of the policies to move, `(P,)`.
            moved: Candidates after each move, `(fields, P, F)`.
            worth: Of each move; −inf where there is none.
        """
        flat = worth.transpose(1, 0, 2).reshape(len(busy), -1)
        best = flat.argmax(axis=1)
        going: npt.NDArray[np.bool_] = np.isfinite(flat[np.arange(len(busy)), best])
        fields, rows = np.divmod(best[going], len(self.decisions))
        chosen: Indices = busy[going]
        current[chosen, rows] = moved[fields, np.flatnonzero(going), rows]
        return chosen
