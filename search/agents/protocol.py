"""What every agent is to a search."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from haq.policy import BitPolicy

__all__ = ["Agent"]


class Agent(Protocol):
    """Proposes policies and learns from what became of them."""

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """Returns a policy inside the budget that is not among `seen`, with its origin, or `None` if it finds none."""
        ...

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """Takes in an outcome.

        Args:
            policy: Any that fits the budget, whoever proposed it.
            objective: Of the score after calibration alone, which all trials have; 0 for a failed trial. What
                fine-tuning adds is not mixed in, because ASHA gives trials different amounts of it.
        """
        ...

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """Takes in what a state that was loaded had learnt already; outcomes are so many that states leave them out."""
        ...

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes the state, but for outcomes that `recall` is told of, and the caller's `extra`: tensors and JSON."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Restores what `save` wrote, and returns `extra`."""
        ...
