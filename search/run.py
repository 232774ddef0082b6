"""One search from options to run folder."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from haq import __version__
from haq.archive import best_first, pareto_front
from haq.config import SearchConfig
from haq.constraints import METRICS, format_cost
from haq.errors import ConfigError, HaqError
from haq.policy import BitPolicy
from haq.quant.evaluation import evaluate
from haq.quant.preparation import save_quantized
from haq.runs import Baseline, Best, RunFolder, Trial
from haq.search.cluster import ray_workers
from haq.search.finals import Finalist, finetune_all, test_all
from haq.search.observer import Observer, Silent
from haq.search.problem import Problem, pose
from haq.search.references import references, uniform_rivals
from haq.search.tuning import search
from haq.search.workload import Workload, choose_rank_by, make_workload

__all__ = ["resume", "run"]

_FINALISTS = 2


def run(config: SearchConfig, out: Path, observer: Observer | None = None) -> RunFolder:
    """Searches, fine-tunes the winner, tests it, and writes a run folder.

    Everything in the options is checked before the folder is made. After Ctrl-C the folder holds what was found.

    Args:
        config: Options.
        out: The run folder; it must not exist.
        observer: Receives progress.

    Raises:
        HaqError: Anything wrong with the options.
    """
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; go on with `haq search --resume {out}`, or give another --out")
    config = config.with_absolute_paths()
    observer = observer or Silent()
    with _one_thread():
        problem = pose(config, observer)
        folder = RunFolder(out)
        with ray_workers(config.workers, config.address, config.gpus_per_trial):
            out.mkdir(parents=True)
            folder.write_config(config, _environment())
            folder.write_layers(problem.layers)
            problem.table.save(folder.costs)
            _complete(config, problem, folder, observer)
    return folder


def resume(path: Path, observer: Observer | None = None) -> RunFolder:
    """Goes on with a search that was interrupted; no finished trial is lost or run twice.

    Args:
        path: The run folder.
        observer: Receives progress.

    Raises:
        HaqError: `path` is not a run folder, or what it names is no longer there.
    """
    folder = RunFolder.open(path)
    config = folder.read_config()
    observer = observer or Silent()
    if folder.finished:
        observer.say(f"{path} is finished; nothing is left to do")
        return folder
    with _one_thread():
        problem = pose(config, observer)
        with ray_workers(config.workers, config.address, config.gpus_per_trial):
            _complete(config, problem, folder, observer)
    return folder


def _complete(config: SearchConfig, problem: Problem, folder: RunFolder, observer: Observer) -> None:
    """Does all that follows from a posed problem: baselines, trials, finals, results."""
    float_score = evaluate(problem.model, problem.data.val, "float")
    rank_by = choose_rank_by(config, problem.data, float_score, observer)
    workload = make_workload(config, problem, rank_by, observer)
    rivals = uniform_rivals(problem, workload)
    baselines = references(problem, workload, float_score, rivals)
    folder.write_baselines(baselines)
    _introduce(problem, baselines, observer)

    def on_trial(trials: list[Trial]) -> None:
        best = best_first(trials)
        note = f"best {best[0].score.top1:.1%}" if best and best[0].score else ""
        observer.progress("search", len(trials), config.trials, note)

    trials = search(config, problem, workload, float_score, folder, observer, on_trial)
    ranked = best_first(trials)
    if not ranked:
        reasons = sorted({trial.error or "unknown" for trial in trials})
        raise HaqError(f"no policy could be scored: all {len(trials)} trials failed ({'; '.join(reasons)[:300]})")
    folder.write_front(pareto_front(trials))
    if len(trials) < config.trials:
        observer.say(f"interrupted after {len(trials)} of {config.trials} trials")
        folder.write_best(_untested(problem, ranked[0], baselines))
        return
    _finish(config, problem, workload, ranked, baselines, rivals, folder, observer)


def _introduce(problem: Problem, baselines: dict[Any, Baseline | None], observer: Observer) -> None:
    free = len(problem.layers) - len(problem.budget.pinned)
    observer.say(f"{len(problem.layers)} layers, {free} of them free; budget: {_budget_text(problem)}")
    for name, baseline in baselines.items():
        if baseline is not None:
            metric = "latency" if "latency_ms" in baseline.cost else "size"
            cost = format_cost(METRICS[metric].field, baseline.cost[METRICS[metric].field])
            label = name if name == "float" else f"uniform {baseline.widths} bits"
            observer.say(f"{label}: top-1 {baseline.score.top1:.1%} on the validation samples, {metric} {cost}")


def _budget_text(problem: Problem) -> str:
    return ", ".join(str(constraint) for constraint in problem.budget.constraints)


def _finish(
    config: SearchConfig,
    problem: Problem,
    workload: Workload,
    ranked: list[Trial],
    baselines: dict[Any, Baseline | None],
    rivals: list[tuple[BitPolicy, Baseline]],
    folder: RunFolder,
    observer: Observer,
) -> None:
    """Fine-tunes the finalists, chooses by validation, and touches the test images for the only time."""
    policies = {f"uniform {number}": policy for number, (policy, _) in enumerate(rivals[:_FINALISTS])}
    searched = [trial.policy for trial in ranked if trial.policy not in policies.values()]
    policies |= {f"finalist {number}": policy for number, policy in enumerate(searched[:_FINALISTS], 1)}
    finalists = finetune_all(
        workload,
        policies,
        config.finetune_steps,
        lambda done, total: observer.progress("fine-tune", done, total),
        config.gpus_per_trial,
    )

    def objective(finalist: Finalist) -> float:
        return finalist.score.objective(workload.rank_by)

    chosen = max(finalists.values(), key=objective)
    networks = {
        "float": problem.model,
        "uniform8": workload.quantized(problem.budget.uniform(8)),
        "ours": chosen.network(workload),
    }
    if rivals:
        strongest = max(range(len(rivals[:_FINALISTS])), key=lambda number: objective(finalists[f"uniform {number}"]))
        networks["uniform_same_budget"] = finalists[f"uniform {strongest}"].network(workload)
        baselines["uniform_same_budget"] = rivals[strongest][1]
        folder.write_baselines(baselines)
    top1 = test_all(networks, problem.data.test, lambda done, total: observer.progress("test", done, total))
    save_quantized(folder.model, networks["ours"], chosen.policy, problem.sample)
    folder.write_best(
        Best(
            policy=chosen.policy,
            top1=chosen.score.top1,
            loss=chosen.score.loss,
            test_top1=top1["ours"],
            cost=_reported(problem.table.cost(chosen.policy)),
            constraints=_limits(problem),
            baselines=_tested(baselines, top1),
        )
    )


def _untested(problem: Problem, trial: Trial, baselines: dict[Any, Baseline | None]) -> Best:
    """The best trial of an interrupted search: not fine-tuned to the end, and the test images are still unseen."""
    assert trial.score is not None
    return Best(
        policy=trial.policy,
        top1=trial.score.top1,
        loss=trial.score.loss,
        test_top1=None,
        cost=_reported(trial.cost),
        constraints=_limits(problem),
        baselines=_tested(baselines, {}),
    )


def _tested(baselines: dict[Any, Baseline | None], top1: dict[str, float]) -> dict[Any, Any]:
    return {
        name: {"test_top1": top1.get(name), "cost": _reported(baseline.cost)} if baseline else None
        for name, baseline in baselines.items()
    }


def _reported(cost: Any) -> dict[str, float | None]:
    return {field: cost.get(field) for field in ("latency_ms", "energy_mj", "size_bytes")}


def _limits(problem: Problem) -> dict[str, float]:
    return {constraint.field: constraint.limit for constraint in problem.budget.constraints}


def _environment() -> dict[str, Any]:
    """Versions and machine, to repeat the search with."""
    packages = ("torch", "ray", "stable-baselines3", "gymnasium", "numpy")
    return {
        "haq": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{package: version(package) for package in packages},
    }


def _git_commit() -> str | None:
    """The commit of this source checkout; `None` for an installed package."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None


@contextmanager
def _one_thread() -> Iterator[None]:
    """The workers need the cores, and the agent's small networks are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
