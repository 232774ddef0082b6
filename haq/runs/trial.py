"""A policy that was scored, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from haq.errors import ConfigError
from haq.io.validation import restored
from haq.policy import BitPolicy
from haq.scores import RankBy, Score

__all__ = ["Cost", "Trial", "finite", "ranked_by"]

Cost = Mapping[str, float | None]
"""Metric field, such as `latency_ms`, to value; `None` if the hardware cannot run the network at its widths."""


@dataclass(frozen=True)
class Trial:
    """One policy that was scored, a line of `trials.jsonl`.

    Attributes:
        number: 1 for the first trial proposed.
        policy: What was scored.
        origin: Who proposed it: `programme` (the integer programme), `uniform`, `decreased` (the widest widths, fitted
            to the budget), `spent` (the same, with the rest of the budget spent), `guided`, `evolution`, `random` or
            `agent`.
        cost: As the cost table prices it.
        scores: On the validation images: first after calibration, then after each chunk of fine-tuning it earned.
            Empty when the trial failed.
        objective: Ranks the trial, 0 to 1: the objective of its last score, see `Score.objective`; 0 if it failed.
        elapsed_s: Seconds from the start of the search to the trial's end.
        error: Why the trial failed, or `None`.
    """

    number: int
    policy: BitPolicy
    origin: str
    cost: Cost
    scores: tuple[Score, ...]
    objective: float
    elapsed_s: float
    error: str | None = None

    @property
    def score(self) -> Score | None:
        """The last and best-trained score, or `None` for a failed trial."""
        return self.scores[-1] if self.scores else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {
            "number": self.number,
            "origin": self.origin,
            "objective": self.objective,
            "cost": dict(self.cost),
            "scores": [score.to_dict() for score in self.scores],
            "elapsed_s": self.elapsed_s,
            "error": self.error,
            "policy": self.policy.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trial:
        """Restores a trial from the result of `to_dict`."""
        scores = tuple(Score.from_dict(score) for score in data["scores"])
        policy, cost = BitPolicy.from_dict(data["policy"]), finite(data["cost"])
        finite({key: data[key] for key in ("objective", "elapsed_s")})
        return restored(cls, {**data, "policy": policy, "scores": scores, "cost": cost})


def ranked_by(trials: Iterable[Trial]) -> RankBy | None:
    """Finds out which score the objectives of trials were computed from; `None` if no trial tells.

    An older release may have chosen another score for the same search, and objectives of two kinds are not comparable.
    """
    known = [(trial.objective, trial.score) for trial in trials if trial.error is None and trial.score is not None]
    kinds: tuple[RankBy, ...] = ("kl", "loss", "top1")
    for kind in kinds:
        able = [(objective, score) for objective, score in known if kind != "kl" or score.kl is not None]
        if any(objective == score.objective(kind) > 0 for objective, score in able):
            return kind
    return None


def finite(cost: Any) -> Any:
    """Returns the cost; raises `ConfigError` if one of its values is not finite."""
    for field, value in cost.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{field}={value}: must be finite")
    return cost
