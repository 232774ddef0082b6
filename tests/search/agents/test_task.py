"""Checks that every agent passes, what searching agents reach, and the option that chooses an agent."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConfigError
from haq.policy import BitPolicy, LayerBits
from haq.registry import AGENTS
from haq.search import run
from haq.search.agents.task import penalties_of
from haq.search.sensitivity import Sensitivity
from haq.testing import Toy
from tests.envs.conftest import WIDTHS, make_table
from tests.search.conftest import config_for

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Uses one thread, as a search does: more threads only slow down the agents' small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def course(name: str, toy: Toy, evaluations: int, enough: float = float("inf")) -> dict[BitPolicy, float]:
    """Returns the agent's proposals in order, with their outcomes; stops at an outcome of at least `enough`."""
    agent, first = AGENTS[name].agent_for(toy.task)
    seen: dict[BitPolicy, float] = {}
    while len(seen) < evaluations and max(seen.values(), default=0.0) < enough:
        waiting = [(origin, policy) for origin, policy in first if policy not in seen]
        proposal = waiting[0] if waiting else agent.propose(seen)
        if proposal is None:
            break
        seen[proposal[1]] = toy.objective(proposal[1])
        agent.learn(proposal[1], seen[proposal[1]])
    return seen


@pytest.mark.parametrize("name", ["predictor", "ddpg"])
def test_the_optimum_of_a_toy_is_found_in_a_twentieth_of_all_policies(name: str) -> None:
    found = 0
    for seed in range(10 if name == "predictor" else 3):
        toy = Toy(seed)
        best, count = toy.optimum()
        found += max(course(name, toy, count // 20, best * 0.999).values()) >= best * 0.999
    assert found >= (9 if name == "predictor" else 3)


def test_evolution_improves_on_its_first_generation() -> None:
    objectives = list(course("evolution", Toy(3, layers=12), 100).values())
    assert np.mean(objectives[-20:]) > np.mean(objectives[:20])
    assert max(objectives) > max(objectives[:20])


def test_the_uniform_agent_proposes_all_that_fit_widest_first() -> None:
    toy = Toy(0)
    proposed = list(course("uniform", toy, 10))
    assert [policy["conv0"].w_bits for policy in proposed] == [3, 2]


def test_penalties_add_weights_and_activations_and_are_never_negative() -> None:
    budget = Budget(make_table(2), [Constraint("latency", 1.0, relative=True)], WIDTHS, {})
    weights, inputs = np.array([[3.0, 2.0, 1.0], [30.0, 20.0, -10.0]]), np.array([[0.3, 0.2, 0.1], [0.0, 0.0, 0.0]])
    found = penalties_of(Sensitivity("kl", ("conv0", "conv1"), WIDTHS, weights, inputs), budget)
    assert found["conv0"][LayerBits(2, 8)] == pytest.approx(3.1)
    assert found["conv1"][LayerBits(4, 2)] == 20.0
    assert found["conv1"][LayerBits(8, 8)] == 0.0
    assert set(found["conv0"]) == set(budget.pairs)


@pytest.mark.parametrize(
    ("agent", "origins"),
    [
        ("predictor", {"programme", "guided"}),
        ("ddpg", {"programme"}),
        ("haq", {"random"}),
        ("evolution", {"evolution"}),
    ],
)
def test_agents_search(tiny: Path, tmp_path: Path, agent: str, origins: set[str]) -> None:
    config = SearchConfig(
        ("latency=50%",), f"{tiny}:model", data=f"{tiny}:data", bits=(2, 4, 8), trials=7, qat_steps=0,
        finetune_steps=0, workers=1, pin_ends=False, agent=agent,  # type: ignore[arg-type]
    )  # fmt: skip
    folder = run(**config.options(), out=tmp_path / "run")
    trials = folder.read_trials()
    assert origins <= {trial.origin for trial in trials}
    assert len({trial.policy for trial in trials}) == 7
    assert folder.sensitivity.is_file() == (AGENTS[agent].informed)
    if AGENTS[agent].informed:
        assert set(json.loads(folder.sensitivity.read_text())["measures"]) == {"fisher"}


def test_an_unknown_agent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--agent ddgp \(did you mean 'ddpg'\?\): use predictor, ddpg, haq"):
        SearchConfig(("latency=50%",), agent="ddgp")  # type: ignore[arg-type]


def test_a_search_that_has_tried_everything_ends(tiny: Path, tmp_path: Path) -> None:
    found = run(
        **config_for(tiny, agent="uniform", trials=50, qat_steps=0, finetune_steps=0).options(), out=tmp_path / "run"
    )
    assert len(found.trials) < 50
    assert found.finished
