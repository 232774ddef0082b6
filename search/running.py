"""One search from options to run folder."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from haq import __version__
from haq.config import SearchConfig
from haq.constraints import METRICS, format_cost
from haq.errors import ConfigError, HaqError
from haq.io.files import making
from haq.io.output_paths import check_folder
from haq.quant.evaluation import evaluate
from haq.runs import Baseline, RunFolder, Trial, ranked_by
from haq.runs.archive import best_first, best_of, pareto_front
from haq.runs.project import keep_float
from haq.runs.relocation import Named, config_of
from haq.search.agents.agent_state import check_state
from haq.search.baseline_networks import references, uniform_rivals
from haq.search.conclusion import FINALISTS, conclude, untested
from haq.search.observer import Observer, Silent
from haq.search.problem import Problem, pose
from haq.search.resume_checks import check_belonging
from haq.search.scoring import choose_rank_by
from haq.search.tune.cluster import more_processes, only_here, ray_workers
from haq.search.tune.tuning import search
from haq.search.workload import make_workload
from haq.threads import one_thread

__all__ = ["complete", "resume", "run"]

_START_S = 5.0  # a process takes about so long to import what tasks need


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
    check_folder(out, "haq search")
    observer = observer or Silent()
    with one_thread():
        problem = pose(config, observer)
        folder = RunFolder(out)
        with ray_workers(config.workers, config.address, config.gpus_per_trial):
            with making(out) as path:
                made = RunFolder(path)
                made.write_config(problem.config, _environment(), out)
                made.write_layers(problem.layers)
                problem.table.save(made.costs)
                made.write_identity(problem.identity)
                keep_float(made, problem.config, problem.model)
            _prepared(out, observer)
            with folder.locked():
                complete(problem, folder, observer)
    return folder


def resume(path: Path, observer: Observer | None = None, named: Named | None = None) -> RunFolder:
    """Goes on with a search that was interrupted; no finished trial is lost or run twice.

    Args:
        path: The run folder.
        observer: Receives progress.
        named: What takes the place of the model, data and hardware that the run names; the run folder keeps it.

    Raises:
        HaqError: `path` is not a run folder, or what it names is no longer there or has changed.
    """
    folder = RunFolder.open(path)
    if folder.training.is_file():
        raise ConfigError(f"{str(path)!r} is a fine-tuning; go on with `haq finetune --resume {path}`")
    config = config_of(folder, named)
    folder.read_trials()  # what is damaged is known before anything is done
    check_state(folder.searcher)
    observer = observer or Silent()
    if folder.finished:
        observer.say(f"{path} is finished; nothing is left to do")
        return folder
    with one_thread():
        problem = pose(config, observer, folder)
        check_belonging(folder, problem)
        with folder.locked(), ray_workers(config.workers, config.address, config.gpus_per_trial):
            if problem.config != folder.read_config():  # the project was moved, or named anew
                folder.write_config(problem.config, folder.read_environment())
            _prepared(path, observer)
            complete(problem, folder, observer)
    return folder


def _prepared(path: Path, observer: Observer) -> None:
    observer.progress("prepare", 1, 1)
    observer.say(f"run folder: {path}")


def complete(problem: Problem, folder: RunFolder, observer: Observer) -> None:
    """Does all that follows from a posed problem: baselines, trials, finals, results."""
    config = problem.config
    float_score = replace(evaluate(problem.model, problem.data.val, "float", threads=config.workers), kl=0.0)
    before = ranked_by(folder.read_trials()) if config.rank_by == "auto" else None
    rank_by = before or choose_rank_by(config, problem.data, float_score, observer, config.tuned)
    workload = make_workload(config, problem, rank_by, observer)
    rivals = uniform_rivals(problem, workload)
    baselines = references(problem, workload, float_score, rivals)
    folder.write_baselines(baselines)
    _introduce(problem, baselines, observer)

    best: Trial | None = None

    def on_trial(trials: list[Trial]) -> None:
        nonlocal best
        best = best_of(trials if best is None else [best, trials[-1]], config.cost_fields)
        note = f"best {best.score.top1:.1%}" if best and best.score else ""
        observer.progress("search", len(trials), config.trials, note)
        apart = config.finetune_steps or workload.folded or not only_here(config.gpus_per_trial)
        if apart and len(trials) == config.trials // 2 and trials[-1].elapsed_s > _START_S:  # else it ends before
            more_processes(min(config.workers, 2 * FINALISTS))

    trials, interrupted = search(problem, workload, float_score, folder, observer, on_trial)
    ranked = best_first([trial for trial in trials if problem.budget.allows(trial.policy)], config.cost_fields)
    if not ranked:
        reasons = sorted({trial.error or "unknown" for trial in trials})
        raise HaqError(f"no policy could be scored: all {len(trials)} trials failed ({'; '.join(reasons)[:300]})")
    folder.write_front(pareto_front(trials, config.cost_fields))
    if interrupted:
        observer.say(f"interrupted after {len(trials)} of {config.trials} trials")
        folder.write_best(untested(problem, ranked[0], baselines))
        return
    if len(trials) < config.trials:
        observer.say(f"the agent has nothing left to propose after {len(trials)} of {config.trials} trials")
    try:
        conclude(problem, workload, ranked, baselines, rivals, folder, observer)
    except KeyboardInterrupt:
        observer.say("interrupted before the finalists were trained")
        folder.write_best(untested(problem, ranked[0], baselines))


def _introduce(problem: Problem, baselines: dict[Any, Baseline | None], observer: Observer) -> None:
    free = len(problem.layers) - len(problem.budget.pinned)
    observer.say(f"{len(problem.layers)} layers, {free} of them free; budget: {_budget_text(problem)}")
    for name, baseline in baselines.items():
        if baseline is not None:
            label = name if name == "float" else f"uniform {baseline.widths} bits"
            shown = [f"top-1 {baseline.score.top1:.1%} on the validation samples"]
            for metric in problem.config.metrics:
                cost = baseline.cost.get(METRICS[metric].field)
                if cost is not None:  # in floating point few are known
                    shown.append(f"{metric} {format_cost(METRICS[metric].field, cost)}")
            observer.say(f"{label}: {', '.join(shown)}")


def _budget_text(problem: Problem) -> str:
    return ", ".join(str(constraint) for constraint in problem.budget.constraints)


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
