"""What follows the last trial: finalists and their uniform rivals are fine-tuned alike, tested, and written down."""

from __future__ import annotations

from typing import Any

from haq.errors import HaqError
from haq.policy import BitPolicy
from haq.quant.preparation import save_quantized
from haq.runs import Baseline, Best, Cost, RunFolder, Trial
from haq.search.finals import Finalist, finetune_all, test_all
from haq.search.observer import Observer
from haq.search.problem import Problem
from haq.search.workload import Workload

__all__ = ["FINALISTS", "conclude", "reported", "untested"]

FINALISTS = 2
"""So many of the search, and so many uniform networks, are fine-tuned to the end; after AdaRound, one of each."""


def conclude(
    problem: Problem,
    workload: Workload,
    ranked: list[Trial],
    baselines: dict[Any, Baseline | None],
    rivals: list[tuple[BitPolicy, Baseline]],
    folder: RunFolder,
    observer: Observer,
) -> None:
    """Fine-tunes the finalists, chooses by validation, and touches the test images for the only time."""
    count = 1 if "adaround" in workload.passes else FINALISTS  # which takes minutes for each
    policies = {f"uniform {number}": policy for number, (policy, _) in enumerate(rivals[:count])}
    searched = [trial.policy for trial in ranked if trial.policy not in policies.values()]
    policies |= {f"finalist {number}": policy for number, policy in enumerate(searched[:count], 1)}
    losses: list[str] = []
    steps = problem.config.finetune_steps

    def lost(name: str, error: Exception) -> None:
        losses.append(f"{type(getattr(error, 'cause', error)).__name__}: {' '.join(str(error).split())[-200:]}")
        observer.say(f"note: {name} could not be fine-tuned and is left out; {losses[-1]}")

    finalists = finetune_all(
        workload,
        policies,
        steps,
        lambda done, total: observer.progress("fine-tune" if steps else "finalists", done, total),
        problem.config.gpus_per_trial,
        lost,
    )
    if not finalists:
        raise HaqError(
            f"no finalist could be fine-tuned ({losses[0]}); the search is kept: try again with `haq search --resume "
            f"{folder.path}`, perhaps with fewer workers"
        )

    def objective(finalist: Finalist) -> float:
        return finalist.score.objective(workload.rank_by)

    chosen = max(finalists.values(), key=objective)
    if steps and not chosen.score.steps:
        observer.say(
            f"note: {steps} steps of fine-tuning brought the chosen network no closer; it stays as it was rounded "
            "(--finetune-steps 0 saves the time, more steps may go further)"
        )
    networks = {
        "float": problem.model,
        "uniform8": workload.quantized(problem.budget.uniform(8)),
        "ours": chosen.network(workload),
    }
    tuned = [number for number in range(FINALISTS) if f"uniform {number}" in finalists]
    if tuned:
        strongest = max(tuned, key=lambda number: objective(finalists[f"uniform {number}"]))
        networks["uniform_same_budget"] = finalists[f"uniform {strongest}"].network(workload)
        baselines["uniform_same_budget"] = rivals[strongest][1]
        folder.write_baselines(baselines)
    top1 = test_all(networks, problem.data.test, lambda done, total: observer.progress("test", done, total))
    save_quantized(folder.model, networks["ours"], chosen.policy, problem.sample, workload.folded)
    folder.seal(folder.model)
    folder.write_best(
        Best(
            policy=chosen.policy,
            top1=chosen.score.top1,
            loss=chosen.score.loss,
            test_top1=top1["ours"],
            cost=reported(problem, problem.table.cost(chosen.policy)),
            constraints=_limits(problem),
            baselines=_tested(problem, baselines, top1),
        )
    )


def untested(problem: Problem, trial: Trial, baselines: dict[Any, Baseline | None]) -> Best:
    """The best trial of an interrupted search: not fine-tuned to the end, and the test images are still unseen."""
    assert trial.score is not None
    return Best(
        policy=trial.policy,
        top1=trial.score.top1,
        loss=trial.score.loss,
        test_top1=None,
        cost=reported(problem, trial.cost),
        constraints=_limits(problem),
        baselines=_tested(problem, baselines, {}),
    )


def _tested(problem: Problem, baselines: dict[Any, Baseline | None], top1: dict[str, float]) -> dict[Any, Any]:
    return {
        name: {"test_top1": top1.get(name), "cost": reported(problem, baseline.cost)} if baseline else None
        for name, baseline in baselines.items()
    }


def reported(problem: Problem, cost: Cost) -> dict[str, float | None]:
    """Returns the costs that every result tells, and those that this search was held to."""
    fields = dict.fromkeys(("latency_ms", "energy_mj", "size_bytes", *_limits(problem)))
    return {field: cost.get(field) for field in fields}


def _limits(problem: Problem) -> dict[str, float]:
    """Returns metric field → absolute limit."""
    return {constraint.field: constraint.limit for constraint in problem.budget.constraints}
