"""The story of a search: pose, calibrate, search, finals, run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from haq.config import SearchConfig
from haq.errors import ConfigError, HaqError
from haq.io.durations import format_duration
from haq.io.files import making
from haq.io.output_paths import check_folder
from haq.metrics import METRICS
from haq.progress import Observer, Silent
from haq.runs import RunFolder, Trial
from haq.runs.archive import best_first, best_of, pareto_front
from haq.runs.environment import describe_environment
from haq.runs.project import keep_float
from haq.runs.relocation import Named, config_of
from haq.search.agents.agent_state import check_state
from haq.search.conclusion import FINALISTS, conclude, write_untested
from haq.search.problem import Problem, pose
from haq.search.resume_checks import check_same_run
from haq.search.study import Study, calibrate_study
from haq.search.tune.cluster import more_processes, only_here, ray_workers
from haq.search.tune.tuning import search
from haq.threads import one_thread

__all__ = ["finish", "resume", "run"]

_START_S = 5.0  # a process takes about so long to import what tasks need


def run(config: SearchConfig, out: Path, observer: Observer | None = None, named: Named | None = None) -> RunFolder:
    """Searches, fine-tunes the winner, tests it, and writes a run folder.

    Everything in the options is checked before the folder is made. After Ctrl-C the folder holds what was found.

    Args:
        config: Options.
        out: The run folder; it must not exist.
        observer: Receives progress.
        named: Holds what was given as an object.

    Raises:
        HaqError: Anything wrong with the options.
    """
    check_folder(out, "haq search")
    started, observer = time.monotonic(), observer or Silent()
    with one_thread():
        problem = pose(config, observer, named=named)
        with ray_workers(config.workers, config.address, config.gpus_per_trial):
            folder = _made(problem, out)
            with folder.locked():
                finish(problem, folder, observer, started)
    return folder


def resume(path: Path, observer: Observer | None = None, named: Named | None = None) -> RunFolder:
    """Resumes a search that was interrupted; no finished trial is lost or run twice.

    Args:
        path: The run folder.
        observer: Receives progress.
        named: The model, data and hardware to use instead of those that the run names; the run keeps their names.

    Raises:
        HaqError: `path` is not a run folder, or what it names has disappeared or changed.
    """
    folder, observer, started = RunFolder.open(path), observer or Silent(), time.monotonic()
    if folder.training.is_file():
        raise ConfigError(f"{str(path)!r} is a fine-tuning; resume it with `haq finetune --resume {path}`")
    config = config_of(folder, named)
    folder.read_trials()  # damaged files are found before anything is done
    check_state(folder.searcher)
    if folder.finished:
        observer.say(f"{path} is finished; nothing is left to do")
        return folder
    with one_thread():
        problem = pose(config, observer, folder, named)
        check_same_run(folder, problem)
        with folder.locked(), ray_workers(config.workers, config.address, config.gpus_per_trial):
            if problem.config != folder.read_config():  # the project has moved, or got other names
                folder.write_config(problem.config, folder.read_environment())
            finish(problem, folder, observer, started)
    return folder


def finish(problem: Problem, folder: RunFolder, observer: Observer, started: float | None = None) -> None:
    """Does all that follows from a posed problem: baselines, trials that are missing, finals, results.

    Args:
        problem: What is asked.
        folder: The run, locked; trials that it holds count.
        observer: Receives progress.
        started: Of `time.monotonic`, when the time limit began; by default now.

    Raises:
        HaqError: No policy could be scored, or no finalist fine-tuned.
    """
    started = time.monotonic() if started is None else started
    observer.progress("prepare", 1, 1)
    observer.say(f"run folder: {folder.path}")
    config = problem.config
    study = calibrate_study(problem, folder, observer)
    deadline = None if config.time_limit is None else started + config.time_limit
    trials = search(study, problem.agent, _Watch(study), deadline)
    ranked = _ranked(problem, trials.ended)
    folder.write_front(pareto_front(trials.ended, config.cost_fields))
    if trials.interrupted:
        observer.say(f"interrupted after {len(trials.ended)} of {config.trials} trials")
        write_untested(study, ranked[0])
        return
    if trials.timed_out:
        assert config.time_limit is not None
        observer.say(
            f"the time limit of {format_duration(config.time_limit)} was reached after {len(trials.ended)} of "
            f"{config.trials} trials; `haq search --resume {folder.path}` continues"
        )
        write_untested(study, ranked[0])
        return
    if len(trials.ended) < config.trials:
        observer.say(f"the agent has nothing left to propose after {len(trials.ended)} of {config.trials} trials")
    try:
        conclude(study, ranked)
    except KeyboardInterrupt:
        observer.say("interrupted before the finalists were trained")
        write_untested(study, ranked[0])


def _made(problem: Problem, out: Path) -> RunFolder:
    """Makes the run folder, whole or not at all."""
    with making(out) as path:
        made = RunFolder(path)
        made.write_config(problem.config, describe_environment(), out)
        made.write_layers(problem.layers)
        made.write_rest(problem.rest)
        made.write_metrics([METRICS[name] for name in METRICS.beyond if METRICS[name].field in problem.table.fields])
        problem.table.save(made.costs)
        made.write_identity(problem.identity)
        keep_float(made, problem.config, problem.model)
    return RunFolder(out)


class _Watch:
    """Shows the best trial so far, and starts processes for the finals while trials still run."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._best: Trial | None = None

    def __call__(self, trials: Sequence[Trial]) -> None:
        config = self._study.problem.config
        self._best = best_of([*trials] if self._best is None else [self._best, trials[-1]], config.cost_fields)
        note = f"best {self._best.score.top1:.1%}" if self._best and self._best.score else ""
        self._study.observer.progress("search", len(trials), config.trials, note)
        apart = config.finetune_steps or self._study.workload.folded or not only_here(config.gpus_per_trial)
        if apart and len(trials) == config.trials // 2 and trials[-1].elapsed_s > _START_S:  # else it ends before
            more_processes(min(config.workers, 2 * FINALISTS))


def _ranked(problem: Problem, trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials inside the budget, the best first."""
    inside = [trial for trial in trials if problem.budget.allows(trial.policy)]
    if ranked := best_first(inside, problem.config.cost_fields):
        return ranked
    reasons = sorted({trial.error or "unknown" for trial in trials})
    raise HaqError(f"no policy could be scored: all {len(trials)} trials failed ({'; '.join(reasons)[:300]})")
