"""A search in progress: its problem, what all trials share, the baselines to beat, and where results go."""

from __future__ import annotations

from dataclasses import dataclass, replace

from haq.metrics import METRICS, format_cost
from haq.progress import Observer
from haq.quant.evaluation import evaluate
from haq.quant.sample_counts import at_most
from haq.runs import RunFolder, ranked_by
from haq.search.baseline_networks import Baselines, score_baselines
from haq.search.problem import Problem
from haq.search.scoring import choose_rank_by
from haq.search.workload import Workload, make_workload

__all__ = ["Study", "calibrate_study"]


@dataclass(frozen=True)
class Study:
    """What one step of a search passes to the next.

    Attributes:
        problem: Network, data, prices and budget.
        workload: What every trial needs.
        baselines: Networks to compare with.
        folder: The run.
        observer: Receives progress.
    """

    problem: Problem
    workload: Workload
    baselines: Baselines
    folder: RunFolder
    observer: Observer


def calibrate_study(problem: Problem, folder: RunFolder, observer: Observer) -> Study:
    """Calibrates every candidate width, scores the baselines and writes them into the run folder.

    Args:
        problem: Network, data, prices and budget.
        folder: The run; if it already has trials, policies are ranked as before.
        observer: Receives progress.
    """
    config = problem.config
    val = at_most(problem.data.val, problem.effort.validation)
    float_score = replace(evaluate(problem.model, val, "float", threads=config.workers), kl=0.0)
    before = ranked_by(folder.read_trials()) if config.rank_by == "auto" else None
    rank_by = before or choose_rank_by(
        config, problem.data, float_score, observer, config.tuned, problem.effort.few_labels
    )
    workload = make_workload(config, problem, rank_by, observer)
    baselines = score_baselines(problem, workload, float_score, observer)
    folder.write_baselines(baselines.named())
    _introduce(problem, baselines, observer)
    return Study(problem, workload, baselines, folder, observer)


def _introduce(problem: Problem, baselines: Baselines, observer: Observer) -> None:
    free = len(problem.layers) - len(problem.budget.pinned)
    decisions = len(problem.budget.decisions)
    tied = f", in {decisions} decisions" if decisions < free else ""
    budget = ", ".join(str(constraint) for constraint in problem.budget.constraints)
    observer.say(f"{len(problem.layers)} layers, {free} of them free{tied}; budget: {budget}")
    if left := problem.rest.said():
        observer.say(left)
    for name, baseline in baselines.named().items():
        if baseline is not None:
            label = name if name == "float" else f"uniform {baseline.widths} bits"
            shown = [f"top-1 {baseline.score.top1:.1%} on the validation samples"]
            for metric in problem.config.metrics:
                cost = baseline.cost.get(METRICS[metric].field)
                if cost is not None:  # few costs are known in floating point
                    shown.append(f"{metric} {format_cost(METRICS[metric].field, cost)}")
            observer.say(f"{label}: {', '.join(shown)}")
