"""Picks another point of an archive: the best policy that meets another budget, without another search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from haq.config import SearchConfig, parse_passes
from haq.errors import ConfigError, ConstraintError
from haq.io.files import making
from haq.io.output_paths import check_folder
from haq.metrics import format_cost
from haq.progress import Observer, Silent
from haq.runs import RunFolder, Trial
from haq.runs.relocation import Named, config_of
from haq.search.problem import Problem, pose
from haq.search.resume_checks import check_same_run
from haq.search.running import finish
from haq.search.tune.cluster import ray_workers
from haq.threads import one_thread

__all__ = ["pick", "picked"]


def picked(
    source: RunFolder,
    constraints: str | Sequence[str],
    finetune_steps: int | None = None,
    named: Named | None = None,
    ptq: str | Sequence[str] | None = None,
) -> SearchConfig:
    """Returns the options of a search that would have led to the picked point; see `pick`.

    Args:
        source: A search with trials.
        constraints: As for a search.
        finetune_steps: Fine-tuning steps of the finalists; by default as many as in the search.
        named: Replacements for the model, data and hardware that the run names.
        ptq: Post-training passes of the finalists; by default those of the search.

    Raises:
        HaqError: A constraint cannot be read, or the run has no trial.
    """
    config = config_of(source, named)
    trials = len(source.read_trials())
    if not trials:
        raise ConfigError(f"{source.path} has no trial to pick; resume it with `haq search --resume {source.path}`")
    steps = config.finetune_steps if finetune_steps is None else finetune_steps
    passes = config.ptq if ptq is None else parse_passes(ptq) if isinstance(ptq, str) else tuple(ptq)
    return replace(config, constraints=_listed(constraints), pareto=(), trials=trials, finetune_steps=steps, ptq=passes)


def pick(
    source: RunFolder,
    constraints: Sequence[str],
    out: Path,
    finetune_steps: int | None = None,
    observer: Observer | None = None,
    named: Named | None = None,
    ptq: str | Sequence[str] | None = None,
) -> RunFolder:
    """Takes the best policies of a run that meet a budget, and repeats the final steps of a search with them.

    These policies and the best uniform networks within the budget are fine-tuned in the same way and tested. The new
    folder is like that of a search under this budget; `resume` continues it after an interruption.

    Args:
        source: A search with trials, finished or not.
        constraints: As for a search; relative ones refer to the uniform 8-bit network.
        out: The new run folder; it must not exist.
        finetune_steps: Fine-tuning steps of the finalists; by default as many as in the search.
        observer: Receives progress.
        named: Replacements for the model, data and hardware that the run names.
        ptq: Post-training passes of the finalists; by default those of the search.

    Raises:
        HaqError: No policy of the run meets the budget, or something that the run names is missing or has changed.
    """
    check_folder(out)
    config = picked(source, constraints, finetune_steps, named, ptq)
    observer = observer or Silent()
    with one_thread():
        problem = pose(config, observer, source, named)
        check_same_run(source, problem)
        trials = [trial for trial in source.read_trials() if trial.error is None]
        fitting = sum(problem.budget.allows(trial.policy) for trial in trials)
        if not fitting:
            raise ConstraintError(_unmet(problem, trials, source))
        observer.say(f"{fitting} of {len(trials)} policies of {source.path} meet the budget")
        with ray_workers(config.workers, config.address, config.gpus_per_trial):
            with making(out) as path:
                made = source.copy_to(path)
                made.write_config(problem.config, source.read_environment(), out)
                if source.read_identity() is not None:
                    made.write_identity(problem.identity)
            folder = RunFolder(out)
            with folder.locked():
                finish(problem, folder, observer)
    return folder


def _listed(constraints: str | Sequence[str]) -> tuple[str, ...]:
    return (constraints,) if isinstance(constraints, str) else tuple(constraints)


def _unmet(problem: Problem, trials: list[Trial], source: RunFolder) -> str:
    fix = "raise the budget, or search under it with haq search"
    for constraint in problem.budget.constraints:
        least = min((problem.table.cost(trial.policy)[constraint.field] for trial in trials), default=None)
        if least is not None and least > constraint.limit:
            cost = format_cost(constraint.field, least)
            return f"no policy of {source.path} meets {constraint}: the least is {cost}; {fix}"
    shown = " and ".join(map(str, problem.budget.constraints))
    return f"no policy of {source.path} meets {shown} at once; {fix}"
