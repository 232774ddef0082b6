"""What all trials share: network, calibration, images, and what policies are ranked by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from haq.config import SearchConfig
from haq.data import ImageData, Samples, Tokens
from haq.policy import BitPolicy
from haq.quant.calibration import Calibration, calibrate
from haq.quant.evaluation import teacher_of
from haq.quant.preparation import prepare
from haq.quant.qat import Finetuning
from haq.quant.schemes import get_scheme
from haq.scores import RankBy, Score
from haq.search.observer import Observer
from haq.search.problem import Problem

__all__ = ["Workload", "calibrated", "choose_rank_by", "make_workload", "worker_device"]

_CALIBRATION_IMAGES = 512
_SATURATED = 0.995  # a validation top-1 at which so few images are wrong that it no longer orders policies


@dataclass(frozen=True)
class Workload:
    """What all trials share; it lies once in Ray's object store.

    Attributes:
        model: The float network; batch norms stay, because fine-tuning trains them.
        calibration: Scales for every candidate width.
        train: Samples to fine-tune on.
        teacher: The float network's outputs for them, or, where these are large, the network; see `teacher_of`.
        val: Samples to score on.
        rank_by: What the objective is; see `Score.objective`.
        seed: Decides the order of training samples, the same for every trial.
    """

    model: nn.Module
    calibration: Calibration
    train: Samples
    teacher: Tensor | nn.Module
    val: Samples
    rank_by: RankBy
    seed: int

    def quantized(self, policy: BitPolicy) -> nn.Module:
        """Returns the calibrated network."""
        return prepare(self.model, policy, calibration=self.calibration)

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
    teacher = teacher_of(problem.model, train)
    observer.progress("calibrate", 2, 2)
    return Workload(problem.model, calibration, train, teacher, problem.data.val, rank_by, config.seed)


def calibrated(problem: Problem, widths: Iterable[int], scheme: str) -> Calibration:
    """Sets up the quantizers of these widths on the first training samples."""
    train = problem.data.train
    shown = train.subset(range(min(_CALIBRATION_IMAGES, len(train))))
    return calibrate(problem.model, [x for x, _ in shown.batches(64)], widths, get_scheme(scheme))
