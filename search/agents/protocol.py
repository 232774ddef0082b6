"""The interface between a search and its agents, and how to add an agent.

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
from haq.io.user_code import guarded
from haq.policy import BitPolicy

if TYPE_CHECKING:
    from haq.envs import Budget
    from haq.search.agents.task import Task

__all__ = ["Agent", "AgentKind", "CheckedAgent", "First"]

First = Sequence[tuple[str, BitPolicy]]
"""Policies to score before the agent is asked, each with its origin."""


@runtime_checkable
class Agent(Protocol):
    """Proposes policies and learns from their outcomes.

    A search calls `propose`, scores the policy, and calls `learn`. With several workers these calls interleave, and an
    outcome may belong to a policy that the agent did not propose. After every trial the search calls `save`. A resumed
    search makes a new agent, calls `load`, then `recall` for each outcome that the saved state had already learnt, and
    `learn` for newer outcomes.
    """

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """Returns a policy inside the budget that is not in `seen`, with its origin, or `None` if it finds none."""
        ...

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """Learns from an outcome.

        Args:
            policy: Any policy that fits the budget; another agent may have proposed it.
            objective: Objective after calibration only, which all trials have; 0 for a failed trial. The gain from
                fine-tuning is not included, because ASHA gives trials different amounts of it.
        """
        ...

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """Receives an outcome that the loaded state has already learnt; saved states do not contain outcomes."""
        ...

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes the state without the outcomes, together with the caller's `extra`, as tensors and JSON."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Restores the state that `save` wrote, and returns `extra`."""
        ...


@dataclass(frozen=True)
class AgentKind:
    """How an agent is made, and what it needs; `haq.registry.AGENTS` contains these.

    Attributes:
        make: Returns an agent for a task, or the agent and the policies to score before it is asked.
        informed: Whether the agent reads `Task.penalties`; if so, the layers' sensitivities are measured first.
        random: Whether the agent draws anything at random, so that seeds matter.
    """

    make: Callable[[Task], Agent | tuple[Agent, First]]
    informed: bool = False
    random: bool = True

    @classmethod
    def of(cls, found: object, name: str) -> AgentKind:
        """Turns what a user gave into a kind of agent.

        Args:
            found: A kind, a function from a task to an agent, or an agent, which can then be used for one search.
            name: Name for messages.

        Raises:
            ConfigError: It is something else.
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
            ConfigError: `make` did not return an agent.
        """
        made = guarded("the agent's make", ConfigError, lambda: self.make(task))
        agent, first = made if isinstance(made, tuple) else (made, ())
        if not isinstance(agent, Agent):
            raise ConfigError(
                f"the agent's function returned {type(agent).__name__}, which lacks propose, learn, recall, save or "
                "load; see haq.search.agents.Agent"
            )
        return agent, first


class CheckedAgent:
    """Passes calls on to an agent of anyone's, and turns what it does wrong into one line.

    Args:
        agent: The agent.
        budget: What proposals must keep.
    """

    def __init__(self, agent: Agent, budget: Budget) -> None:
        self._agent, self._budget = agent, budget

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`; refuses what is no proposal, of other layers, against the rules, or outside the budget."""
        found: object = guarded("the agent's propose", ConfigError, lambda: self._agent.propose(seen))
        if found is None:
            return None
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], BitPolicy):
            raise ConfigError(f"the agent's propose returned {found!r:.100}; return (origin, BitPolicy) or None")
        origin, policy = found
        if odd := sorted(set(policy) ^ set(self._budget.table.layers)):
            raise ConfigError(f"the agent proposed a policy of other layers, such as {odd[0]!r}; {_BATTERY}")
        if (fault := self._budget.fault(policy)) is not None:
            raise ConfigError(f"the agent ({origin}) proposed {fault}; {_BATTERY}")
        if not self._budget.allows(policy):
            raise ConfigError(f"the agent ({origin}) proposed a policy outside the budget; {_BATTERY}")
        if policy in seen:
            raise ConfigError(f"the agent ({origin}) proposed a policy that was scored before; {_BATTERY}")
        return str(origin), policy

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        guarded("the agent's learn", ConfigError, lambda: self._agent.learn(policy, objective))

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`."""
        guarded("the agent's recall", ConfigError, lambda: self._agent.recall(policy, objective))

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`; a full disk is not the agent's fault."""
        self._agent.save(path, extra)

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        return self._agent.load(path)


_BATTERY = "haq.testing.check_agent finds such mistakes"
