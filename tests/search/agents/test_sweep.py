"""Several budgets in one run."""

from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConfigError
from haq.policy import BitPolicy
from haq.registry import AGENTS
from haq.runs.archive import pareto_front
from haq.search import run
from haq.search.agents.sweep import make_sweep, swept_budgets
from haq.testing import Toy
from tests.envs.conftest import WIDTHS, make_table

pytestmark = pytest.mark.usefixtures("in_turn")


def test_budgets_reach_from_the_widest_to_the_tightest() -> None:
    widest = Budget(make_table(3), [Constraint("latency", 0.8, relative=True)], WIDTHS, {})
    budgets = swept_budgets(widest, ["latency"])
    limits = [budget.limit("latency") for budget in budgets]
    assert limits[0] == pytest.approx(widest.limit("latency"))
    assert limits[-1] == pytest.approx(1.05 * widest.reachable("latency"))
    assert limits == sorted(limits, reverse=True)
    assert len(swept_budgets(widest, ["latency", "size"])) > len(budgets)


def test_agents_of_all_budgets_learn_from_every_evaluation(tmp_path: Path) -> None:
    toy = Toy(0)
    sweep, first = make_sweep(AGENTS["predictor"], toy.task, ["size"])
    seen: dict[BitPolicy, float] = {}

    def tell(policy: BitPolicy) -> None:
        seen[policy] = toy.objective(policy)
        sweep.learn(policy, seen[policy])

    for _, policy in first:
        tell(policy)
    for _ in range(12):
        proposal = sweep.propose(seen)
        assert proposal is not None
        assert toy.budget.allows(proposal[1])
        assert proposal[1] not in seen
        tell(proposal[1])
    sizes = {round(toy.budget.table.cost(policy)["size_bytes"]) for policy in seen}
    assert len(sizes) > 5
    sweep.save(tmp_path / "sweep.json", {"kept": 1})
    other, _ = make_sweep(AGENTS["predictor"], toy.task, ["size"])
    assert other.load(tmp_path / "sweep.json") == {"kept": 1}
    for policy, objective in seen.items():
        other.recall(policy, objective)
    assert [other.propose(seen) for _ in range(3)] == [sweep.propose(seen) for _ in range(3)]


def test_a_sweep_finds_a_front(tiny: Path, tmp_path: Path) -> None:
    config = SearchConfig(
        pareto=("latency", "size"), model=f"{tiny}:model", data=f"{tiny}:data", bits=(2, 4, 8), trials=8, qat_steps=0,
        finetune_steps=0, workers=1, pin_ends=False,
    )  # fmt: skip
    folder = run(**config.options(), out=tmp_path / "run")
    trials = folder.read_trials()
    assert len(trials) == 8
    assert folder.read_front() == pareto_front(trials)
    sizes = [trial.cost["size_bytes"] for trial in trials]
    assert max(sizes) > 1.5 * min(sizes)  # type: ignore[operator, type-var]


def test_metrics_of_a_sweep_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"--pareto latncy \(did you mean 'latency'\?\): use some of latency, energy"):
        SearchConfig(pareto=("latncy",))
    with pytest.raises(ConfigError, match="--pareto ram: use some of"):
        SearchConfig(pareto=("ram",))
