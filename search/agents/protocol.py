"""What every agent is to a search, and how one is added.

from haq.registry import AGENTS
from haq.search.agents import AgentKind

AGENTS.register("mine", AgentKind(lambda task: MyAgent(task.budget, task.seed)))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from haq.errors import ConfigError
from haq.policy import BitPolicy

if TYPE_CHECKING:
    from haq.search.agents.task import Task

__all__ = ["Agent", "AgentKind", "First"]

First = Sequence[tuple[str, BitPolicy]]
"""Policies to score before the agent is asked, with their origin."""


@runtime_checkable
class Agent(Protocol):
    """Proposes policies and learns from what became of them.

    A search calls `propose`, scores the policy, and calls `learn`; with several workers these interleave, and an
    outcome may be of a policy that somebody else proposed. After every trial it calls `save`. A search that is resumed
    makes the agent anew, calls `load`, then `recall` for each outcome that the state had learnt and `learn` for those
    that are newer.
    """

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
        """Takes in an outcome that the loaded state had learnt already; states leave the many outcomes out."""
        ...

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes the state without the outcomes, and the caller's `extra`, as tensors and JSON."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Restores what `save` wrote, and returns `extra`."""
        ...


@dataclass(frozen=True)
class AgentKind:
    """How an agent is made, and what it needs: what `haq.registry.AGENTS` holds.

    Attributes:
        make: Returns an agent for a task, or the agent and the policies to score before it is asked.
        informed: Whether it reads `Task.penalties`, for which the layers' sensitivities are measured first.
        random: Whether it draws anything at random, so that seeds matter.
    """

    make: Callable[[Task], Agent | tuple[Agent, First]]
    informed: bool = False
    random: bool = True

    @classmethod
    def of(cls, found: object, name: str) -> AgentKind:
        """Returns what a user gave as a kind of agent.

        Args:
            found: A kind, a function from a task to an agent, or an agent, which then serves one search.
            name: For messages.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(found, AgentKind):
            return found
        if isinstance(found, Agent) and not isinstance(found, type):
            return cls(lambda task: found)
        if callable(found):
            return cls(found, informed=True)
        raise ConfigError(
            f"agent {name!r} is {type(found).__name__}; give a haq.search.agents.AgentKind, a function from a Task to "
            "an agent, or an agent with propose, learn, recall, save and load"
        )

    def agent_for(self, task: Task) -> tuple[Agent, First]:
        """Returns an agent for a task, and the policies to score before it is asked.

        Raises:
            ConfigError: What `make` returns is no agent.
        """
        made = self.make(task)
        agent, first = made if isinstance(made, tuple) else (made, ())
        if not isinstance(agent, Agent):
            raise ConfigError(
                f"the agent's function returned {type(agent).__name__}, which lacks propose, learn, recall, save or "
                "load; see haq.search.agents.Agent"
            )
        return agent, first
