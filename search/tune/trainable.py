"""What a Ray worker does with a policy: quantize, calibrate, fine-tune in chunks, validate."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from ray import tune

from haq.policy import BitPolicy
from haq.scores import Score
from haq.search.tune.searcher import METRIC
from haq.search.workload import Workload, worker_device

__all__ = ["CHUNKS", "QuantizationTrial", "scores_of"]

CHUNKS = 3
"""Fine-tuning of a trial is split into this many parts, so that ASHA can stop it between them."""


def scores_of(workload: Workload, policy: BitPolicy, qat_steps: int) -> Iterator[Score]:
    """Yields the score after calibration, then after each chunk of fine-tuning; stops early if the network diverges.

    Args:
        workload: What all trials share.
        policy: Widths of the network.
        qat_steps: Fine-tuning steps in all; 0 for calibration only.
    """
    start = time.perf_counter()
    model = workload.quantized(policy).to(worker_device())
    score = workload.score_trial(model, "ptq")
    yield replace(score, seconds=time.perf_counter() - start)
    if not qat_steps:
        return
    finetuning = workload.finetuning(model, qat_steps)
    for chunk in range(1, CHUNKS + 1):
        if not score.finite:
            return
        finetuning.run(round(qat_steps * chunk / CHUNKS) - finetuning.done)
        score = workload.score_trial(model, "qat", finetuning.done)
        yield replace(score, seconds=time.perf_counter() - start)


class QuantizationTrial(tune.Trainable):
    """One trial; a process runs many of them, and reads the workload once from the object store.

    Every result has `objective`, all `scores` so far, and `error`, which is `None` unless the trial failed. A trial
    that fails is retried once from the beginning, because memory may have been short.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds arguments
        self, config: dict[str, Any], workload: Workload, qat_steps: int, timeout: float | None = None
    ) -> None:
        """Stores the workload; Tune calls this once per process.

        Args:
            config: The first trial, with its policy as JSON.
            workload: What all trials share.
            qat_steps: Fine-tuning steps of a trial.
            timeout: Seconds after which a trial fails; by default never.
        """
        torch.set_num_threads(1)
        self._workload, self._qat_steps, self._timeout = workload, qat_steps, timeout
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in this process."""
        self._scores: list[Score] = []
        self._policy = BitPolicy.from_dict(json.loads(new_config["policy"]))
        self._planned = 1 + (CHUNKS if self._qat_steps else 0)
        self._retried = False
        self._start()
        return True

    def _start(self) -> None:
        self._source = scores_of(self._workload, self._policy, self._qat_steps)
        self._started = time.monotonic()

    def step(self) -> dict[str, Any]:
        """Reports the next score."""
        score, error = self._next()
        if error is not None and not self._retried:
            self._retried = True
            self._start()
            for _ in range(len(self._scores) + 1):
                score, error = self._next()
                if error is not None:
                    break
        if score is not None:
            self._scores.append(score)
        return {
            METRIC: 0.0 if error or score is None else score.objective(self._workload.rank_by),
            "scores": [score.to_dict() for score in self._scores],
            "error": error,
            "done": error is not None or len(self._scores) == self._planned,
        }

    def _next(self) -> tuple[Score | None, str | None]:
        """Returns the next score, or the reason why there is no usable one; waits at most until the trial's timeout.

        A hanging operator cannot be interrupted: its thread is abandoned, and ends with the process.
        """
        if self._timeout is None:
            return self._attempt()
        found: list[tuple[Score | None, str | None]] = []
        thread = threading.Thread(target=lambda: found.append(self._attempt()), daemon=True)
        thread.start()
        thread.join(max(self._started + self._timeout - time.monotonic(), 0.0))
        if found:
            return found[0]
        return None, f"it took longer than --trial-timeout {self._timeout:g}"

    def _attempt(self) -> tuple[Score | None, str | None]:
        try:
            score = next(self._source)
        except Exception as failure:  # including errors of a user's network: only the trial fails, not the search
            return None, f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        return score, None if score.finite else f"the loss became {score.loss}"

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: a lost trial is run again from its policy."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Restores nothing."""
