"""After the last trial: finalists and their uniform rivals are fine-tuned in the same way, tested, and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haq.errors import HaqError
from haq.metrics import METRICS
from haq.policy import BitPolicy
from haq.quant.preparation import save_quantized
from haq.runs import Baseline, BaselineName, Best, Cost, Trial
from haq.search.finals import Finalist, finetune_all, test_all
from haq.search.problem import Problem
from haq.search.study import Study

__all__ = ["FINALISTS", "conclude", "reported", "write_untested"]

_ALWAYS = ("latency_ms", "energy_mj", "size_bytes")  # in every best.json, null where nothing is known

FINALISTS = 2
"""Number of searched networks, and of uniform ones, that are fine-tuned to the end; with AdaRound, one of each."""


@dataclass(frozen=True)
class _Entry:
    """A policy in the finals.

    Attributes:
        name: For messages, such as `finalist 1`.
        policy: Its widths.
        rival: The uniform network with this policy; `None` for a policy that the search found.
    """

    name: str
    policy: BitPolicy
    rival: Baseline | None = None


def conclude(study: Study, ranked: Sequence[Trial]) -> None:
    """Fine-tunes the finalists, chooses one by its validation score, and uses the test images for the only time.

    Args:
        study: The search.
        ranked: Trials inside the budget, best first.

    Raises:
        HaqError: No finalist could be fine-tuned.
    """
    problem, workload, folder, observer = study.problem, study.workload, study.folder, study.observer
    entries = _entries(study, ranked)
    finalists = _finetuned(study, entries)

    def objective(entry: _Entry) -> float:
        return finalists[entry.name].score.objective(workload.rank_by)

    there = [entry for entry in entries if entry.name in finalists]
    chosen = finalists[max(there, key=objective).name]
    if problem.config.finetune_steps and not chosen.score.steps:
        observer.say(
            f"note: {problem.config.finetune_steps} steps of fine-tuning did not improve the chosen network; it is "
            "kept as rounded (--finetune-steps 0 saves the time, more steps may help)"
        )
    networks = {
        "float": problem.model,
        "uniform8": workload.quantized(problem.budget.uniform8),
        "ours": chosen.network(workload),
    }
    strongest = max((entry for entry in there if entry.rival), key=objective, default=None)
    baselines = study.baselines.named(strongest.rival if strongest else None)
    if strongest:
        networks["uniform_same_budget"] = finalists[strongest.name].network(workload)
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


def write_untested(study: Study, trial: Trial) -> None:
    """Writes the best trial of an interrupted search; it is not fine-tuned to the end, nor are test images used."""
    assert trial.score is not None
    study.folder.write_best(
        Best(
            policy=trial.policy,
            top1=trial.score.top1,
            loss=trial.score.loss,
            test_top1=None,
            cost=reported(study.problem, trial.cost),
            constraints=_limits(study.problem),
            baselines=_tested(study.problem, study.baselines.named(), {}),
        )
    )


def reported(problem: Problem, cost: Cost) -> dict[str, float | None]:
    """Returns the costs that every result lists, and those that this search constrains."""
    headlines = (metric.field for metric in METRICS.values() if metric.headline)
    shown = (field for field in headlines if field in (*_ALWAYS, *problem.table.fields))
    fields = dict.fromkeys((*shown, *_limits(problem)))
    return {field: cost.get(field) for field in fields}


def _entries(study: Study, ranked: Sequence[Trial]) -> list[_Entry]:
    """Returns the policies of the finals: uniform rivals, then the best others that the search found."""
    count = 1 if "adaround" in study.workload.passes else FINALISTS  # AdaRound takes minutes for each
    uniform = [
        _Entry(f"uniform {number}", rival.policy, rival)
        for number, rival in enumerate(study.baselines.rivals[:count])
        if rival.policy is not None
    ]
    taken = {entry.policy for entry in uniform}
    searched = [trial.policy for trial in ranked if trial.policy not in taken][:count]
    return [*uniform, *(_Entry(f"finalist {number}", policy) for number, policy in enumerate(searched, 1))]


def _finetuned(study: Study, entries: Sequence[_Entry]) -> dict[str, Finalist]:
    """Fine-tunes all policies; those that fail are reported and left out."""
    config, observer = study.problem.config, study.observer
    reasons: list[str] = []

    def lost(name: str, error: Exception) -> None:
        reasons.append(f"{type(getattr(error, 'cause', error)).__name__}: {' '.join(str(error).split())[-200:]}")
        observer.say(f"note: {name} could not be fine-tuned and is left out; {reasons[-1]}")

    finalists = finetune_all(
        study.workload,
        {entry.name: entry.policy for entry in entries},
        config.finetune_steps,
        lambda done, total: observer.progress("fine-tune" if config.finetune_steps else "finalists", done, total),
        config.gpus_per_trial,
        lost,
    )
    if not finalists:
        raise HaqError(
            f"no finalist could be fine-tuned ({reasons[0]}); the search is kept: try again with `haq search --resume "
            f"{study.folder.path}`, perhaps with fewer workers"
        )
    return finalists


def _tested(
    problem: Problem, baselines: Mapping[BaselineName, Baseline | None], top1: Mapping[str, float]
) -> dict[BaselineName, Mapping[str, Any] | None]:
    return {
        name: {"test_top1": top1.get(name), "cost": reported(problem, baseline.cost)} if baseline else None
        for name, baseline in baselines.items()
    }


def _limits(problem: Problem) -> dict[str, float]:
    """Returns metric field → absolute limit."""
    return {constraint.field: constraint.limit for constraint in problem.budget.constraints}
