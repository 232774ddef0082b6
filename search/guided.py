"""Proposals near the best policies, screened by a regression on everything that was scored."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import BayesianRidge

from haq.files import replacing
from haq.policy import BitPolicy
from haq.search.projection import Floats, Indices, Projection

__all__ = ["Guide"]

_CANDIDATES = 48
_PARENTS = 4
_MOST_MOVES = 8
_CAUTION = 0.5  # standard deviations below the prediction that a candidate may hope for
_SMALLEST = 1e-6


class Guide:
    """Chooses the next policy to score.

    The sum of the layers' penalties says how a policy should do; a Bayesian ridge regression learns by what factor the
    layers' shares of it mislead: log(loss) − log(Σ penalty) over the penalties of each layer. Candidates are the best
    policies so far with a few widths moved, fitted to the budget again. The one with the lowest plausible loss is
    proposed: prediction less a share of its standard deviation.

    Args:
        projection: Onto the budget.
        seed: Of the moves.

    References:
        MacKay: Bayesian Interpolation, Neural Computation 4(3), 1992, for the regression.
    """

    def __init__(self, projection: Projection, seed: int) -> None:
        self.projection = projection
        self._rng = np.random.default_rng([seed, 3])
        self._scored: dict[bytes, tuple[Indices, float]] = {}

    def learn(self, policy: BitPolicy, objective: float, quick: float) -> None:
        """See `Agent`; only the score after calibration counts, because all policies have it."""
        indices = self.projection.indices(policy)
        self._scored[indices.tobytes()] = indices, max(-math.log(max(quick, _SMALLEST)), _SMALLEST)

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        parents = sorted(self._scored.values(), key=lambda scored: scored[1])[:_PARENTS]
        if not parents:
            return None
        candidates = self._candidates(parents, seen)
        if not candidates:
            return None
        hopes = self._hopes(np.array(list(candidates.values())))
        return "guided", list(candidates)[int(np.argmin(hopes))]

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`."""
        rest = {
            "scored": [[indices.tolist(), loss] for indices, loss in self._scored.values()],
            "random": self._rng.bit_generator.state,
            "extra": extra,
        }
        with replacing(path) as temporary:
            torch.save({"rest": json.dumps(rest)}, temporary)

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        rest = json.loads(torch.load(path, map_location="cpu", weights_only=True)["rest"])
        scored = [(np.array(indices, np.intp), float(loss)) for indices, loss in rest["scored"]]
        self._scored = {indices.tobytes(): (indices, loss) for indices, loss in scored}
        self._rng.bit_generator.state = rest["random"]
        extra: dict[str, Any] = rest["extra"]
        return extra

    def _candidates(
        self, parents: Sequence[tuple[Indices, float]], seen: Collection[BitPolicy]
    ) -> dict[BitPolicy, Indices]:
        """Neighbours of the best policies; where all were seen, random ones, at last without spending what is left."""

        def neighbour() -> BitPolicy:
            place = min(int(self._rng.exponential(1.0)), len(parents) - 1)
            return self.projection.fit(self._moved(parents[place][0]))

        for draw in (
            neighbour,
            lambda: self.projection.fit(self.projection.random(self._rng)),
            lambda: self.projection.fit(self.projection.random(self._rng), spend=False),
        ):
            drawn = dict.fromkeys(draw() for _ in range(_CANDIDATES))
            if fresh := [policy for policy in drawn if policy not in seen]:
                return {policy: self.projection.indices(policy) for policy in fresh}
        return {}

    def _moved(self, parent: Indices) -> Indices:
        """Moves a few widths of random layers by one candidate."""
        moved = parent.copy()
        for _ in range(int(self._rng.integers(1, _MOST_MOVES + 1))):
            row = int(self._rng.integers(len(moved)))
            moved[row] = self.projection.random_step(int(moved[row]), self._rng)
        return moved

    def _hopes(self, candidates: Indices) -> Floats:
        indices = np.array([indices for indices, _ in self._scored.values()])
        losses = np.log([loss for _, loss in self._scored.values()])
        x, prior = self._features(indices)
        model = BayesianRidge().fit(x, losses - prior)
        x, prior = self._features(candidates)
        mean, deviation = model.predict(x, return_std=True)
        hopes: npt.NDArray[np.float64] = prior + mean - _CAUTION * deviation
        return hopes

    def _features(self, indices: Indices) -> tuple[Floats, Floats]:
        """Returns each layer's penalty in units of the mean over layers, `(P, F)`, and log of the sum, `(P,)`."""
        penalties = self.projection.penalties[np.arange(indices.shape[1]), indices]
        total = penalties.sum(axis=1) + _SMALLEST
        return np.sqrt(penalties / self.projection.penalties.mean()), np.log(total)
