"""The battery for agents accepts ours, and names what others do wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haq.policy import BitPolicy
from haq.registry import AGENTS
from haq.search.agents.baselines import Random
from haq.search.agents.lattice import Lattice
from haq.testing import check_agent


@pytest.mark.parametrize("name", AGENTS)
def test_agents_that_ship_with_haq_pass(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    check_agent(name)
    torch.set_num_threads(threads)


class Right(Random):
    def __init__(self, task: Any) -> None:
        super().__init__(Lattice(task.budget), task.seed)
        self.budget = task.budget


class Over(Right):
    def propose(self, seen):
        return "over", self.budget.uniform(8)


class Again(Right):
    def propose(self, seen):
        return "again", next(iter(seen), self.budget.decrease(self.budget.uniform(8)))


class Nameless(Right):
    def propose(self, seen):
        found = super().propose(seen)
        return (None, found[1]) if found else None


class Forgetful(Right):
    def load(self, path: Path) -> dict[str, Any]:
        super().load(path)
        return {}


class Counting(Right):
    """Its proposals depend on a counter that `save` leaves out."""

    count = 0

    def propose(self, seen):
        self.count += 1
        rows = Lattice(self.budget)
        for policy in map(rows.policy, rows.random(np.random.default_rng(self.count), 400)):
            if self.budget.allows(policy) and policy not in seen:
                return "counting", policy
        return None

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        path.write_text(json.dumps(extra))


SHARED: list[Right] = []


def shared(task: Any) -> Right:
    SHARED.append(Right(task))
    return SHARED[0]


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (Over, "a proposal is outside the budget"),
        (Again, "a policy that was scored before is proposed again"),
        (Nameless, "the origin of a proposal must be text, not None"),
        (Forgetful, "load does not return the `extra` that save was given"),
        (Counting, "a restored agent proposes other policies: save leaves part of its state out"),
        (shared, "the function returns the same agent twice; make one for each task"),
    ],
)
def test_wrong_agents_are_found_out(agent: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_agent(agent)


def test_a_right_one_passes() -> None:
    check_agent(Right)


def test_first_policies_count() -> None:
    def outside(task: Any) -> Any:
        return Right(task), [("first", BitPolicy(dict.fromkeys(task.budget.table.layers, task.budget.pairs[-1])))]

    with pytest.raises(AssertionError, match="a first policy is outside the budget"):
        check_agent(outside)
