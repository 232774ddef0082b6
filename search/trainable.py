"""What a Ray worker does with a policy: quantize, calibrate, fine-tune in chunks, validate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from ray import tune

from haq.policy import BitPolicy
from haq.quant.evaluation import evaluate
from haq.scores import Score
from haq.search.searcher import METRIC
from haq.search.workload import Workload, worker_device

__all__ = ["CHUNKS", "QuantizationTrial", "scores_of"]

CHUNKS = 3
"""Fine-tuning of a trial is reported in so many parts, so that ASHA can stop it between them."""


def scores_of(workload: Workload, policy: BitPolicy, qat_steps: int) -> Iterator[Score]:
    """Yields the score after calibration, then after each chunk of fine-tuning; stops early when it diverges."""
    start = time.perf_counter()
    model = workload.quantized(policy).to(worker_device())
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
