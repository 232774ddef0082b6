import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.tune.search import Searcher

from haq.envs import BitAllocationEnv, Budget
from haq.policy import BitPolicy, LayerBits
from haq.runs import Trial
from haq.scores import Score
from haq.search.agents.ddpg import DDPGAgent
from haq.search.agents.episode_agent import Walker
from haq.search.tune.searcher import HOPELESS, METRIC, BitSearcher
from tests.envs.conftest import make_layers
from tests.search.conftest import FLOAT, best_of_all, toy_objective


def make(env: BitAllocationEnv, seed: int = 0, warmup: int = 5) -> BitSearcher:
    first = [("uniform", env.budget.uniform(4))]
    return BitSearcher(Walker(env, DDPGAgent(env, warmup, seed)), first)


def trial(number: int, policy: BitPolicy) -> Trial:
    score = Score(toy_objective(policy), 0.1, 100, 0.0, "ptq")
    return Trial(number, policy, "agent", {}, (score,), score.top1, 0.0)


def play(searcher: BitSearcher, trials: int, start: int = 0) -> list[BitPolicy]:
    policies = []
    for number in range(start, start + trials):
        config = searcher.suggest(f"t{number}")
        assert isinstance(config, dict)
        policies.append(BitPolicy.from_dict(json.loads(config["policy"])))
        ended = trial(number, policies[-1]).to_dict()
        searcher.on_trial_complete(f"t{number}", {METRIC: ended["objective"], "scores": ended["scores"]})
    return policies


def test_proposals_fit_the_budget_and_are_never_repeated(env: BitAllocationEnv) -> None:
    policies = play(make(env), 40)
    assert all(env.budget.allows(policy) for policy in policies)
    assert len(set(policies)) == 40
    assert policies[0] == env.budget.uniform(4)


def test_the_same_seed_gives_the_same_policies(env: BitAllocationEnv) -> None:
    assert play(make(env), 15) == play(make(env), 15)
    assert play(make(env), 15) != play(make(env, seed=1), 15)


def test_a_restored_searcher_proposes_the_same_as_the_original(env: BitAllocationEnv, tmp_path: Path) -> None:
    uninterrupted = play(make(env), 20)
    first = make(env)
    before = play(first, 12)
    first.suggest("killed while it runs")
    saved = make(env)
    play(saved, 12)
    saved.save(str(tmp_path / "state.pt"))
    torch.load(tmp_path / "state.pt", weights_only=True)
    np.random.seed(99)
    torch.manual_seed(99)
    restored = make(env)
    restored.restore(str(tmp_path / "state.pt"), [trial(number, policy) for number, policy in enumerate(before, 1)])
    assert before + play(restored, 8, start=12) == uninterrupted


def test_a_running_trial_is_proposed_again_after_a_restore(env: BitAllocationEnv, tmp_path: Path) -> None:
    searcher = make(env)
    running = searcher.suggest("a")
    searcher.save(str(tmp_path / "state.pt"))
    restored = make(env)
    restored.restore(str(tmp_path / "state.pt"))
    assert restored.suggest("b") == running


def test_a_failed_trial_is_the_worst_outcome(env: BitAllocationEnv) -> None:
    seen: list[object] = []
    agent = DDPGAgent(env, 5, 0)
    searcher = BitSearcher(Walker(env, agent), finished=lambda _, proposal, result: seen.append(result))
    searcher.suggest("a")
    searcher.on_trial_complete("a", None, error=True)
    assert seen == [None]
    rewards = agent._buffer.rewards[: env.steps]
    assert rewards.flatten().tolist() == pytest.approx([env.reward(0.0)] * env.steps)


def test_it_finishes_when_no_new_policy_is_left(env: BitAllocationEnv) -> None:
    pair = (LayerBits(2, 2),)
    budget = Budget(env.budget.table, [], [2], {}, candidates=dict.fromkeys(env.budget.table.layers, pair))
    only = BitAllocationEnv(make_layers(3), budget, float_score=FLOAT)
    searcher = BitSearcher(Walker(only, DDPGAgent(only, 5, 0)))
    play(searcher, 1)
    assert searcher.suggest("more") == Searcher.FINISHED


@pytest.mark.parametrize("seed", [0, 1])
def test_the_toys_optimum_is_reached_within_a_percent(env: BitAllocationEnv, seed: int) -> None:
    searcher, enough = make(env, seed, warmup=10), best_of_all(env.budget) - 0.01
    assert any(toy_objective(policy) >= enough for number in range(120) for policy in play(searcher, 1, number))


def test_actions_are_in_range_and_noise_shrinks(env: BitAllocationEnv) -> None:
    agent = DDPGAgent(env, warmup=0, seed=0)
    observation, _ = env.reset()
    early = np.array([agent.act(observation)[0] for _ in range(200)])
    agent.episodes = 400
    late = np.array([agent.act(observation)[0] for _ in range(200)])
    assert early.min() >= -1
    assert early.max() <= 1
    assert late.std() < 0.1 < early.std()


def test_a_search_whose_first_trials_all_fail_is_stopped(env: BitAllocationEnv, tmp_path: Path) -> None:
    searcher = make(env)
    for number in range(HOPELESS):
        assert isinstance(searcher.suggest(f"t{number}"), dict)
        searcher.on_trial_complete(f"t{number}", None, error=True)
    assert searcher.suggest("more") == Searcher.FINISHED
    searcher.save(str(tmp_path / "state.pt"))
    restored = make(env)
    restored.restore(str(tmp_path / "state.pt"))
    assert isinstance(restored.suggest("more"), dict), "a resumed search starts counting failures again"


def test_one_trial_that_is_scored_keeps_a_search_going(env: BitAllocationEnv) -> None:
    searcher = make(env)
    play(searcher, 1)
    for number in range(2 * HOPELESS):
        searcher.suggest(f"f{number}")
        searcher.on_trial_complete(f"f{number}", None, error=True)
    assert isinstance(searcher.suggest("more"), dict)


def test_the_stop_condition_is_checked_before_every_proposal(env: BitAllocationEnv) -> None:
    searcher = make(env)
    play(searcher, 2)
    searcher._stopped = lambda: True
    assert searcher.suggest("more") == Searcher.FINISHED


def test_the_last_outcome_comes_back_with_the_state(env: BitAllocationEnv, tmp_path: Path) -> None:
    searcher = make(env)
    (policy,) = play(searcher, 1)
    last = trial(1, policy)
    searcher.save(str(tmp_path / "state.pt"), last)
    assert make(env).restore(str(tmp_path / "state.pt"), []) == [last], "its line in trials.jsonl was lost"
    assert make(env).restore(str(tmp_path / "state.pt"), [last]) == []
