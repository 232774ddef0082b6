"""An agent of a user's that does wrong ends a search in one line, and loses no trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haq.errors import ConfigError
from haq.policy import BitPolicy, LayerBits
from haq.runs import RunFolder
from haq.search import run
from haq.search.agents import AgentKind
from haq.search.agents.baselines import Stateless
from tests.search.conftest import config_for


class Fits(Stateless):
    """Proposes the one policy that every test may score."""

    def __init__(self, task: Any) -> None:
        self.budget = task.budget

    def propose(self, seen):
        policy = self.budget.decrease(self.budget.uniform(8))
        return None if policy in seen else ("fits", policy)


def proposing(what: Callable[[Any, Any], object]) -> type[Fits]:
    return type("Proposing", (Fits,), {"propose": lambda self, seen: what(self.budget, seen)})


def uniform(budget: Any) -> BitPolicy:
    least: BitPolicy = budget.uniform(2)
    return least


class Unlearning(Fits):
    def learn(self, policy: BitPolicy, objective: float) -> None:
        raise ValueError("two\nlines")


class Uninformed(Fits):
    def __init__(self, task: Any) -> None:
        self.known = task.penalties


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (proposing(lambda budget, seen: ("over", budget.uniform(8))), r"the agent \(over\) proposed a policy outside"),
        (proposing(lambda budget, seen: 1 / 0), "the agent's propose raised ZeroDivisionError: division by zero"),
        (proposing(lambda budget, seen: budget.uniform(2)), r"the agent's propose returned BitPolicy.*return \(origin"),
        (proposing(lambda budget, seen: ("x", BitPolicy({"no": LayerBits(4, 4)}))), "of other layers, such as"),
        (
            proposing(lambda budget, seen: ("x", BitPolicy({**uniform(budget), "conv1": LayerBits(4, 3)}))),
            "no candidate",
        ),
        (proposing(lambda budget, seen: ("x", budget.decrease(budget.uniform(8)))), "that was scored before"),
        (Unlearning, "the agent's learn raised ValueError: two lines"),
        (Uninformed, r"the agent reads task.penalties; make its kind with AgentKind\(..., informed=True\)"),
        (lambda task: 1 / 0, "the agent's make raised ZeroDivisionError"),
    ],
)
def test_a_wrong_agent_is_named(agent: Any, message: str, tiny: Path, tmp_path: Path) -> None:
    options = config_for(tiny, trials=3, qat_steps=0, finetune_steps=0).options()
    with pytest.raises(ConfigError, match=message) as found:
        run(**{**options, "agent": AgentKind(agent)}, out=tmp_path / "run")
    assert "\n" not in str(found.value)
    trials = RunFolder.open(tmp_path / "run").read_trials()
    assert len(trials) == (1 if "before" in message or agent is Unlearning else 0), "what was scored is kept"
