"""HAQ's agent: stable-baselines3's DDPG with the paper's settings, driven an episode at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from haq.envs import BitAllocationEnv, Transitions
from haq.io.files import replacing
from haq.io.tensors import read_tensors
from haq.search.agents.agent_state import reading
from haq.search.agents.ddpg_networks import HaqPolicy

__all__ = ["DDPGAgent"]

_ACTOR_RATE, _CRITIC_RATE = 1e-4, 1e-3
_SIGMA, _SIGMA_DECAY = 0.5, 0.99  # of the exploration noise, for actions in [0, 1], and its decay an episode
_BASELINE_RATE = 0.5
_KEPT_A_LAYER = 128  # transitions

Array = NDArray[np.float32]


class _BaselineBuffer(ReplayBuffer):
    """Subtracts a moving average from the rewards it samples, and samples from a generator of its own."""

    def __init__(self, *args: Any, seed: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(seed)
        self.baseline: float | None = None

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        kept = self.size()
        data = self._get_samples(self.rng.choice(kept, batch_size, replace=kept < batch_size), env=env)
        mean = float(data.rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + _BASELINE_RATE * (mean - self.baseline)
        return data._replace(rewards=data.rewards - self.baseline)


class _DDPG(DDPG):
    """DDPG with a learning rate of its own for the actor and the critic."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        actor, critic = optimizers
        for optimizer, rate in ((actor, _ACTOR_RATE), (critic, _CRITIC_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate


class DDPGAgent:
    """Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971) as HAQ uses it.

    HAQ, arXiv:1811.08886, section 3.5 and public code (mit-han-lab/haq, `rl_quantize.py` and `ddpg.py`): actor and
    critic of 300-300 units, see `HaqPolicy`; learning rates 1e-4 and 1e-3; discount 1; target rate 0.01; 128
    transitions kept for each layer; a batch of 64 different ones after each step of an episode is stored; every step
    rewarded with the episode's outcome, less a moving average that takes half of the mean of each batch; `warmup` + 1
    episodes of random actions, from which nothing is learnt; then actions drawn from a normal distribution around the
    actor's, truncated to their range, with σ = 0.5 · 0.99^(episode − warmup).

    That σ is meant for HAQ's 600 episodes, at whose end it is 0.0015. It is the same for any number of trials: after 60
    of them it is 0.32, and most of what the agent does is still chance.

    These differ from the public code:

    - The buffer holds the widths that the budget left, and observations to match. There it holds what was asked for.
    - A step can be drawn as soon as it is stored. There it is drawn once the next one is stored, and each episode fills
      one more place, which is never drawn, so that slightly fewer episodes are kept.
    - Episodes are counted as they end. With several trials at a time, actions are chosen before the outcomes of those
      that run are known. There one episode follows another.

    Args:
        env: Gives the spaces and the length of an episode.
        warmup: Number of the last episode of random actions; the first one is 0.
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
            buffer_size=_KEPT_A_LAYER * env.layer_count,
            replay_buffer_class=_BaselineBuffer,
            replay_buffer_kwargs={"seed": [seed, 2]},
            policy_kwargs={"net_arch": [300, 300]},
            seed=seed,
            device="cpu",
        )
        self._ddpg.set_logger(Logger(folder=None, output_formats=[]))  # `configure` would make a folder

    @property
    def warming_up(self) -> bool:
        """Whether actions should still be random."""
        return self.episodes <= self.warmup

    @property
    def sigma(self) -> float:
        """Standard deviation of the exploration noise, for actions in [0, 1]."""
        return _SIGMA * _SIGMA_DECAY ** max(self.episodes - self.warmup, 0)

    def act(self, observation: Array, random: bool = False) -> Array:
        """Returns an exploring action, or one that is uniformly random, `(1,)` in [−1, 1]."""
        if random:
            return self._rng.uniform(-1, 1, 1).astype(np.float32)
        with torch.no_grad():
            mean = float(self._ddpg.actor(torch.from_numpy(observation)[None]))
        sigma = 2 * self.sigma  # for a range twice as wide
        share = self._rng.uniform(ndtr((-1 - mean) / sigma), ndtr((1 - mean) / sigma))
        return np.clip(np.array([mean + sigma * ndtri(share)], np.float32), -1, 1)

    def observe(self, episode: Transitions, reward: float) -> None:
        """Stores the steps of an episode with its reward, and after the warm-up learns from a batch after each."""
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

        The file holds tensors and JSON alone, so that reading it cannot run code.
        """
        buffer, ddpg = self._buffer, self._ddpg
        size = buffer.size()
        content = {
            "policy": ddpg.policy.state_dict(),
            "actor_optimizer": ddpg.actor.optimizer.state_dict(),
            "critic_optimizer": ddpg.critic.optimizer.state_dict(),
            "buffer": {name: torch.from_numpy(getattr(buffer, name)[:size].copy()) for name in _BUFFER_ARRAYS},
            "rest": json.dumps(
                {
                    "layout": _LAYOUT,
                    "episodes": self.episodes,
                    "updates": ddpg._n_updates,
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
            raise ValueError("the agent of another version of haq wrote it, which sees layers differently")
        buffer, ddpg = self._buffer, self._ddpg
        ddpg.policy.load_state_dict(content["policy"])
        ddpg.actor.optimizer.load_state_dict(content["actor_optimizer"])
        ddpg.critic.optimizer.load_state_dict(content["critic_optimizer"])
        buffer.pos, buffer.full, buffer.baseline = rest["buffer"]
        size, last = buffer.size(), buffer.buffer_size - 1
        for name in _BUFFER_ARRAYS:
            kept, stored = content["buffer"][name].numpy(), getattr(buffer, name)
            if kept.shape != stored[:size].shape or not 0 <= buffer.pos <= last:
                raise ValueError(f"its replay buffer has {len(kept)} {name}, ends at {size} and may have {last + 1}")
            stored[:size] = kept
        self.episodes, ddpg._n_updates = rest["episodes"], rest["updates"]
        self._rng.bit_generator.state, buffer.rng.bit_generator.state = rest["random"]
        extra: dict[str, Any] = rest["extra"]
        return extra


_BUFFER_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")
_LAYOUT = 2  # of the state; the first one had other features, other networks and twice the transitions
