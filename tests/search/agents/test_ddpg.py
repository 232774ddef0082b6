"""HAQ's agent, against values computed by hand from its public code (mit-han-lab/haq)."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haq.constraints import Constraint
from haq.envs import BitAllocationEnv, Budget, Transitions
from haq.errors import ConfigError
from haq.hwmodels import CostTable
from haq.policy import LayerBits
from haq.registry import AGENTS
from haq.search.agents.ddpg import DDPGAgent
from haq.search.agents.episode_agent import Walker
from haq.testing import Toy
from tests.envs.conftest import WIDTHS, make_layers


def episode(env: BitAllocationEnv) -> Transitions:
    return env.transitions(env.budget.decrease(env.budget.uniform(8)))


def learned(env: BitAllocationEnv, episodes: int) -> DDPGAgent:
    agent = DDPGAgent(env, warmup=1, seed=0)
    for number in range(episodes):
        agent.observe(episode(env), -float(number))
    return agent


def test_the_buffer_keeps_128_transitions_for_each_layer_that_is_decided(env: BitAllocationEnv) -> None:
    assert DDPGAgent(env, 5, 0)._buffer.buffer_size == 3 * 128
    layers, one = make_layers(3), [Constraint("size", 1.0, relative=True)]
    table = CostTable.footprint(layers, WIDTHS)
    weights = BitAllocationEnv(layers, Budget(table, one, WIDTHS, {"conv0": LayerBits(8, 8)}, weights_only=True))
    assert DDPGAgent(weights, 5, 0)._buffer.buffer_size == 2 * 128


def test_the_oldest_episodes_are_dropped(env: BitAllocationEnv) -> None:
    agent = DDPGAgent(env, warmup=100, seed=0)
    for number in range(65):
        agent.observe(episode(env), float(number))
    buffer = agent._buffer
    assert buffer.size() == 384
    assert sorted(set(buffer.rewards.flatten())) == list(range(1, 65)), "64 episodes of 6 steps"


def test_the_moving_average_takes_half_of_each_batch(env: BitAllocationEnv) -> None:
    """Means of 2, 4 and 1: the average is 2, then 2 + .5·(4 − 2) = 3, then 3 + .5·(1 − 3) = 2."""
    agent = DDPGAgent(env, warmup=100, seed=0)
    for _ in range(11):
        agent.observe(episode(env), 0.0)
    buffer = agent._buffer
    for reward, average in ((2.0, 2.0), (4.0, 3.0), (1.0, 2.0)):
        buffer.rewards[:] = reward
        assert buffer.sample(64).rewards.unique().tolist() == [reward - average]
        assert buffer.baseline == average


def test_a_batch_holds_a_transition_once_if_there_are_enough(env: BitAllocationEnv) -> None:
    agent = DDPGAgent(env, warmup=100, seed=0)
    for _ in range(11):
        agent.observe(episode(env), 0.0)
    buffer = agent._buffer
    buffer.rewards[:66, 0] = np.arange(66)
    assert len(buffer.sample(66).rewards.unique()) == 66
    assert len(buffer.sample(67).rewards) == 67


def test_the_warm_up_is_one_episode_longer_than_its_number_and_learns_nothing(env: BitAllocationEnv) -> None:
    """The public code takes random actions while `episode <= warmup`, with episodes from 0; then one batch per step."""
    agent, updates = DDPGAgent(env, warmup=2, seed=0), []
    for _ in range(5):
        random = agent.warming_up
        agent.observe(episode(env), 0.0)
        updates.append((random, agent._ddpg._n_updates))
    assert updates == [(True, 0), (True, 0), (True, 0), (False, 6), (False, 12)]


@pytest.mark.parametrize(
    ("trials", "warmup", "sigmas"),
    [
        (60, 15, {0: 0.5, 15: 0.5, 16: 0.495, 17: 0.49005, 59: 0.5 * 0.99**44}),
        (600, 20, {20: 0.5, 21: 0.495, 59: 0.5 * 0.99**39, 599: 0.5 * 0.99**579}),
    ],
)
def test_sigma_falls_by_a_hundredth_per_episode_for_any_number_of_trials(
    trials: int, warmup: int, sigmas: dict[int, float]
) -> None:
    walker, _ = AGENTS["haq"].agent_for(Toy(0, trials=trials).task)
    assert isinstance(walker, Walker)
    agent = walker.ddpg
    assert agent.warmup == warmup
    for episodes, sigma in sigmas.items():
        agent.episodes = episodes
        assert agent.sigma == pytest.approx(sigma)


def test_a_step_is_learnt_before_later_ones_are_stored(env: BitAllocationEnv) -> None:
    """The public code learns from a batch after storing each step, not after the episode."""
    agent, sizes = DDPGAgent(env, warmup=0, seed=0), []
    train = agent._ddpg.train
    agent.observe(episode(env), 0.0)

    def recording(*args: Any, **kwargs: Any) -> None:
        sizes.append(agent._buffer.size())
        train(*args, **kwargs)

    agent._ddpg.train = recording  # type: ignore[method-assign]
    agent.observe(episode(env), 0.0)
    assert sizes == [7, 8, 9, 10, 11, 12]


def test_the_actor_ends_in_a_sigmoid(env: BitAllocationEnv) -> None:
    actor = DDPGAgent(env, 5, 0)._ddpg.actor
    seen = torch.rand(8, 10)
    before = actor.mu[:-1](seen)
    assert torch.allclose((actor(seen) + 1) / 2, torch.sigmoid(before))
    assert [layer.out_features for layer in actor.mu if isinstance(layer, torch.nn.Linear)] == [300, 300, 1]


def test_the_critic_has_a_layer_for_the_action_alone(env: BitAllocationEnv) -> None:
    """PyTorch draws weights from ±1/√inputs: ±1 for one action, ±1/√10 for ten features."""
    critic = DDPGAgent(env, 5, 0)._ddpg.critic
    first = critic.q_networks[0][0]
    seen = torch.zeros(1, 10)
    most = [float(weight.detach().abs().max()) for weight in (first.action.weight, first.observation.weight)]
    assert 0.9 < most[0] <= 1
    assert 0.9 / 10**0.5 < most[1] <= 1 / 10**0.5
    lowest, highest = (first(torch.cat([seen, torch.tensor([[action]])], dim=1)) for action in (-1.0, 1.0))
    biases = first.observation.bias + first.action.bias
    assert lowest[0].detach().numpy() == pytest.approx(biases.detach().numpy()), "an action of 0 in HAQ's range"
    assert (highest - lowest)[0].detach().numpy() == pytest.approx(first.action.weight[:, 0].detach().numpy(), abs=1e-6)


def test_the_target_networks_start_as_their_sources(env: BitAllocationEnv) -> None:
    policy = DDPGAgent(env, 5, 0)._ddpg.policy
    for one, other in ((policy.actor, policy.actor_target), (policy.critic, policy.critic_target)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_each_step_has_the_reward_of_its_episode_and_the_width_that_was_applied() -> None:
    toy = Toy(0)
    walker, _ = AGENTS["haq"].agent_for(toy.task)
    assert isinstance(walker, Walker)
    proposal = walker.propose({})
    assert proposal is not None
    walker.learn(proposal[1], 0.5)
    buffer, env = walker.ddpg._buffer, walker._env
    assert buffer.rewards[: env.steps].flatten() == pytest.approx([env.reward(0.5)] * env.steps)
    assert np.array_equal(buffer.actions[: env.steps, 0], env.transitions(proposal[1]).actions)
    assert buffer.dones[: env.steps].flatten().tolist() == [0] * (env.steps - 1) + [1]


# States of other versions


def spoiled(path: Path, change: Any) -> None:
    content = torch.load(path, weights_only=True)
    rest = json.loads(content["rest"])
    change(content, rest)
    torch.save({**content, "rest": json.dumps(rest)}, path)


def longer(content: dict[str, Any], rest: dict[str, Any]) -> None:
    """Stores the buffer as if its capacity were larger."""
    content["buffer"] = {name: torch.cat([values] * 70) for name, values in content["buffer"].items()}
    rest["buffer"][0] *= 70


OLD = {
    "no layout": lambda content, rest: rest.pop("layout"),
    "a longer buffer": longer,
    "a shorter buffer": lambda content, rest: content["buffer"].update(rewards=content["buffer"]["rewards"][:1]),
    "a fuller buffer": lambda content, rest: rest["buffer"].__setitem__(1, True),
    "a position outside": lambda content, rest: rest.update(buffer=[384, False, 0.0]),
    "a negative position": lambda content, rest: rest.update(buffer=[-12, False, 0.0]),
    "one value for many": lambda content, rest: content["buffer"].update(
        observations=content["buffer"]["observations"][:, :, :1]
    ),
    "fewer arrays": lambda content, rest: content["buffer"].pop("dones"),
}


@pytest.mark.parametrize("change", OLD.values(), ids=OLD)
def test_a_state_with_other_contents_is_refused(env: BitAllocationEnv, tmp_path: Path, change: Any) -> None:
    learned(env, 2).save(tmp_path / "searcher.pt", {})
    spoiled(tmp_path / "searcher.pt", lambda content, rest: None)
    DDPGAgent(env, 1, 0).load(tmp_path / "searcher.pt")
    spoiled(tmp_path / "searcher.pt", change)
    with pytest.raises(ConfigError, match=r"as the state of a search: .*; remove it, and the agent learns again"):
        DDPGAgent(env, 1, 0).load(tmp_path / "searcher.pt")


def test_a_state_whose_buffer_is_full_is_restored(env: BitAllocationEnv, tmp_path: Path) -> None:
    agent = DDPGAgent(env, 1000, 0)
    for number in range(70):
        agent.observe(episode(env), float(number))
    agent.save(tmp_path / "searcher.pt", {})
    other = DDPGAgent(env, 1000, 0)
    other.load(tmp_path / "searcher.pt")
    for one in itertools.chain([agent, other]):
        one.observe(episode(env), -1.0)
    assert np.array_equal(agent._buffer.rewards, other._buffer.rewards)
    assert agent._buffer.pos == other._buffer.pos == 42
