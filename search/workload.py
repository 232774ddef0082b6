"""What all trials share: network, calibration, images, and the measure that ranks policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from haq.config import SearchConfig
from haq.data import Samples
from haq.policy import BitPolicy
from haq.progress import Observer, Silent
from haq.quant.calibration import Calibration, calibrate
from haq.quant.compensation import compensate_together
from haq.quant.divergence import Reference
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import load_state, prepare
from haq.quant.ptq import REPORTED, apply_passes, folds
from haq.quant.qat import Finetuning, Lessons
from haq.quant.sample_counts import Effort, at_most
from haq.quant.schemes import Scheme
from haq.registry import LAYERS
from haq.scores import Fidelity, RankBy, Score
from haq.search.problem import Problem
from haq.search.scoring import reference_of, scored

__all__ = ["Workload", "calibrated", "make_workload", "worker_device"]


@dataclass(frozen=True)
class Workload:
    """What all trials share, kept once in Ray's object store.

    Attributes:
        model: The float network; batch norms are not folded, because fine-tuning trains them.
        scheme: Quantization scheme.
        calibration: Scales for every candidate width.
        lessons: Training batches and targets for fine-tuning.
        val: Samples to score on.
        reference: Samples and outputs of the float network to compare with, if divergence ranks policies.
        passes: Post-training passes of finalists.
        rank_by: What the objective is; see `Score.objective`.
        seed: Seed of the passes.
        effort: How many samples each step takes.
        kinds: Kinds of layers that the user's file registered; workers do not run it.
    """

    model: nn.Module
    scheme: Scheme
    calibration: Calibration
    lessons: Lessons
    val: Samples
    reference: Reference | None
    passes: tuple[str, ...]
    rank_by: RankBy
    seed: int
    effort: Effort = field(default_factory=Effort)
    kinds: Mapping[str, Any] = field(default_factory=lambda: LAYERS.added)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the workload in another process."""
        LAYERS.adopt(state["kinds"])
        vars(self).update(state)

    @property
    def train(self) -> Samples:
        """Samples to train on."""
        return self.lessons.samples

    def quantized(self, policy: BitPolicy) -> nn.Module:
        """Returns the calibrated network."""
        return prepare(self.model, policy, self.scheme, self.calibration)

    def score(self, model: nn.Module, fidelity: Fidelity, steps: int = 0, threads: int | None = None) -> Score:
        """Scores a network on the validation samples, and compares it with the float network.

        Args:
            model: The quantized network.
            fidelity: How it was made.
            steps: Fine-tuning steps that it had.
            threads: See `haq.quant.evaluation.evaluate`.
        """
        return scored(model, self.val, self.reference, fidelity, steps, threads)

    def score_trial(self, model: nn.Module, fidelity: Fidelity, steps: int = 0) -> Score:
        """Scores the network of a trial; if labels do not rank policies, only some of the labelled samples are used.

        Args:
            model: The quantized network.
            fidelity: How it was made.
            steps: Fine-tuning steps that it had.
        """
        val = self.val if self.reference is None else at_most(self.val, self.effort.labels)
        return scored(model, val, self.reference, fidelity, steps)

    def rounded_together(
        self, policies: Sequence[BitPolicy], progress: Callable[[float], None] = lambda share: None
    ) -> list[nn.Module]:
        """Returns networks after post-training passes that do not fold batch norms; see `reconstructed`."""
        models = [self.quantized(policy).eval() for policy in policies]
        if "sequential" in self.passes:
            shown = _shown(self.train, self.effort.passes)
            compensate_together(models, self.model, shown, lambda done, total: progress(done / total))
        return models

    def reconstructed(self, policy: BitPolicy, progress: Callable[[float], None] = lambda share: None) -> nn.Module:
        """Returns the network after the post-training passes of finalists.

        Args:
            policy: Widths of the network.
            progress: Called with the share of the work done.
        """
        if not self.folded:
            return self.rounded_together([policy], progress)[0]
        shown, long = _shown(self.train, self.effort.passes), [name for name in self.passes if name in REPORTED]
        finished = 0

        def report(done: int, total: int) -> None:
            nonlocal finished
            progress((finished + done / total) / len(long))
            finished += done == total

        return apply_passes(self.model, policy, self.scheme, shown, self.passes, self.seed, report)

    @property
    def folded(self) -> bool:
        """Whether the batch norms of finalists are folded."""
        return folds(self.passes)

    def restored(self, policy: BitPolicy, state: Mapping[str, Any]) -> nn.Module:
        """Rebuilds a finalist's network from its state."""
        model = fold_batch_norm(self.model, self.train.batch([0])[0]) if self.folded else self.model
        model = prepare(model, policy, self.scheme)
        load_state(model, state)
        return model.eval()

    def finetuning(self, model: nn.Module, steps: int) -> Finetuning:
        """Returns a fine-tuning run of `steps` steps that has not started yet."""
        return Finetuning(model, self.lessons, steps)

    def prepared(self, steps: int, progress: Callable[[float], None] = lambda share: None) -> Workload:
        """Returns the same workload with stored answers of the float network for this many steps, if memory allows.

        Args:
            steps: Fine-tuning steps that several networks will take.
            progress: Called with the share of the work done.
        """
        if not self.effort.prepares(steps):
            return self
        return replace(self, lessons=self.lessons.prepared(steps, progress=progress))


def worker_device() -> torch.device:
    """Returns where a worker computes: on its GPU if Ray gave it one. Ray hides GPUs from workers without one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_workload(config: SearchConfig, problem: Problem, rank_by: RankBy, observer: Observer) -> Workload:
    """Calibrates every candidate width and computes the outputs of the float network.

    Args:
        config: Options.
        problem: Network, data and table of costs.
        rank_by: What policies are ranked by.
        observer: Receives progress.
    """
    effort, train, val = problem.effort, problem.data.train, problem.data.val
    if said := str(effort):
        observer.say(said)
    widths = {*problem.table.w_bits, *(width for width in problem.table.a_bits if width is not None)}
    calibration = calibrated(problem, widths, observer)
    lessons = Lessons(train, problem.model, config.seed, effort.lesson, effort.compared)
    if config.qat_steps and effort.prepares(config.qat_steps):
        observer.progress("lessons", 0, 100)
        lessons = lessons.prepared(config.qat_steps, lambda share: observer.progress("lessons", int(100 * share), 100))
        observer.progress("lessons", 100, 100)
    compared = effort.compared
    reference = reference_of(problem.model, val, config.seed, config.workers, compared) if rank_by == "kl" else None
    return Workload(
        problem.model, problem.scheme, calibration, lessons, at_most(val, effort.validation), reference, config.ptq,
        rank_by, config.seed, effort,
    )  # fmt: skip


def calibrated(problem: Problem, widths: Iterable[int], observer: Observer | None = None) -> Calibration:
    """Calibrates quantizers of these widths on the first training samples.

    Args:
        problem: Network and data.
        widths: Candidate widths.
        observer: Receives progress.
    """
    shown = _shown(problem.data.train, problem.effort.calibration)
    return calibrate(problem.model, shown, widths, problem.scheme, progress=(observer or Silent()).progress)


def _shown(train: Samples, count: int) -> list[Tensor]:
    return [x for x, _ in at_most(train, count).batches(64)]
