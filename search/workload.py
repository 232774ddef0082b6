"""What all trials share: network, calibration, images, and what policies are ranked by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from haq.config import SearchConfig
from haq.data import Samples
from haq.policy import BitPolicy
from haq.progress import Observer
from haq.quant.calibration import Calibration, calibrate
from haq.quant.compensation import compensate_together
from haq.quant.divergence import Reference
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import load_state, prepare
from haq.quant.ptq import REPORTED, apply_passes, folds
from haq.quant.qat import Finetuning, Lessons
from haq.quant.schemes import Scheme
from haq.scores import Fidelity, RankBy, Score
from haq.search.problem import Problem
from haq.search.scoring import reference_of, scored

__all__ = ["Workload", "calibrated", "make_workload", "worker_device"]

_CALIBRATION_IMAGES, _PASSES_IMAGES = 512, 1024
_TRIAL_LABELS = 128  # to show how often a trial is right, where that does not rank it


@dataclass(frozen=True)
class Workload:
    """What all trials share; it lies once in Ray's object store.

    Attributes:
        model: The float network; batch norms stay, because fine-tuning trains them.
        scheme: What realises widths.
        calibration: Scales for every candidate width.
        lessons: Of fine-tuning, on the training samples.
        val: Samples to score on.
        reference: Samples that networks are compared with the float network on, where divergence ranks them.
        passes: Post-training passes of finalists.
        rank_by: What the objective is; see `Score.objective`.
        seed: Of the passes.
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
            model: Quantized.
            fidelity: How it was made.
            steps: Of fine-tuning.
            threads: See `haq.quant.evaluation.evaluate`.
        """
        return scored(model, self.val, self.reference, fidelity, steps, threads)

    def score_trial(self, model: nn.Module, fidelity: Fidelity, steps: int = 0) -> Score:
        """Scores a network among many, on part of the labelled samples where these do not rank it."""
        few = self.reference is not None and len(self.val) > _TRIAL_LABELS
        val = self.val.subset(range(_TRIAL_LABELS)) if few else self.val
        return scored(model, val, self.reference, fidelity, steps)

    def rounded_together(
        self, policies: Sequence[BitPolicy], progress: Callable[[float], None] = lambda share: None
    ) -> list[nn.Module]:
        """Returns networks after the post-training passes, where batch norms are not folded; see `reconstructed`."""
        models = [self.quantized(policy).eval() for policy in policies]
        if "sequential" in self.passes:
            shown = _shown(self.train, _PASSES_IMAGES)
            compensate_together(models, self.model, shown, lambda done, total: progress(done / total))
        return models

    def reconstructed(self, policy: BitPolicy, progress: Callable[[float], None] = lambda share: None) -> nn.Module:
        """Returns the network after the post-training passes of finalists.

        Args:
            policy: Of the network.
            progress: Called with the share that is done.
        """
        if not self.folded:
            return self.rounded_together([policy], progress)[0]
        shown, long = _shown(self.train, _PASSES_IMAGES), [name for name in self.passes if name in REPORTED]
        over = 0

        def told(done: int, total: int) -> None:
            nonlocal over
            progress((over + done / total) / len(long))
            over += done == total

        return apply_passes(self.model, policy, self.scheme, shown, self.passes, self.seed, told)

    @property
    def folded(self) -> bool:
        """Whether batch norms of finalists are folded."""
        return folds(self.passes)

    def restored(self, policy: BitPolicy, state: Mapping[str, Any]) -> nn.Module:
        """Returns a finalist's network from its state."""
        model = fold_batch_norm(self.model, self.train.batch([0])[0]) if self.folded else self.model
        model = prepare(model, policy, self.scheme)
        load_state(model, state)
        return model.eval()

    def finetuning(self, model: nn.Module, steps: int) -> Finetuning:
        """Returns a fine-tuning run of the whole length `steps`, with none of them taken."""
        return Finetuning(model, self.lessons, steps)

    def prepared(self, steps: int, progress: Callable[[float], None] = lambda share: None) -> Workload:
        """Returns the same with what several networks need for so many steps of fine-tuning at hand."""
        return replace(self, lessons=self.lessons.prepared(steps, progress=progress))


def worker_device() -> torch.device:
    """Returns where a worker computes: on the GPU that Ray gave it; Ray hides GPUs from those that asked for none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_workload(config: SearchConfig, problem: Problem, rank_by: RankBy, observer: Observer) -> Workload:
    """Calibrates every candidate width and computes what the float network answers."""
    observer.progress("calibrate", 0, 2)
    widths = {*problem.table.w_bits, *(width for width in problem.table.a_bits if width is not None)}
    calibration = calibrated(problem, widths)
    observer.progress("calibrate", 1, 2)
    lessons = Lessons(problem.data.train, problem.model, config.seed).prepared(config.qat_steps)
    observer.progress("calibrate", 2, 2)
    val = problem.data.val
    reference = reference_of(problem.model, val, config.seed, config.workers) if rank_by == "kl" else None
    return Workload(
        problem.model, problem.scheme, calibration, lessons, val, reference, config.ptq, rank_by, config.seed
    )


def calibrated(problem: Problem, widths: Iterable[int]) -> Calibration:
    """Sets up the quantizers of these widths on the first training samples."""
    return calibrate(problem.model, _shown(problem.data.train, _CALIBRATION_IMAGES), widths, problem.scheme)


def _shown(train: Samples, count: int) -> list[Tensor]:
    return [x for x, _ in train.subset(range(min(count, len(train)))).batches(64)]
