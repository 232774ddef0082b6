"""Checks that every agent must pass, on a problem that is small enough to enumerate."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from haq.constraints import Constraint
from haq.envs import Budget
from haq.hwmodels import CostTable
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits
from haq.registry import AGENTS
from haq.scores import Score
from haq.search.agents.protocol import Agent, AgentKind
from haq.search.agents.task import Task, penalties_of
from haq.search.sensitivity import Sensitivity

__all__ = ["Toy", "check_agent"]

_WIDTHS = (2, 3, 4, 8)
_STEPS, _MORE, _AT_ONCE = 24, 4, 4


class Toy:
    """A few layers whose weights have four widths; their losses interact, so that a sum of penalties is not exact.

    Args:
        seed: Seed of the layers' sensitivities.
        trials: Total number of policies that the agent expects to be scored.
        layers: Number of layers.
        ruled: Whether one layer is pinned, one has candidates of its own, and two are tied.

    Attributes:
        budget: A size of at most 45 % of that at 8 bits.
        task: The task that an agent gets.
    """

    def __init__(self, seed: int, trials: int = 60, layers: int = 5, ruled: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.layers = [_layer(number) for number in range(layers)]
        limits = [Constraint("size", 0.45, relative=True)]
        pinned, own, ties = _rules() if ruled else ({}, {}, ())
        self.budget = Budget(_table(self.layers), limits, _WIDTHS, pinned, a_bits=(8,), candidates=own, ties=ties)
        rates = rng.uniform(0.2, 2.0, (layers, 1))
        lost = rates * 4.0 ** -(np.array(_WIDTHS, float) - 2)
        names = tuple(layer.name for layer in self.layers)
        sensitivity = Sensitivity("kl", names, _WIDTHS, lost, np.zeros_like(lost))
        self.penalties = penalties_of(sensitivity, self.budget)
        self._together = np.triu(rng.uniform(0.0, 3.0, (layers, layers)), 1)
        self.task = Task(self.layers, self.budget, sensitivity, Score(1.0, 0.01, 1, 0.0, "float"), "loss", trials, seed)

    def objective(self, policy: BitPolicy) -> float:
        """Returns the objective of a policy, between 0 and 1."""
        parts = np.array([self.penalties[name][bits] for name, bits in policy.items()])
        return float(np.exp(-(parts.sum() + parts @ self._together @ parts)))

    def optimum(self) -> tuple[float, int]:
        """Returns the best objective inside the budget, and the total number of policies."""
        budget = self.budget
        every = []
        for pairs in itertools.product(*(budget.candidates(layers[0]) for layers in budget.decisions)):
            chosen = {name: pair for layers, pair in zip(budget.decisions, pairs, strict=True) for name in layers}
            every.append(BitPolicy({**budget.uniform8, **chosen}))
        return max(self.objective(policy) for policy in every if self.budget.allows(policy)), len(every)


def check_agent(agent: str | AgentKind | Callable[[Task], Agent]) -> None:
    """Checks an agent's proposals, with outcomes in another order as well, and that saving keeps its whole state.

    Args:
        agent: A name in `haq.registry.AGENTS`, a kind, or a function that makes an agent for a task.

    Raises:
        AssertionError: A check fails; the message says what the agent does wrong.
    """
    kind = AgentKind.of(AGENTS[agent] if isinstance(agent, str) else agent, str(agent))
    _check_proposals(kind, Toy(0))
    _check_outcomes_that_come_late(kind)
    with tempfile.TemporaryDirectory() as folder:
        _check_restoring(kind, Path(folder) / "agent")
    _check_proposals(kind, Toy(0, ruled=True))


def _check_proposals(kind: AgentKind, toy: Toy) -> None:
    agent, first = kind.agent_for(toy.task)
    for _, policy in first:
        fault = toy.budget.fault(policy)
        assert fault is None, f"a first policy has {fault}; see Budget.decisions and Budget.candidates"
        assert toy.budget.allows(policy), f"a first policy is outside the budget: {policy.widths()}"
    seen = {policy: toy.objective(policy) for _, policy in first}
    _learn(agent, seen)
    _proposed(agent, toy, seen, _STEPS)


def _check_outcomes_that_come_late(kind: AgentKind) -> None:
    """Several policies are scored at a time, and outcomes come back in another order."""
    toy = Toy(1)
    agent, first = kind.agent_for(toy.task)
    seen = {policy: toy.objective(policy) for _, policy in first}
    _learn(agent, seen)
    waiting: list[BitPolicy] = []
    for _ in range(_STEPS):
        proposal = agent.propose(seen)
        if proposal is None:
            break
        assert proposal[1] not in seen, "a policy is proposed again while it is being scored"
        seen[proposal[1]] = toy.objective(proposal[1])
        waiting.append(proposal[1])
        if len(waiting) == _AT_ONCE:
            done = waiting.pop(2)
            agent.learn(done, seen[done])
    agent.learn(toy.budget.decrease(toy.budget.uniform(8)), 0.0)  # a failed trial


def _check_restoring(kind: AgentKind, path: Path) -> None:
    toy = Toy(2, trials=8)
    one, first = kind.agent_for(toy.task)
    seen = {policy: toy.objective(policy) for _, policy in first}
    _learn(one, seen)
    _proposed(one, toy, seen, _MORE)
    one.save(path, {"kept": [1]})
    other, _ = kind.agent_for(toy.task)
    assert other is not one, "the function returns the same agent twice; make one for each task"
    assert other.load(path) == {"kept": [1]}, "load does not return the `extra` that save was given"
    for policy, objective in seen.items():
        other.recall(policy, objective)
    expected, found = _proposed(one, toy, dict(seen), _MORE), _proposed(other, toy, dict(seen), _MORE)
    assert found == expected, "a restored agent proposes other policies: save leaves part of its state out"


def _learn(agent: Agent, outcomes: dict[BitPolicy, float]) -> None:
    for policy, objective in outcomes.items():
        agent.learn(policy, objective)


def _proposed(agent: Agent, toy: Toy, seen: dict[BitPolicy, float], steps: int) -> list[BitPolicy]:
    """Lets the agent propose and learn; ends early if it has nothing left to propose."""
    proposed = []
    for _ in range(steps):
        proposal = agent.propose(seen)
        if proposal is None:
            break
        origin, policy = proposal
        assert isinstance(origin, str), f"the origin of a proposal must be text, not {origin!r}"
        fault = toy.budget.fault(policy)
        assert fault is None, f"a proposal has {fault}; see Budget.decisions and Budget.candidates"
        assert toy.budget.allows(policy), f"a proposal is outside the budget: {policy.widths()}"
        assert policy not in seen, f"a policy that was scored before is proposed again: {policy.widths()}"
        seen[policy] = toy.objective(policy)
        proposed.append(policy)
        agent.learn(policy, seen[policy])
    return proposed


def _layer(number: int) -> LayerSpec:
    channels, filters = 8 + number, 9 + number
    params = channels * filters * 9
    return LayerSpec(
        f"conv{number}", "conv", channels, filters, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8),
        64 * params, params, 0,
    )  # fmt: skip


def _rules() -> tuple[dict[str, LayerBits], dict[str, tuple[LayerBits, ...]], tuple[tuple[str, ...], ...]]:
    """Returns a pinned layer, candidates of another, and a tie."""
    own = tuple(LayerBits(width, 8) for width in (3, 8))
    return {"conv4": LayerBits(4, 8)}, {"conv1": own}, (("conv0", "conv2"),)


def _table(layers: list[LayerSpec]) -> CostTable:
    """Returns costs that grow with the widths, at a different rate for every layer; size depends on weights only."""
    rates = np.random.default_rng(0).uniform(0.5, 2.0, (len(layers), 1, 1))
    w, a = np.array(_WIDTHS, float)[:, None], np.array(_WIDTHS, float)[None, :]
    metrics = {"latency_ms": rates * w * a / 64, "size_bytes": rates * np.broadcast_to(w, (len(w), len(w))) * 100}
    names = tuple(layer.name for layer in layers)
    return CostTable("toy", 1, names, _WIDTHS, _WIDTHS, metrics, "modelled", "test")
