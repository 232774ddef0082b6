"""Trains the network of a run further: checkpointed, resumable, with TensorBoard logs."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from haq.config import SearchConfig, check_range
from haq.errors import ConfigError, ConstraintError, HaqError, ModelError
from haq.io.files import making, replacing, write_text
from haq.io.output_paths import check_folder
from haq.io.safe_yaml import read_yaml
from haq.io.tensors import read_tensors
from haq.io.validation import check_fields, restored
from haq.layers import copied
from haq.metrics import format_cost
from haq.policy import BitPolicy
from haq.progress import Observer, Silent
from haq.quant.evaluation import evaluate
from haq.quant.preparation import load_quantized, prepare, save_quantized
from haq.quant.qat import BATCH_SIZE, Finetuning, Lessons
from haq.quant.run_network import check_widths
from haq.runs import Best, RunFolder, Trial
from haq.runs.relocation import Named, config_of
from haq.scores import Score
from haq.search.conclusion import reported
from haq.search.problem import Problem, pose
from haq.search.resume_checks import check_same_run
from haq.search.scoring import choose_rank_by, reference_of, scored
from haq.search.tune.interrupts import stopping
from haq.search.workload import calibrated, worker_device
from haq.threads import one_thread

__all__ = ["Training", "finetune", "resume_finetune"]

_CHUNK = 10  # steps between two reports of progress
_CHECKPOINT_S = 60.0  # at most this much work is lost if the machine dies during a long epoch


@dataclass(frozen=True)
class Training:
    """How a network is trained further.

    Attributes:
        epochs: Passes over the training samples.
        lr: Initial learning rate of the weights, which follows a cosine to zero; by default chosen as in a search.
        distill: Learn the float network's outputs (Hinton et al. 2015, arXiv:1503.02531) rather than the labels.
        batch: Samples per step.
        seed: Determines the order of the samples.

    Raises:
        ConfigError: A value is out of range.
    """

    epochs: int
    lr: float | None = None
    distill: bool = True
    batch: int = BATCH_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in {"epochs": 1, "batch": 1, "seed": 0}.items():
            check_range(f"--{name}", getattr(self, name), least)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"--lr {self.lr}: must be more than 0, such as 0.0005")

    @classmethod
    def load(cls, path: Path) -> Training:
        """Reads `finetune.yaml`.

        Raises:
            ConfigError: The file is missing or damaged.
        """
        if not path.exists():
            raise ConfigError(
                f"{path.parent} has no {path.name}, so it is not a fine-tuning run; start one with `haq finetune RUN`"
            )
        try:
            return restored(cls, read_yaml(path, str(path), ConfigError))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def finetune(
    source: RunFolder,
    out: Path,
    training: Training,
    policy: BitPolicy | None = None,
    observer: Observer | None = None,
    named: Named | None = None,
) -> RunFolder:
    """Trains the network of a run further, and writes it with everything the search found into a new run folder.

    The best weights on the validation samples are kept: those after one of the epochs, or the initial ones. The test
    samples are used once, at the end. `resume_finetune` resumes a run that was interrupted.

    Args:
        source: A search that has ended.
        out: The new run folder; it must not exist.
        training: Epochs, learning rate and other options.
        policy: Other widths, which are calibrated first; by default those that the run chose.
        observer: Receives progress.
        named: Replacements for the model, data and hardware that the run names.

    Raises:
        HaqError: The run has no result, the policy is for other layers or over the budget, or something that the run
            names is missing or has changed.
    """
    check_folder(out, "haq finetune")
    best, observer = source.read_best(), observer or Silent()
    problem = pose(config_of(source, named), observer, source, named)
    check_same_run(source, problem)
    config = problem.config
    start: nn.Module | None = None
    if policy is not None:
        start = _calibrated(problem, _checked(policy, problem, config), observer)
    else:  # finds a damaged file before the folder is made
        check_widths(source, best.policy, load_quantized(source.network_file(), problem.model))
    with making(out) as path:
        made = source.copy_to(path)
        made.write_config(config, source.read_environment(), out)
        if start is None or policy is None:
            shutil.copy2(source.model, made.start)
        else:
            policy = policy.with_scheme(config.scheme)
            save_quantized(made.start, start, policy, problem.sample)
            if all(trial.policy != policy for trial in source.read_trials()):
                made.append_trial(_given(policy, problem, start, made))
        chosen = policy or best.policy
        made.write_best(
            replace(best, policy=chosen, cost=reported(problem, problem.table.cost(chosen)), test_top1=None)
        )
        made.seal(made.start)
        write_text(made.training, yaml.safe_dump(asdict(training), sort_keys=False))
    folder = RunFolder(out)
    with folder.locked():
        return _train(folder, problem, training, observer)


def resume_finetune(path: Path, observer: Observer | None = None, named: Named | None = None) -> RunFolder:
    """Resumes a fine-tuning run that was interrupted; the final weights are the same as without the interruption.

    Args:
        path: The folder of the run.
        observer: Receives progress.
        named: Replacements for the model, data and hardware that the run names; they are written into the run folder.

    Raises:
        HaqError: `path` is not the folder of a fine-tuning run, or something that it names is missing or has changed.
    """
    folder, observer = RunFolder.open(path), observer or Silent()
    training = Training.load(folder.training)
    if folder.finished:
        observer.say(f"{path} is finished; nothing is left to do")
        return folder
    problem = pose(config_of(folder, named), observer, folder, named)
    check_same_run(folder, problem)
    folder.check_file(folder.start)
    with folder.locked():
        if problem.config != folder.read_config():  # the project was moved, or replacements were given
            folder.write_config(problem.config, folder.read_environment())
        return _train(folder, problem, training, observer)


def _checked(policy: BitPolicy, problem: Problem, config: SearchConfig) -> BitPolicy:
    cost = problem.table.cost(policy)
    for constraint in problem.budget.constraints:
        if cost[constraint.field] > constraint.limit:
            raise ConstraintError(
                f"the policy costs {format_cost(constraint.field, cost[constraint.field])}, but the budget of the run "
                f"is {constraint}; give a policy within it, or pick another budget with haq pick"
            )
    return policy.with_scheme(config.scheme)


def _calibrated(problem: Problem, policy: BitPolicy, observer: Observer) -> nn.Module:
    observer.progress("calibrate", 0, 1)
    widths = {width for bits in policy.values() for width in (bits.w_bits, bits.a_bits) if width is not None}
    network = prepare(problem.model, policy, problem.scheme, calibrated(problem, widths))
    observer.progress("calibrate", 1, 1)
    return network


def _given(policy: BitPolicy, problem: Problem, network: nn.Module, folder: RunFolder) -> Trial:
    """Returns the user's policy as a trial, so that a report shows it among the others."""
    score = evaluate(network, problem.data.val, "ptq")
    trials = folder.read_trials()
    number = max((trial.number for trial in trials), default=0) + 1
    elapsed = max((trial.elapsed_s for trial in trials), default=0.0)
    return Trial(number, policy, "given", problem.table.cost(policy), (score,), 0.0, elapsed)


def _train(folder: RunFolder, problem: Problem, training: Training, observer: Observer) -> RunFolder:
    network = load_quantized(folder.start, problem.model).to(worker_device())
    data = problem.data
    full = evaluate(problem.model, data.val, "float")
    rank_by = choose_rank_by(problem.config, data, full, observer, tuned=True)
    reference = reference_of(problem.model, data.val, training.seed) if rank_by == "kl" else None
    teacher = copied(problem.model).to(worker_device()) if training.distill else None
    lessons = Lessons(data.train, teacher, training.seed, training.batch)
    steps = training.epochs * lessons.epoch
    run = Finetuning(network, lessons, steps, training.lr)
    progress = _Progress(folder, run, scored(network, data.val, reference, "qat"), rank_by)
    if folder.checkpoint.is_file():
        progress.restore()
        observer.say(f"resuming after {run.done} of {steps} steps")
    else:
        torch.manual_seed(training.seed)
    with stopping(observer.say) as asked, progress.logged() as log:
        while run.done < steps:
            progress.advance(lambda: scored(network, data.val, reference, "qat", run.done), log)
            note = f"best {progress.best.top1:.1%}"
            observer.progress("fine-tune", run.done, steps, note)
            if asked():
                progress.save()
                observer.say(f"stopped; resume with `haq finetune --resume {folder.path}`")
                raise KeyboardInterrupt
    network.load_state_dict(progress.weights)
    return _written(folder, problem, network.cpu(), progress.best, training.epochs)


class _Progress:
    """A fine-tuning run and its best weights so far, with a checkpoint file and TensorBoard logs."""

    def __init__(self, folder: RunFolder, run: Finetuning, start: Score, rank_by: Any) -> None:
        self._folder, self._run, self._rank_by = folder, run, rank_by
        self.best, self.weights = start, copy.deepcopy(run.model.state_dict())
        self._saved = time.monotonic()

    def advance(self, validate: Callable[[], Score], log: Any) -> None:
        """Takes a few steps; validates and saves after each epoch, and also saves regularly within long epochs."""
        run = self._run
        rest = run.lessons.epoch - run.done % run.lessons.epoch
        loss = run.run(min(_CHUNK, rest))
        if not math.isfinite(loss):
            raise ModelError(f"the loss became {loss} after {run.done} steps; give a smaller --lr than {run.rate:.2g}")
        log.add_scalar("train/loss", loss, run.done)
        log.add_scalar("train/lr", run.rate, run.done)
        if run.done % run.lessons.epoch == 0:
            score = validate()
            log.add_scalar("val/top1", score.top1, run.done)
            log.add_scalar("val/loss", score.loss, run.done)
            if score.objective(self._rank_by) >= self.best.objective(self._rank_by):
                self.best, self.weights = score, copy.deepcopy(run.model.state_dict())
            self.save()
        elif time.monotonic() - self._saved > _CHECKPOINT_S:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint: only tensors and plain types, so that reading it cannot run code."""
        content = {"run": self._run.state(), "best": self.best.to_dict(), "weights": self.weights}
        with replacing(self._folder.checkpoint) as temporary:
            torch.save(content, temporary)
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Reads what `save` wrote.

        Raises:
            ConfigError: The file is damaged, or belongs to another fine-tuning run.
        """
        path = self._folder.checkpoint
        try:
            content = read_tensors(path)
            self._run.restore(content["run"])
            self.best, self.weights = Score.from_dict(content["best"]), content["weights"]
        except HaqError:
            raise
        except Exception as error:  # torch.load raises many kinds of errors for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"cannot read {path}: {reason}; remove it to start from the beginning") from None

    def logged(self) -> Any:
        """Returns a TensorBoard writer that drops what was logged after the checkpoint."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder.tensorboard), purge_step=self._run.done + 1 if self._run.done else None)


def _written(folder: RunFolder, problem: Problem, network: nn.Module, score: Score, epochs: int) -> RunFolder:
    """Tests the network and writes it."""
    best: Best = folder.read_best()
    with one_thread():  # as in a search: summing in another order would change the last digits
        test = evaluate(network, problem.data.test, "qat")
    save_quantized(folder.model, network, best.policy, problem.sample)
    folder.seal(folder.model)
    folder.write_best(replace(best, top1=score.top1, loss=score.loss, test_top1=test.top1, epochs=epochs))
    return folder
