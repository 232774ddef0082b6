"""What a Ray worker does with a policy: quantize, calibrate, fine-tune in chunks, validate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune
from torch import Tensor, nn

from haq.data import Samples
from haq.policy import BitPolicy
from haq.quant.calibration import Calibration
from haq.quant.evaluation import evaluate
from haq.quant.preparation import prepare
from haq.quant.qat import Finetuning
from haq.scores import RankBy, Score
from haq.search.searcher import METRIC

__all__ = ["CHUNKS", "QuantizationTrial", "Workload", "scores_of"]

CHUNKS = 3
"""Fine-tuning of a trial is reported in so many parts, so that ASHA can stop it between them."""


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
        seed: Decides the order of training images, the same for every trial.
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


def scores_of(workload: Workload, policy: BitPolicy, qat_steps: int) -> Iterator[Score]:
    """Yields the score after calibration, then after each chunk of fine-tuning; stops early when it diverges."""
    start = time.perf_counter()
    model = workload.quantized(policy)
    score = evaluate(model, workload.val, "ptq")
    yield replace(score, seconds=time.perf_counter() - start)
    finetuning = workload.finetuning(model, qat_steps)
    for chunk in range(1, CHUNKS + 1 if qat_steps else 1):
        if not score.finite:
            return
        finetuning.run(round(qat_steps * chunk / CHUNKS) - finetuning.done)
        score = evaluate(model, workload.val, "qat", finetuning.done)
        yield replace(score, seconds=time.perf_counter() - start)


class QuantizationTrial(tune.Trainable):
    """One trial; its process serves many, with the workload read once from the object store.

    Every result holds `objective` and all `scores` so far; `error` when the trial failed.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds arguments
        self, config: dict[str, Any], workload: Workload, qat_steps: int
    ) -> None:
        """Reads the workload; Tune calls this once a process."""
        torch.set_num_threads(1)
        self._workload, self._qat_steps = workload, qat_steps
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in this process."""
        self._scores: list[Score] = []
        self._source = scores_of(self._workload, BitPolicy.from_dict(new_config["policy"]), self._qat_steps)
        self._planned = 1 + (CHUNKS if self._qat_steps else 0)
        return True

    def step(self) -> dict[str, Any]:
        """Reports the next score."""
        try:
            score = next(self._source)
            error = None if score.finite else f"the loss became {score.loss}"
            self._scores.append(score)
        except (RuntimeError, ValueError, MemoryError) as failure:  # the trial is lost, not the search
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        return {
            METRIC: 0.0 if error else score.objective(self._workload.rank_by),
            "scores": [score.to_dict() for score in self._scores],
            "error": error,
            "done": error is not None or len(self._scores) == self._planned,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keeps nothing: a trial that is lost is run again from its policy."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Has nothing to restore."""
