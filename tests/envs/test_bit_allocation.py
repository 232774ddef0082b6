import itertools
import warnings

import gymnasium.utils.env_checker
import numpy as np
import pytest
from stable_baselines3 import DDPG
from stable_baselines3.common.env_checker import check_env

from haq.constraints import Constraint
from haq.envs import BitAllocationEnv, Budget
from haq.hwmodels import CostTable
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits
from haq.scores import Score

from .conftest import WIDTHS, make_layers, make_table

SENSITIVITY = {"conv0": 0.3, "conv1": 0.05, "conv2": 0.15}


def toy_score(policy: BitPolicy) -> Score:
    """An accuracy that each halved width lowers, for some layers more than for others."""
    lost = sum(SENSITIVITY[name] * (2.0**-b.w_bits + 2.0**-b.a_bits) for name, b in policy.items())  # type: ignore[operator]
    return Score(0.95 - lost, 0.1 + lost, 100, 0.0, "ptq")


FLOAT = Score(0.95, 0.1, 100, 0.0, "float")


def toy_env(share: float = 0.4, pinned: dict[str, LayerBits] | None = None, score: bool = True) -> BitAllocationEnv:
    budget = Budget(make_table(3), [Constraint("latency", share, relative=True)], WIDTHS, pinned or {})
    return BitAllocationEnv(make_layers(3), budget, toy_score if score else None, FLOAT)


def play(env: BitAllocationEnv, policy: BitPolicy) -> tuple[float, BitPolicy, list[np.ndarray]]:
    observation, _ = env.reset()
    seen, reward = [observation], 0.0
    for action in env.transitions(policy).actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        assert not truncated
    assert terminated
    return reward, info["policy"], seen


@pytest.mark.parametrize("score", [True, False])
def test_checkers_of_gymnasium_and_sb3(score: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(toy_env(score=score))
    gymnasium.utils.env_checker.check_env(toy_env(score=score), skip_render_check=True)


def test_the_episode_of_a_feasible_policy_ends_in_it() -> None:
    env = toy_env()
    policy = BitPolicy({"conv0": LayerBits(4, 8), "conv1": LayerBits(2, 4), "conv2": LayerBits(2, 2)})
    reward, result, seen = play(env, policy)
    assert result == policy
    assert reward == pytest.approx(0.1 * 100 * (toy_score(policy).top1 - FLOAT.top1)), "HAQ, section 3.3"
    episode = env.transitions(policy)
    assert np.array_equal(np.stack(seen[:-1]), episode.observations)
    assert np.array_equal(np.stack(seen[1:]), episode.next_observations)
    assert episode.dones.tolist() == [0, 0, 0, 0, 0, 1]


def test_the_best_policy_has_the_largest_reward_of_all() -> None:
    """Brute force: no episode earns more than the best feasible policy, and its own episode earns exactly that."""
    env = toy_env()
    names = [layer.name for layer in make_layers(3)]
    every = [
        BitPolicy({n: LayerBits(*widths[2 * i : 2 * i + 2]) for i, n in enumerate(names)})
        for widths in itertools.product(WIDTHS, repeat=6)
    ]
    best = max((policy for policy in every if env.budget.allows(policy)), key=lambda policy: toy_score(policy).top1)
    rewards = {policy: play(env, policy)[0] for policy in every[::7]}
    assert play(env, best)[1] == best
    assert max(rewards.values()) <= play(env, best)[0]


def test_observation_has_haqs_ten_features(layers: list[LayerSpec]) -> None:
    env = toy_env()
    first, _ = env.reset()
    assert first.shape == (10,)
    assert first[8] == 1, "weights first"
    assert first[9] == 1, "as if the widest had been chosen before"
    second = env.step(np.array([0.0], np.float32))[0]
    assert second[8] == 0, "then activations"
    assert second[9] == pytest.approx(4 / 8), "4 of at most 8 bits"
    assert np.array_equal(first[:8], second[:8]), "of the same layer"
    third = env.step(np.array([1.0], np.float32))[0]
    assert third[0] == pytest.approx(1 / 2)
    assert third[1] == pytest.approx((9 - 8) / (10 - 8))


def test_pinned_layers_are_skipped() -> None:
    env = toy_env(share=0.9, pinned={"conv0": LayerBits(8, 8)})
    assert env.steps == 4
    _, policy, _ = play(env, BitPolicy.uniform(["conv0", "conv1", "conv2"], 2))
    assert policy["conv0"] == LayerBits(8, 8)


def test_observations_are_copies_and_reset_starts_afresh() -> None:
    env = toy_env()
    first, _ = env.reset()
    first[:] = 7
    again, _ = env.reset()
    assert again.max() <= 1
    env.step(np.zeros(1, np.float32))
    assert np.array_equal(env.reset()[0], again)


def test_an_sb3_agent_learns_in_it_directly() -> None:
    env = toy_env()
    agent = DDPG("MlpPolicy", env, learning_starts=12, batch_size=8, seed=0)
    agent.learn(24)
    policy, _ = agent.predict(env.reset()[0])
    assert env.action_space.contains(policy)


def test_weights_alone_are_decided_when_the_budget_says_so() -> None:
    layers = make_layers(3)
    table = CostTable.footprint(layers, WIDTHS)
    constraint = Constraint("size", 0.5, relative=True)
    pinned = {"conv0": LayerBits(8, 8)}
    env = BitAllocationEnv(layers, Budget(table, [constraint], WIDTHS, pinned, "kmeans", weights_only=True))
    check_env(env)
    assert env.steps == 2
    env.reset(seed=0)
    policy = None
    for _ in range(env.steps):
        *_, info = env.step(np.array([1.0], np.float32))
        policy = info.get("policy")
    assert policy is not None
    assert policy.scheme == "kmeans"
    assert {bits.a_bits for bits in policy.values()} == {None}
    assert policy["conv0"].w_bits == 8
    assert env.budget.allows(policy)
    transitions = env.transitions(policy)
    assert len(transitions.actions) == 2
    assert transitions.observations[:, 8].tolist() == [1.0, 1.0], "weight steps"


def test_policies_carry_the_scheme() -> None:
    budget = Budget(make_table(3), [Constraint("latency", 0.5, relative=True)], WIDTHS, {}, "lsq")
    policy = budget.uniform(8)
    assert policy.scheme == "lsq"
    assert budget.decrease(policy).scheme == budget.spend(budget.decrease(policy)).scheme == "lsq"
