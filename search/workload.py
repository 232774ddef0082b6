"""What all trials share: network, calibration, images, and what policies are ranked by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.config import SearchConfig
from haq.data import ImageData, Samples, Tokens
from haq.errors import ConfigError
from haq.policy import BitPolicy
from haq.quant.calibration import Calibration, calibrate
from haq.quant.compensation import compensate_in_sequence
from haq.quant.evaluation import evaluate, teacher_of
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import load_state, prepare
from haq.quant.ptq import apply_passes, folds
from haq.quant.qat import Finetuning
from haq.quant.schemes import get_scheme
from haq.scores import Fidelity, RankBy, Score
from haq.search.observer import Observer
from haq.search.problem import Problem

__all__ = ["Workload", "calibrated", "choose_rank_by", "make_workload", "worker_device"]

_CALIBRATION_IMAGES, _PASSES_IMAGES = 512, 1024
_TRIAL_SAMPLES = 384  # where policies are ranked by divergence, which orders them on few samples
_SATURATED = 0.995  # a validation top-1 at which so few images are wrong that it no longer orders policies


@dataclass(frozen=True)
class Workload:
    """What all trials share; it lies once in Ray's object store.

    Attributes:
        model: The float network; batch norms stay, because fine-tuning trains them.
        calibration: Scales for every candidate width.
        train: Samples to fine-tune on.
        teacher: The float network's outputs for them, or, where these are large, the network; see `teacher_of`. `None`
            where nothing is fine-tuned.
        val: Samples to score on.
        reference: The float network's outputs for these; `None` where policies are not ranked by divergence.
        passes: Post-training passes of finalists.
        rank_by: What the objective is; see `Score.objective`.
        seed: Decides the order of training samples, the same for every trial.
    """

    model: nn.Module
    calibration: Calibration
    train: Samples
    teacher: Tensor | nn.Module | None
    val: Samples
    reference: Tensor | None
    passes: tuple[str, ...]
    rank_by: RankBy
    seed: int

    def quantized(self, policy: BitPolicy) -> nn.Module:
        """Returns the calibrated network."""
        return prepare(self.model, policy, calibration=self.calibration)

    def score(self, model: nn.Module, fidelity: Fidelity, steps: int = 0) -> Score:
        """Scores a network on the validation samples."""
        return evaluate(model, self.val, fidelity, steps, self.reference)

    def score_trial(self, model: nn.Module, fidelity: Fidelity, steps: int = 0) -> Score:
        """Scores a network among many, on part of the samples where that orders them as well."""
        if self.reference is None or len(self.val) <= _TRIAL_SAMPLES:
            return self.score(model, fidelity, steps)
        part = self.val.subset(range(_TRIAL_SAMPLES))
        return evaluate(model, part, fidelity, steps, self.reference[:_TRIAL_SAMPLES])

    def reconstructed(self, policy: BitPolicy) -> nn.Module:
        """Returns the network after the post-training passes of finalists."""
        shown = _shown(self.train, _PASSES_IMAGES)
        if self.folded:
            return apply_passes(self.model, policy, None, shown, self.passes, self.seed)
        model = self.quantized(policy).eval()
        if "sequential" in self.passes:
            compensate_in_sequence(model, self.model, shown)
        return model

    @property
    def folded(self) -> bool:
        """Whether batch norms of finalists are folded."""
        return folds(self.passes)

    def restored(self, policy: BitPolicy, state: Mapping[str, Any]) -> nn.Module:
        """Returns a finalist's network from its state."""
        model = fold_batch_norm(self.model, self.train.batch([0])[0]) if self.folded else self.model
        model = prepare(model, policy)
        load_state(model, state)
        return model.eval()

    def finetuning(self, model: nn.Module, steps: int) -> Finetuning:
        """Returns a fine-tuning run of the whole length `steps`, with none of them taken."""
        return Finetuning(model, self.train, self.teacher, steps, self.seed)


def worker_device() -> torch.device:
    """Returns where a worker computes: on the GPU that Ray gave it; Ray hides GPUs from those that asked for none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_rank_by(config: SearchConfig, data: ImageData, score: Score, observer: Observer) -> RankBy:
    """Returns what policies are ranked by: as asked for, or what still tells them apart.

    Args:
        config: Options.
        data: Pictures or texts.
        score: Of the float network, on the validation samples.
        observer: Is told the reason.
    """
    if config.rank_by != "auto":
        return config.rank_by
    if isinstance(data.val, Tokens):
        observer.say(
            f"policies are ranked by loss, as is usual for language models: {score.loss:.3f} nats in floating point"
        )
        return "loss"
    if not config.qat_steps and not config.finetune_steps:
        observer.say(
            "policies are ranked by divergence from the float network: nothing is fine-tuned, so labels add noise"
        )
        return "kl"
    if score.top1 < _SATURATED:
        return "top1"
    observer.say(
        f"float top-1 on the validation samples is {score.top1:.1%}: the network fits them (or was trained on them), "
        "so policies are ranked by loss, which still tells them apart"
    )
    return "loss"


def make_workload(config: SearchConfig, problem: Problem, rank_by: RankBy, observer: Observer) -> Workload:
    """Calibrates every candidate width and computes the teacher's outputs."""
    observer.progress("calibrate", 0, 2)
    widths = {*problem.table.w_bits, *(width for width in problem.table.a_bits if width is not None)}
    calibration = calibrated(problem, widths, config.scheme)
    observer.progress("calibrate", 1, 2)
    train = problem.data.train
    teacher = teacher_of(problem.model, train) if config.qat_steps or config.finetune_steps else None
    observer.progress("calibrate", 2, 2)
    val = problem.data.val
    reference = teacher_of(problem.model, val) if rank_by == "kl" else None
    if isinstance(reference, nn.Module):
        raise ConfigError(
            f"--rank-by kl: the float network's outputs for {len(val)} validation samples take too much memory to "
            "compare with; use --rank-by loss, or fewer --val-images"
        )
    return Workload(problem.model, calibration, train, teacher, val, reference, config.ptq, rank_by, config.seed)


def calibrated(problem: Problem, widths: Iterable[int], scheme: str) -> Calibration:
    """Sets up the quantizers of these widths on the first training samples."""
    return calibrate(problem.model, _shown(problem.data.train, _CALIBRATION_IMAGES), widths, get_scheme(scheme))


def _shown(train: Samples, count: int) -> list[Tensor]:
    return [x for x, _ in train.subset(range(min(count, len(train)))).batches(64)]
