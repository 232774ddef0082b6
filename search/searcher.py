"""The glue between the agent and Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from haq.envs import BitAllocationEnv
from haq.policy import BitPolicy
from haq.search.agent import DDPGAgent

__all__ = ["METRIC", "BitSearcher", "Proposal"]

METRIC = "objective"
_AGENT_DRAWS, _RANDOM_DRAWS = 10, 100  # how often a proposal that was made before is drawn again


@dataclass(frozen=True)
class Proposal:
    """A policy to score.

    Attributes:
        number: 1 for the first one.
        origin: Who proposed it; see `haq.runs.Trial`.
        policy: Fits the budget.
    """

    number: int
    origin: str
    policy: BitPolicy


class BitSearcher(Searcher):
    """Lets the agent walk the environment for every trial, and learn from the trial's outcome.

    Tune calls `suggest`, runs the trial, and then calls `on_trial_complete`; with several workers these interleave.
    No policy is proposed twice.

    Args:
        env: Walked once for a proposal; it scores nothing itself.
        agent: Chooses actions and learns.
        first: Policies to propose before the agent is asked, with their origin.
        finished: Called after every trial with its proposal and its last result (`None` when its worker died).
    """

    def __init__(
        self,
        env: BitAllocationEnv,
        agent: DDPGAgent,
        first: Sequence[tuple[str, BitPolicy]] = (),
        finished: Callable[[Proposal, dict[str, Any] | None], None] | None = None,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._env, self._agent, self._first, self._finished = env, agent, list(first), finished
        self._seen: dict[BitPolicy, int] = {}
        self._running: dict[str, Proposal] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is a string
        """Returns `{"policy": ...}` for the next trial, or `FINISHED` when no new policy can be found."""
        proposal = self._propose(1 + max(self._seen.values(), default=0))
        if proposal is None:
            return str(Searcher.FINISHED)
        self._seen[proposal.policy] = proposal.number
        self._running[trial_id] = proposal
        return {"policy": proposal.policy.to_dict()}

    def _propose(self, number: int) -> Proposal | None:
        for origin, policy in self._first:
            if policy not in self._seen:
                return Proposal(number, origin, policy)
        random = self._agent.warming_up
        for draw in range(_AGENT_DRAWS + _RANDOM_DRAWS):
            random = random or draw >= _AGENT_DRAWS
            policy = self._walk(random)
            if policy not in self._seen:
                return Proposal(number, "random" if random else "agent", policy)
        return None

    def _walk(self, random: bool) -> BitPolicy:
        observation, _ = self._env.reset()
        terminated = False
        while not terminated:
            observation, _, terminated, _, info = self._env.step(self._agent.act(observation, random))
        policy: BitPolicy = info["policy"]
        return policy

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Rewards the agent; a failed trial counts as an objective of 0."""
        proposal = self._running.pop(trial_id)
        result = None if error else result
        self.learn(proposal.number, proposal.policy, float(result[METRIC]) if result else 0.0)
        if self._finished:
            self._finished(proposal, result)

    def learn(self, number: int, policy: BitPolicy, objective: float) -> None:
        """Takes in the outcome of a policy, also of one that was scored before this searcher was made."""
        self._seen[policy] = number
        self._agent.observe(self._env.transitions(policy), self._env.reward(objective))

    def save(self, checkpoint_path: str) -> None:
        """Writes the agent's whole state and the policies scored; running trials will be proposed again."""
        running = {proposal.policy for proposal in self._running.values()}
        scored = [[number, policy.to_dict()] for policy, number in self._seen.items() if policy not in running]
        self._agent.save(Path(checkpoint_path), {"scored": scored})

    def restore(self, checkpoint_path: str) -> None:
        """Restores what `save` wrote."""
        scored = self._agent.load(Path(checkpoint_path))["scored"]
        self._seen = {BitPolicy.from_dict(policy): number for number, policy in scored}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for a restore of its own; `save` keeps ours, in a file that cannot run code."""
        return {}

    def __contains__(self, policy: object) -> bool:
        """Whether the policy was proposed before."""
        return policy in self._seen
