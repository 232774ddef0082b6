"""Every internal of stable-baselines3 that haq uses: a test's name says what an update of it broke."""

import copy
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from haq.search.agents import sb3_internals as internals


class Spaces(gymnasium.Env):  # type: ignore[type-arg]
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)


def make(kind: type[DDPG] = DDPG, buffer_size: int = 8) -> DDPG:
    model = kind("MlpPolicy", Spaces(), buffer_size=buffer_size, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu")
    internals.log_nothing(model)
    return model


def filled(model: DDPG, count: int) -> ReplayBuffer:
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    for number in range(count):
        seen = np.full(3, number, np.float32)
        buffer.add(seen, seen + 1, np.zeros(1), np.array([number], np.float32), np.zeros(1), [{}])
    return buffer


def test__update_learning_rate() -> None:
    class Rates(internals.TwoRates):
        actor_rate, critic_rate = 0.25, 0.5

    model = make(Rates)
    filled(model, 4)
    model.train(1, 4)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (model.actor.optimizer, model.critic.optimizer)]
    assert rates == [0.25, 0.5]


def test__get_samples() -> None:
    samples = internals.transitions(filled(make(), 4), np.array([2, 0]))
    assert samples.observations.tolist() == [[2.0] * 3, [0.0] * 3]
    assert samples.next_observations.tolist() == [[3.0] * 3, [1.0] * 3]
    assert samples.rewards.tolist() == [[2.0], [0.0]]
    assert internals.with_rewards(samples, samples.rewards - 1).rewards.tolist() == [[1.0], [-1.0]]


def test__n_updates() -> None:
    model = make()
    filled(model, 4)
    model.train(3, 4)
    assert internals.updates(model) == 3
    internals.set_updates(model, 7)
    model.train(1, 4)
    assert internals.updates(model) == 8


@pytest.mark.parametrize("count", [3, 8, 11])
def test_pos_and_full_and_arrays_of_a_replay_buffer(count: int) -> None:
    source, target = filled(make(), count), filled(make(), 1)
    internals.restore_stored(target, internals.stored(source), source.pos, source.full)
    assert (target.pos, target.full, target.size()) == (count % 8, count >= 8, min(count, 8))
    rows = np.arange(target.size())
    for a, b in zip(internals.transitions(source, rows), internals.transitions(target, rows), strict=True):
        assert a is b is None or torch.equal(a, b)  # what is not used is `None`
    with pytest.raises(ValueError, match="its replay buffer has"):
        internals.restore_stored(target, internals.stored(source), 8, source.full)


def test_actor_and_critic_and_their_optimizer() -> None:
    """What was restored goes on as what was saved."""
    one, other = make(), make()
    for model in (one, other):
        filled(model, 4)
    one.train(2, 4)
    internals.restore_learnt(other, copy.deepcopy(internals.learnt(one)))
    internals.set_updates(other, internals.updates(one))
    for model in (one, other):
        np.random.seed(0)
        torch.manual_seed(0)
        model.train(2, 4)
    for a, b in zip(one.policy.state_dict().values(), other.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_mu() -> None:
    model = make()
    internals.replace_last_function(model.actor, nn.Hardtanh(0.25, 0.5))
    assert 0.25 <= float(model.actor(torch.ones(1, 3)).detach()) <= 0.5


def test_q_networks() -> None:
    model = make()
    (network,) = internals.critic_networks(model.critic)
    assert isinstance(network[0], nn.Linear)
    assert network[0].in_features == 3 + 1, "observation and action"
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.critic(torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0]]))
    assert seen[0].tolist() == [[1.0, 2, 3, 4]]


def test_train_without_learn_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = make()
    filled(model, 4)
    model.train(1, 4)
    assert not list(tmp_path.iterdir())
