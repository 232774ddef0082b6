"""Proposals near the best policies, ranked by a prediction that is fitted to all scores so far."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq.io.files import write_text
from haq.policy import BitPolicy
from haq.search.agents.agent_state import read_json, reading
from haq.search.agents.lattice import Indices
from haq.search.agents.predictor import Predictor
from haq.search.agents.projection import Projection
from haq.search.agents.protocol import AgentKind

if TYPE_CHECKING:
    from haq.search.agents.protocol import Agent, First
    from haq.search.agents.task import Task

__all__ = ["PREDICTOR", "Guide"]

_PARENTS = 4
_CANDIDATES, _SURVIVORS = 48, 8
_GENERATIONS = (1, 1, 3)  # in turn; the prediction misleads if it is trusted far from scored policies
_MOST_MOVES = 8
_SMALLEST = 1e-6


class Guide:
    """Chooses the next policy to score.

    Candidates are the best policies so far with a few widths moved, fitted to the budget again. In every third proposal
    the most promising ones are moved two more times. The candidate with the lowest plausible loss is proposed; see
    `Predictor`.

    Args:
        projection: Onto the budget.
        seed: Of the moves.
    """

    def __init__(self, projection: Projection, seed: int) -> None:
        self.projection = projection
        self._rng = np.random.default_rng([seed, 3])
        self._scored: dict[bytes, tuple[Indices, float]] = {}

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        indices = self.projection.indices(policy)
        self._scored[indices.tobytes()] = indices, max(-math.log(max(objective, _SMALLEST)), _SMALLEST)

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        self.learn(policy, objective)

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`."""
        if not self._scored:
            return None
        for origin, indices in self._candidates():
            if self.projection.policy(indices) in seen:
                continue  # scored, so no need to settle it; late in a search most candidates are
            policy = self.projection.settled(indices)
            if policy not in seen:
                return origin, policy
        return None

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`."""
        write_text(path, json.dumps(self._state() | {"extra": extra}))

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        content = read_json(path)
        with reading(path):
            self._restore(content)
            extra: dict[str, Any] = content["extra"]
        return extra

    def _state(self) -> dict[str, Any]:
        return {"random": self._rng.bit_generator.state}

    def _restore(self, content: dict[str, Any]) -> None:
        self._rng.bit_generator.state = content["random"]

    def _candidates(self) -> Iterator[tuple[str, Indices]]:
        """Yields policies, the most promising first, then random ones, the last of them without spending the rest."""
        predictor, parents = self._predictor(), self._parents()
        inspired = self.inspired(parents[0], predictor)
        known = {policy.tobytes() for policy in inspired}
        for indices in self._neighbours(parents, inspired, predictor):
            yield "agent" if indices.tobytes() in known else "guided", indices
        for spend in (True, False):
            for indices in self.projection.fit_all(self.projection.random(self._rng, _CANDIDATES), spend):
                yield "random", indices

    def _parents(self) -> Indices:
        """Returns the best policies that fit the budget, or the best of all if none fits yet, `(P, F)`."""
        ordered = np.array([indices for indices, _ in sorted(self._scored.values(), key=lambda scored: scored[1])])
        fitting = ordered[~self.projection.over(ordered).any(axis=0)]
        return (fitting if len(fitting) else ordered)[:_PARENTS]

    def inspired(self, base: Indices, predictor: Predictor) -> Indices:
        """Returns further candidates, `(P, F)`, fitted to the budget; subclasses have some, the guide has none."""
        return base[None][:0]

    def _predictor(self) -> Predictor:
        indices, losses = zip(*self._scored.values(), strict=True)
        return Predictor(self.projection, np.array(indices), losses)

    def _neighbours(self, parents: Indices, pool: Indices, predictor: Predictor) -> Indices:
        """Returns policies that were not scored, the one with the lowest hope first, `(P, F)`; see `Predictor.hope`."""
        for _ in range(_GENERATIONS[len(self._scored) % len(_GENERATIONS)]):
            # The best parent is taken most often
            chosen = np.minimum(self._rng.exponential(1.0, _CANDIDATES).astype(np.intp), len(parents) - 1)
            moved = self.projection.moved(parents[chosen], _MOST_MOVES, self._rng)
            pool = self._fresh(np.concatenate([pool, self.projection.fit_all(moved)]))
            if not len(pool):
                return pool
            order = np.argsort(predictor.hope(pool), kind="stable")
            pool, parents = pool[order], pool[order[:_SURVIVORS]]
        return pool

    def _fresh(self, indices: Indices) -> Indices:
        """Returns the policies without scored ones and without duplicates."""
        distinct = {policy.tobytes(): row for row, policy in enumerate(indices)}
        return indices[[row for key, row in distinct.items() if key not in self._scored]]


def _predictor(task: Task) -> tuple[Agent, First]:
    return Guide(Projection(task.budget, task.penalties), task.seed), [*task.programme, *task.by_hand]


PREDICTOR = AgentKind(_predictor, informed=True)
