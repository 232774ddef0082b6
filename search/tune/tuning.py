"""The search itself: Ray Tune runs the trials that the searcher proposes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haq.errors import ConfigError
from haq.runs import RunFolder, Trial
from haq.scores import Score
from haq.search.agents.sweep import make_sweep
from haq.search.agents.task import INFORMED, Task, make_agent
from haq.search.observer import Observer
from haq.search.problem import Problem
from haq.search.sensitivity import Sensitivity, cached, fingerprint, measure_sensitivity
from haq.search.tune.halving import Halving
from haq.search.tune.interrupts import stopping
from haq.search.tune.searcher import METRIC, BitSearcher, Proposal
from haq.search.tune.trainable import QuantizationTrial
from haq.search.workload import Workload

__all__ = ["run_trials", "search", "sensitivity_of"]

_MEASURE = "fisher"
_IMAGES = 512
_AT_ONCE = 500  # Tune keeps some 50 kB of every trial until its run ends, and looks through all of them at every step
_LOST = "its worker died twice: killed, or out of memory"  # Tune starts a trial twice


def search(
    problem: Problem,
    workload: Workload,
    float_score: Score,
    folder: RunFolder,
    observer: Observer,
    on_trial: Callable[[list[Trial]], None],
) -> tuple[list[Trial], bool]:
    """Runs trials until `config.trials` are finished, nothing is left to propose, or Ctrl-C.

    After every trial the searcher's state is saved with it, then the trial is appended to `trials.jsonl`; trials that
    the folder already holds are taken in first, so that an interrupted search goes on.

    Args:
        problem: Options, layers, table and budget.
        workload: What every trial needs.
        float_score: Of the float network, on the validation images.
        folder: The run.
        observer: Receives progress of what precedes the trials.
        on_trial: Called after each trial with all finished ones.

    Returns:
        All trials, and whether Ctrl-C ended the search.
    """
    config = problem.config
    trials, interrupted = folder.read_trials(), False
    if len(trials) >= config.trials:
        return trials, interrupted
    measured = None
    if config.agent in INFORMED:
        measured = sensitivity_of(problem, workload, folder.sensitivity, observer)
    task = Task(
        layers=problem.layers,
        budget=problem.budget,
        sensitivity=measured,
        float_score=float_score,
        rank_by=workload.rank_by,
        trials=config.trials,
        seed=config.seed,
    )
    agent, first = make_sweep(config.agent, task, config.pareto) if config.pareto else make_agent(config.agent, task)
    start = time.monotonic() - max((trial.elapsed_s for trial in trials), default=0.0)

    unwritten: list[OSError] = []

    def finished(proposal: Proposal, result: dict[str, Any] | None) -> None:
        if result is None:
            result = {"error": _LOST, "scores": [], METRIC: 0.0}
        trial = Trial(
            number=proposal.number,
            policy=proposal.policy,
            origin=proposal.origin,
            cost=problem.table.cost(proposal.policy),
            scores=tuple(Score.from_dict(score) for score in result["scores"]),
            objective=result[METRIC],
            elapsed_s=time.monotonic() - start,
            error=result["error"],
        )
        try:
            searcher.save(str(folder.searcher), trial)  # before the trial, whose proposal moved the agent on
            folder.append_trial(trial)
        except OSError as error:
            unwritten.append(error)
            return
        trials.append(trial)
        on_trial(trials)

    searcher = BitSearcher(agent, first, finished, workload.rank_by)
    _restore(searcher, folder, trials)
    if len(trials) < config.trials:
        from ray import tune

        trainable = tune.with_parameters(
            QuantizationTrial, workload=workload, qat_steps=config.qat_steps, timeout=config.trial_timeout
        )
        with stopping(observer.say) as asked:
            searcher.stopped = lambda: asked() or bool(unwritten)
            ended = -1
            while ended < len(trials) < config.trials and not searcher.stopped():
                ended, count = len(trials), min(config.trials - len(trials), _AT_ONCE)
                run_trials(trainable, searcher, count, folder, config.workers, config.gpus_per_trial, trials)
            interrupted = asked()
    if unwritten:
        raise ConfigError(
            f"cannot write into {folder.path}: {unwritten[0].strerror}; fix that, and resume with `haq search --resume "
            f"{folder.path}`"
        )
    return trials, interrupted


def _restore(searcher: BitSearcher, folder: RunFolder, trials: list[Trial]) -> None:
    """Takes in what an interrupted search did: its searcher's state, and all trials."""
    if folder.searcher.is_file():
        for trial in searcher.restore(str(folder.searcher), trials):
            folder.append_trial(trial)  # it died between the two files
            trials.append(trial)
    else:
        for trial in trials:
            searcher.learn(trial.number, trial.policy, trial.scores)


def run_trials(
    trainable: Any,
    searcher: BitSearcher,
    trials: int,
    folder: RunFolder,
    workers: int,
    gpus: float = 0.0,
    before: Sequence[Trial] = (),
) -> None:
    """Runs trials that the searcher proposes, as many at a time as there are workers; ASHA stops the less promising.

    Args:
        trainable: What a worker does with a policy; see `QuantizationTrial`.
        searcher: Proposes and learns.
        trials: How many.
        folder: Keeps Tune's files.
        workers: Trials at a time, each with a CPU.
        gpus: That each trial takes.
        before: Trials that ended before the search was interrupted.
    """
    from ray import tune
    from ray.tune.logger import TBXLoggerCallback

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": gpus}),
        tune_config=tune.TuneConfig(
            search_alg=tune.search.ConcurrencyLimiter(searcher, workers),
            scheduler=Halving(before, searcher.rank_by),
            num_samples=trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name,
            storage_path=str(folder.path.resolve()),
            verbose=0,
            callbacks=[TBXLoggerCallback()],  # type: ignore[no-untyped-call]
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()


def sensitivity_of(problem: Problem, workload: Workload, path: Path, observer: Observer) -> Sensitivity:
    """Measures what each free layer loses at each candidate width, or reads what was measured for the same before.

    Args:
        problem: Options, data, layers and budget.
        workload: Network, calibration and images.
        path: File that keeps the result.
        observer: Receives progress.
    """
    budget, config = problem.budget, problem.config
    free = [layer.name for layer in problem.layers if layer.name not in budget.pinned]
    weights, inputs = (budget.widths(field) if field in budget.fields else () for field in ("w_bits", "a_bits"))
    images = workload.train.subset(range(min(workload.train.fitting(_IMAGES), len(workload.train))))
    inputs = inputs if len(inputs) > 1 else ()  # where there is no choice, all policies lose the same

    def measure() -> dict[str, Sensitivity]:
        return measure_sensitivity(
            workload.model, workload.calibration, images, free, sorted({*weights, *inputs}), (_MEASURE,),
            lambda done, total: observer.progress("sensitivity", done, total),
            inputs=inputs, workers=config.workers,
        )  # fmt: skip

    key: dict[str, Any] = {
        "network": fingerprint(workload.model),
        "data": problem.identity.data,
        "scheme": config.scheme,
    }
    key |= {"seed": config.seed, "widths": weights, "inputs": inputs, "layers": free}
    return cached(path, key, measure)[_MEASURE]
