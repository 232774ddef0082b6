"""HAQ's agent: stable-baselines3's DDPG with the paper's settings, which learns after each episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor, nn

from haq.envs import BitAllocationEnv, Transitions
from haq.io.files import replacing
from haq.io.tensors import read_tensors
from haq.search.agents.agent_state import reading
from haq.search.agents.sb3_internals import (
    TwoRates,
    critic_networks,
    learnt,
    log_nothing,
    replace_last_function,
    restore_learnt,
    restore_stored,
    set_updates,
    stored,
    transitions,
    updates,
    with_rewards,
)

__all__ = ["DDPGAgent"]

_ACTOR_RATE, _CRITIC_RATE = 1e-4, 1e-3
_SIGMA, _SIGMA_DECAY = 0.5, 0.99  # of the exploration noise, for actions in [0, 1], and its decay an episode
_BASELINE_RATE = 0.5
_KEPT_A_LAYER = 128  # transitions

Array = NDArray[np.float32]


class HaqPolicy(TD3Policy):
    """Networks of HAQ's public code: another last function of the actor, and another first layer of the critic."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Returns an actor that ends in a sigmoid; the parent's ends in a hyperbolic tangent."""
        actor = super().make_actor(features_extractor)
        replace_last_function(actor, _Sigmoid())
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Returns a critic whose first layer has one linear map for the observation and one for the action."""
        critic = super().make_critic(features_extractor)
        for network in critic_networks(critic):
            both = network[0]
            assert isinstance(both, nn.Linear)
            network[0] = _ObservationAndAction(both.in_features - 1, both.out_features)
        return critic


class _Sigmoid(nn.Module):
    """From any number to an action in [−1, 1]; `Tanh` is twice as steep."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(x) - 1


class _ObservationAndAction(nn.Module):
    """Adds a linear map of the observation and one of the action in [0, 1].

    One map of both could compute the same, but PyTorch's initial weights are at most 1/√inputs: 1 for the action alone.
    """

    def __init__(self, observed: int, units: int) -> None:
        super().__init__()
        self.observation, self.action = nn.Linear(observed, units), nn.Linear(1, units)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.observation(x[:, :-1]) + self.action((x[:, -1:] + 1) / 2)
        return mapped


class _BaselineBuffer(ReplayBuffer):
    """Subtracts a moving average from the rewards of each batch, and draws batches with its own generator."""

    def __init__(self, *args: Any, seed: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(seed)
        self.baseline: float | None = None

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        kept = self.size()
        data = transitions(self, self.rng.choice(kept, batch_size, replace=kept < batch_size), env)
        mean = float(data.rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + _BASELINE_RATE * (mean - self.baseline)
        return with_rewards(data, data.rewards - self.baseline)


class _DDPG(TwoRates):
    actor_rate, critic_rate = _ACTOR_RATE, _CRITIC_RATE


class DDPGAgent:
    """Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971) as HAQ uses it.

    HAQ, arXiv:1811.08886, section 3.5 and public code (mit-han-lab/haq, `rl_quantize.py` and `ddpg.py`): actor and
    critic of 300-300 units, see `HaqPolicy`; learning rates 1e-4 and 1e-3; discount 1; target rate 0.01; 128
    transitions kept for each layer; a batch of 64 different ones after each step of an episode is stored; every step
    rewarded with the episode's outcome, less a moving average that takes half of the mean of each batch; `warmup` + 1
    episodes of random actions, from which nothing is learnt; then actions drawn from a normal distribution around the
    actor's, truncated to their range, with σ = 0.5 · 0.99^(episode − warmup).

    HAQ chose that σ for 600 episodes; at their end it is 0.0015. It does not depend on the number of trials: after 60
    trials it is 0.32, and most of what the agent does is still chance.

    These differ from the public code:

    - The buffer holds the widths after the budget was enforced, and observations to match. The public code stores the
      widths that the agent asked for.
    - A step can be drawn as soon as it is stored. In the public code it can be drawn once the next step is stored, and
      each episode takes one more place, which is never drawn, so that slightly fewer episodes are kept.
    - Episodes are counted when they end. With several trials at a time, the agent chooses actions before it knows the
      outcomes of running trials. In the public code one episode follows another.

    Args:
        env: Gives the spaces and the length of an episode.
        warmup: Number of the last episode with random actions. The first episode has number 0.
        seed: Decides initial weights, exploration and sampling.
    """

    def __init__(self, env: BitAllocationEnv, warmup: int, seed: int) -> None:
        self.warmup, self.episodes = warmup, 0
        self._rng = np.random.default_rng([seed, 1])
        self._ddpg = _DDPG(
            HaqPolicy,
            env,
            gamma=1.0,
            tau=0.01,
            batch_size=64,
            buffer_size=_KEPT_A_LAYER * env.decisions,
            replay_buffer_class=_BaselineBuffer,
            replay_buffer_kwargs={"seed": [seed, 2]},
            policy_kwargs={"net_arch": [300, 300]},
            seed=seed,
            device="cpu",
        )
        log_nothing(self._ddpg)

    @property
    def warming_up(self) -> bool:
        """Whether actions should still be random."""
        return self.episodes <= self.warmup

    @property
    def sigma(self) -> float:
        """Standard deviation of the exploration noise, for actions in [0, 1]."""
        return _SIGMA * _SIGMA_DECAY ** max(self.episodes - self.warmup, 0)

    def act(self, observation: Array, random: bool = False) -> Array:
        """Returns an action with exploration noise, or a uniformly random one, `(1,)` in [−1, 1]."""
        if random:
            return self._rng.uniform(-1, 1, 1).astype(np.float32)
        with torch.no_grad():
            mean = float(self._ddpg.actor(torch.from_numpy(observation)[None]))
        sigma = 2 * self.sigma  # for a range twice as wide
        # `scipy.stats.truncnorm` gives the same values, but a draw takes 0.6 ms, 8 times as long as the actor
        share = self._rng.uniform(ndtr((-1 - mean) / sigma), ndtr((1 - mean) / sigma))
        return np.clip(np.array([mean + sigma * ndtri(share)], np.float32), -1, 1)

    def observe(self, episode: Transitions, reward: float) -> None:
        """Stores the steps of an episode with its reward; after the warm-up, learns from a batch after each step."""
        buffer = self._buffer
        for step in range(len(episode.actions)):
            buffer.add(
                episode.observations[step],
                episode.next_observations[step],
                episode.actions[step],
                np.array([reward], np.float32),
                episode.dones[step : step + 1],
                [{}],
            )
            if not self.warming_up:
                self._ddpg.train(gradient_steps=1, batch_size=self._ddpg.batch_size)
        self.episodes += 1

    @property
    def _buffer(self) -> _BaselineBuffer:
        buffer = self._ddpg.replay_buffer
        assert isinstance(buffer, _BaselineBuffer)
        return buffer

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes the whole state: networks, optimisers, replay buffer and random streams, and the caller's `extra`.

        The file holds only tensors and JSON, so that reading it cannot run code.
        """
        buffer = self._buffer
        content = {
            **learnt(self._ddpg),
            "buffer": stored(buffer),
            "rest": json.dumps(
                {
                    "layout": _LAYOUT,
                    "episodes": self.episodes,
                    "updates": updates(self._ddpg),
                    "buffer": [buffer.pos, buffer.full, buffer.baseline],
                    "random": [self._rng.bit_generator.state, buffer.rng.bit_generator.state],
                    "extra": extra,
                }
            ),
        }
        with replacing(path) as temporary:
            torch.save(content, temporary)

    def load(self, path: Path) -> dict[str, Any]:
        """Restores what `save` wrote, so that the next actions are those of an uninterrupted agent; returns `extra`."""
        with reading(path):
            return self._restore(read_tensors(path))

    def _restore(self, content: dict[str, Any]) -> dict[str, Any]:
        rest = json.loads(content["rest"])
        if rest.get("layout") != _LAYOUT:
            raise ValueError("another version of haq wrote it, whose agent observes other features of layers")
        buffer = self._buffer
        position, full, buffer.baseline = rest["buffer"]
        restore_learnt(self._ddpg, content)
        restore_stored(buffer, content["buffer"], position, full)
        set_updates(self._ddpg, rest["updates"])
        self.episodes = rest["episodes"]
        self._rng.bit_generator.state, buffer.rng.bit_generator.state = rest["random"]
        extra: dict[str, Any] = rest["extra"]
        return extra


_LAYOUT = 2  # of the state; the first one had other features, other networks and twice the transitions
