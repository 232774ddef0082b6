"""stable-baselines3's internals that haq uses. No other file names one, nor what SB3 does not document.

Checked with stable-baselines3 2.9.2; `pyproject.toml` allows no newer minor version.
`tests/search/agents/test_sb3_internals.py` names the internal that an update breaks. Why each is needed:

- `_update_learning_rate`: DDPG has one learning rate, HAQ has one for the actor and one for the critic.
- `_get_samples` of a replay buffer: HAQ draws different transitions, and SB3 draws with replacement.
- `_n_updates`: decides when target networks follow, so it is part of an agent's state.
- `pos`, `full` and the arrays of a replay buffer: part of an agent's state, too. SB3 saves them as a pickle.
- `mu` of an actor and `q_networks` of a critic: their layers, two of which are HAQ's.
- `actor` and `critic` of a DDPG, and their `optimizer`: SB3 documents them for custom policies alone.
- `train` without `learn` before it needs a logger, and SB3's own would make a folder.

SB3 also seeds and draws from the random states of the whole process; `haq.process_state` restores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.td3.policies import Actor
from torch import Tensor, nn

__all__ = ["TwoRates", "critic_networks", "learnt", "log_nothing", "replace_last_function", "stored", "transitions"]

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


class TwoRates(DDPG):
    """DDPG with a learning rate for the actor and another for the critic.

    Attributes:
        actor_rate: Of the actor.
        critic_rate: Of the critic.
    """

    actor_rate: float
    critic_rate: float

    def _update_learning_rate(self, optimizers: Any) -> None:
        actor, critic = optimizers
        for optimizer, rate in ((actor, self.actor_rate), (critic, self.critic_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate


def updates(model: DDPG) -> int:
    """Returns how many batches the model has learnt from."""
    return model._n_updates


def set_updates(model: DDPG, count: int) -> None:
    """Sets how many batches the model has learnt from."""
    model._n_updates = count


def learnt(model: DDPG) -> dict[str, Any]:
    """Returns the states of a model's networks and optimizers, as tensors and plain types."""
    return {
        "policy": model.policy.state_dict(),
        "actor_optimizer": model.actor.optimizer.state_dict(),
        "critic_optimizer": model.critic.optimizer.state_dict(),
    }


def restore_learnt(model: DDPG, states: Mapping[str, Any]) -> None:
    """Restores what `learnt` returned; other keys are left out."""
    model.policy.load_state_dict(states["policy"])
    model.actor.optimizer.load_state_dict(states["actor_optimizer"])
    model.critic.optimizer.load_state_dict(states["critic_optimizer"])


def log_nothing(model: DDPG) -> None:
    """Gives the model a logger that writes nothing; `configure`, which SB3 calls otherwise, would make a folder."""
    model.set_logger(Logger(folder=None, output_formats=[]))


def transitions(buffer: ReplayBuffer, rows: NDArray[np.intp], env: Any = None) -> ReplayBufferSamples:
    """Returns these transitions of a replay buffer.

    Args:
        buffer: Of one environment.
        rows: Their numbers, below `buffer.size()`.
        env: As `sample` gets it.
    """
    return buffer._get_samples(rows, env=env)


def stored(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """Returns a copy of all transitions in a replay buffer: name of an array → its rows."""
    size = buffer.size()
    return {name: torch.from_numpy(getattr(buffer, name)[:size].copy()) for name in _ARRAYS}


def restore_stored(buffer: ReplayBuffer, arrays: Mapping[str, Tensor], position: int, full: bool) -> None:
    """Restores what `stored` returned.

    Args:
        buffer: Changed in place.
        arrays: What `stored` returned.
        position: `buffer.pos` at that time.
        full: `buffer.full` at that time.

    Raises:
        ValueError: The arrays do not fit the buffer.
    """
    buffer.pos, buffer.full = position, full
    size, last = buffer.size(), buffer.buffer_size - 1
    for name in _ARRAYS:
        rows, array = arrays[name].numpy(), getattr(buffer, name)
        if rows.shape != array[:size].shape or not 0 <= buffer.pos <= last:
            raise ValueError(f"its replay buffer has {len(rows)} {name}, ends at {size} and may have {last + 1}")
        array[:size] = rows


def with_rewards(samples: ReplayBufferSamples, rewards: Tensor) -> ReplayBufferSamples:
    """Returns the same transitions with other rewards."""
    return samples._replace(rewards=rewards)


def replace_last_function(actor: Actor, function: nn.Module) -> None:
    """Puts a function in the place of an actor's hyperbolic tangent."""
    assert isinstance(actor.mu[-1], nn.Tanh)
    actor.mu[-1] = function


def critic_networks(critic: ContinuousCritic) -> list[nn.Sequential]:
    """Returns the layers of each of a critic's networks; the first reads the observation, then the action."""
    networks = []
    for network in critic.q_networks:
        assert isinstance(network, nn.Sequential)
        networks.append(network)
    return networks
