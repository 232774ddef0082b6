"""The search itself: Ray Tune runs the trials that the searcher proposes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from haq.errors import ConfigError
from haq.progress import Observer
from haq.runs import RunFolder, Trial
from haq.scores import Score
from haq.search.agents.protocol import Agent, AgentKind, CheckedAgent, First
from haq.search.agents.sweep import make_sweep
from haq.search.agents.task import Task
from haq.search.problem import Problem
from haq.search.sensitivity import Sensitivity, cached, fingerprint, measure_sensitivity
from haq.search.study import Study
from haq.search.tune.halving import Halving
from haq.search.tune.interrupts import stopping
from haq.search.tune.searcher import METRIC, BitSearcher, Proposal
from haq.search.tune.trainable import QuantizationTrial
from haq.search.workload import Workload

__all__ = ["Trials", "run_trials", "search", "sensitivity_of"]

_MEASURE = "fisher"
_IMAGES = 512
_AT_ONCE = 500  # Tune keeps about 50 kB per trial until its run ends, and looks through all trials at every step
_LOST = "its worker died twice: killed, or out of memory"  # Tune starts a trial twice


@dataclass(frozen=True)
class Trials:
    """The outcome of a search.

    Attributes:
        ended: All trials, including those from before an interruption.
        interrupted: Whether Ctrl-C ended the search.
        timed_out: Whether its time was over before all trials were done.
    """

    ended: list[Trial]
    interrupted: bool
    timed_out: bool = False


def search(
    study: Study, agent_kind: AgentKind, on_trial: Callable[[list[Trial]], None], deadline: float | None = None
) -> Trials:
    """Runs trials until `config.trials` are finished, nothing is left to propose, Ctrl-C, or the time is over.

    After every trial the searcher's state, which includes the trial, is saved; then the trial is appended to
    `trials.jsonl`. The agent first learns the trials that are already in the folder, so that an interrupted search
    resumes.

    Args:
        study: The problem, what every trial needs, and the run folder.
        agent_kind: The kind of agent that proposes.
        on_trial: Called after each trial with all finished trials.
        deadline: Of `time.monotonic`; no trial starts after it, but for the first one.

    Raises:
        ConfigError: The run folder cannot be written.
    """
    config, folder = study.problem.config, study.folder
    known = folder.read_trials()
    if len(known) >= config.trials:
        return Trials(known, interrupted=False)
    agent, first = _agent(study, agent_kind)
    log = _Log(study, known, on_trial)

    before_us = len(known)

    def late() -> bool:
        return deadline is not None and len(log.trials) > before_us and time.monotonic() > deadline

    with stopping(study.observer.say) as asked:
        searcher = BitSearcher(
            agent, first, log, study.workload.rank_by, lambda: asked() or late() or log.failure is not None
        )
        log.restore(searcher)
        trainable = _trainable(study)
        before = -1
        while before < len(log.trials) < config.trials and not (asked() or late() or log.failure or searcher.failure):
            before, count = len(log.trials), min(config.trials - len(log.trials), _AT_ONCE)
            run_trials(trainable, searcher, count, folder, config.workers, config.gpus_per_trial, log.trials)
        interrupted, timed_out = asked(), late() and len(log.trials) < config.trials
    if searcher.failure is not None:
        raise searcher.failure
    if log.failure is not None:
        raise ConfigError(
            f"cannot write into {folder.path}: {log.failure.strerror}; fix that, and resume with `haq search --resume "
            f"{folder.path}`"
        )
    return Trials(log.trials, interrupted, timed_out)


def _agent(study: Study, kind: AgentKind) -> tuple[Agent, First]:
    """Returns the agent, which for a sweep has one agent per budget, and the policies to score before it is asked."""
    problem, config = study.problem, study.problem.config
    task = Task(
        layers=problem.layers,
        budget=problem.budget,
        sensitivity=(
            sensitivity_of(problem, study.workload, study.folder.sensitivity, study.observer) if kind.informed else None
        ),
        float_score=study.baselines.float.score,
        rank_by=study.workload.rank_by,
        trials=config.trials,
        seed=config.seed,
        start=problem.start,
    )
    agent, first = make_sweep(kind, task, config.pareto) if config.pareto else kind.agent_for(task)
    checked = CheckedAgent(agent, problem.budget)
    return checked, first if task.start is None else [("start", task.start), *first]


def _trainable(study: Study) -> Any:
    from ray import tune

    config = study.problem.config
    return tune.with_parameters(
        QuantizationTrial, workload=study.workload, qat_steps=config.qat_steps, timeout=config.trial_timeout
    )


class _Log:
    """Writes every trial as it ends, together with the searcher's state.

    Args:
        study: The search, with its run folder.
        trials: Trials that are already in the folder.
        on_trial: Called after each trial with all trials.

    Attributes:
        trials: All trials so far.
        failure: Why the folder could not be written. It is kept here because Tune would swallow an exception.
    """

    def __init__(self, study: Study, trials: list[Trial], on_trial: Callable[[list[Trial]], None]) -> None:
        self.trials, self.failure = trials, cast("OSError | None", None)
        self._folder, self._table, self._on_trial = study.folder, study.problem.table, on_trial
        self._start = time.monotonic() - max((trial.elapsed_s for trial in trials), default=0.0)

    def restore(self, searcher: BitSearcher) -> None:
        """Restores the searcher from an interrupted search: its state, and all trials."""
        if not self._folder.searcher.is_file():
            for trial in self.trials:
                searcher.learn(trial.number, trial.policy, trial.scores)
            return
        for trial in searcher.restore(str(self._folder.searcher), self.trials):
            self._folder.append_trial(trial)  # the process died after writing only the state
            self.trials.append(trial)

    def __call__(self, searcher: BitSearcher, proposal: Proposal, result: dict[str, Any] | None) -> None:
        """Saves a trial that ended; `result` is `None` if its worker died."""
        if result is None:
            result = {"error": _LOST, "scores": [], METRIC: 0.0}
        trial = Trial(
            number=proposal.number,
            policy=proposal.policy,
            origin=proposal.origin,
            cost=self._table.cost(proposal.policy),
            scores=tuple(Score.from_dict(score) for score in result["scores"]),
            objective=result[METRIC],
            elapsed_s=time.monotonic() - self._start,
            error=result["error"],
        )
        try:
            searcher.save(str(self._folder.searcher), trial)  # the state first: it also contains the trial
            self._folder.append_trial(trial)
        except OSError as error:
            self.failure = error
            return
        self.trials.append(trial)
        self._on_trial(self.trials)


def run_trials(
    trainable: Any,
    searcher: BitSearcher,
    trials: int,
    folder: RunFolder,
    workers: int,
    gpus: float = 0.0,
    before: Sequence[Trial] = (),
) -> None:
    """Runs trials that the searcher proposes, as many at a time as there are workers; ASHA stops unpromising ones.

    Args:
        trainable: What a worker does with a policy; see `QuantizationTrial`.
        searcher: Proposes policies and learns from their scores.
        trials: Number of trials.
        folder: Where Tune's files are written.
        workers: Trials at a time, each on one CPU.
        gpus: GPUs that each trial takes.
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
    """Measures how much each free layer loses at each candidate width, or reads an earlier result for the same inputs.

    Args:
        problem: Options, data, layers and budget.
        workload: Network, calibration and images.
        path: File that stores the result.
        observer: Receives progress.
    """
    budget, config = problem.budget, problem.config
    free = [layer.name for layer in problem.layers if layer.name not in budget.pinned]
    weights, inputs = (budget.widths(field) if field in budget.fields else () for field in ("w_bits", "a_bits"))
    count = min(workload.train.fitting(_IMAGES), workload.effort.sensitivity)
    images = workload.train.subset(range(min(count, len(workload.train))))
    inputs = inputs if len(inputs) > 1 else ()  # with a single candidate, all policies lose the same

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
