"""HAQ's way of proposing: an agent walks the environment, layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.envs import BitAllocationEnv
from haq.policy import BitPolicy
from haq.search.agents.ddpg import DDPGAgent
from haq.search.agents.protocol import AgentKind

if TYPE_CHECKING:
    from haq.search.agents.protocol import Agent, First
    from haq.search.agents.task import Task

__all__ = ["HAQ", "Walker"]

_WARMUP_SHARE, _WARMUP_MOST = 0.25, 20  # HAQ: 20, of 600 episodes
_AGENT_DRAWS, _RANDOM_DRAWS = 5, 100  # tries for a policy that was not proposed before


class Walker:
    """Proposes the policy that the agent's actions end in, fitted to the budget; rewards the agent with the outcome.

    Deviation from HAQ's public code, which scores the policy of every episode: no policy is scored twice. If an episode
    ends in a policy that was scored before, the agent learns from the archived outcome, which costs no trial, and walks
    again. If the agent only repeats itself, actions are random.

    Args:
        env: Walked once for each proposal. It scores nothing itself.
        ddpg: Chooses actions and learns.
    """

    def __init__(self, env: BitAllocationEnv, ddpg: DDPGAgent) -> None:
        self._env, self.ddpg = env, ddpg
        self._archive: dict[BitPolicy, float] = {}

    def propose(self, seen: Collection[BitPolicy]) -> tuple[str, BitPolicy] | None:
        """See `Agent`; actions are random in the warm-up, and if the agent only repeats itself."""
        random = self.ddpg.warming_up
        for draw in range(_AGENT_DRAWS + _RANDOM_DRAWS):
            random = random or draw >= _AGENT_DRAWS
            policy = self._walk(random)
            if policy not in seen:
                return "random" if random else "agent", policy
            if not random and policy in self._archive:
                self.learn(policy, self._archive[policy])
        return None

    def _walk(self, random: bool) -> BitPolicy:
        observation, _ = self._env.reset()
        terminated = False
        while not terminated:
            observation, _, terminated, _, info = self._env.step(self.ddpg.act(observation, random))
        policy: BitPolicy = info["policy"]
        return policy

    def learn(self, policy: BitPolicy, objective: float) -> None:
        """Stores and rewards the episode that ends in `policy`."""
        self._archive[policy] = objective
        self.ddpg.observe(self._env.transitions(policy), self._env.reward(objective))

    def recall(self, policy: BitPolicy, objective: float) -> None:
        """See `Agent`; the replay buffer already has the episode."""
        self._archive[policy] = objective

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See `Agent`."""
        self.ddpg.save(path, extra)

    def load(self, path: Path) -> dict[str, Any]:
        """See `Agent`."""
        return self.ddpg.load(path)


def _haq(task: Task) -> tuple[Agent, First]:
    env = BitAllocationEnv(task.layers, task.budget, float_score=task.float_score, rank_by=task.rank_by)
    warmup = min(int(_WARMUP_SHARE * task.trials), _WARMUP_MOST)
    return Walker(env, DDPGAgent(env, warmup, task.seed)), []


HAQ = AgentKind(_haq)
