"""Inputs and targets for each step of fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.data import Samples
from haq.layers import evaluating, fresh
from haq.layers.copying import sharing
from haq.quant.divergence import between
from haq.quant.evaluation import device_of, labelled, logits_of, outputs_of
from haq.threads import in_threads

__all__ = ["BATCH_SIZE", "Lessons"]

BATCH_SIZE = 64
_SHOWN = 256  # samples for measuring the agreement with the float network
_KEPT_BYTES = 2**28
_PART = 16  # steps that a thread prepares at a time


class Lessons:
    """Batches of mixed samples with the float network's answers, or of samples with their labels.

    The float network is confident about samples that it was trained on; its answers to mixtures of two samples hold
    more information; see `haq.quant.divergence.mixed`. Every sample is used once before any is used again. The lesson
    of a step depends only on the step's number, so that networks can be compared and runs can be resumed.

    Args:
        samples: Samples to train on.
        teacher: The float network; `None` to train on the labels.
        seed: Seed for the order and the mixing of samples.
        batch: Samples per step; fewer if each has many answers, see `Samples.fitting`.
        shown: Samples for measuring the agreement with the float network.
    """

    def __init__(
        self, samples: Samples, teacher: nn.Module | None, seed: int, batch: int = BATCH_SIZE, shown: int = _SHOWN
    ) -> None:
        self.samples, self.teacher, self._seed, self._shown = samples, teacher, seed, shown
        self.size = min(samples.fitting(batch), len(samples))
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._kept: Sequence[Tensor] = ()
        self._expected: Tensor | None = None  # the teacher's classes for the first samples, if already known

    @property
    def epoch(self) -> int:
        """Number of steps in which every sample is used once."""
        return len(self.samples) // self.size

    def prepared(self, steps: int, progress: Callable[[float], None] = lambda share: None) -> Lessons:
        """Returns the same lessons with stored answers of the teacher for the first `steps`, if memory allows.

        Args:
            steps: Number of steps that several networks will take.
            progress: Called from threads with the share that is done, from 0 to 1.
        """
        teacher = self.teacher
        if teacher is None or not steps or device_of(teacher).type != "cpu":
            return self
        first = self.at(0, torch.device("cpu"))[2]
        if first is None or first.nbytes * steps > _KEPT_BYTES:
            return self

        parts = [range(first, min(first + _PART, steps)) for first in range(0, steps, _PART)]
        done: list[range] = []

        def answered(part: range) -> list[Tensor]:
            own = sharing(teacher)
            answers = [_answers(own, *self._inputs(step)).log_softmax(1) for step in part]
            done.append(part)
            progress(len(done) / len(parts))
            return answers

        made = copy.copy(self)
        made._expected = self._classes(teacher)
        made._kept = [answer for answers in in_threads(answered, parts) for answer in answers]
        return made

    def at(self, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the inputs and the labels of a step, and the teacher's log-probabilities.

        The latter are `(answers, classes)`, an answer for each label; `None` without a teacher.

        Args:
            step: Number of the step, from 0.
            device: Device of the network.
        """
        x, y = self._inputs(step)
        if self.teacher is None:
            return x.to(device), y, None
        taught = self._kept[step] if step < len(self._kept) else _answers(self.teacher, x, y).log_softmax(1)
        return x.to(device), y, taught.to(device)

    def agreement(self, model: nn.Module) -> float | None:
        """Returns the share of answers in which the network and the teacher agree; `None` without a teacher."""
        if self.teacher is None:
            return None
        expected = self._classes(self.teacher) if self._expected is None else self._expected
        return float((self._classes(model) == expected).float().mean())

    def _classes(self, model: nn.Module) -> Tensor:
        """Returns a network's classes for the first samples; for fewer, if they have many answers."""
        shown = self.samples.subset(range(min(self.samples.fitting(self._shown), len(self.samples))))
        return labelled(logits_of(model, shown), torch.from_numpy(shown.y))[0].argmax(-1).cpu()

    def _inputs(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the inputs of a step, mixed if there is a teacher, and the labels."""
        epoch, place = divmod(step, self.epoch)
        order = self._order
        if order is None or order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch, 19])
            self._order = order = epoch, rng.permutation(len(self.samples))
        x, y = self.samples.batch(order[1][place * self.size : (place + 1) * self.size])
        if self.teacher is not None and x.is_floating_point():
            x = between(x, np.random.default_rng([self._seed, step, 17]))
        return x, y


def _answers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Returns the network's outputs that have labels on the CPU, `(answers, classes)`."""
    with evaluating(model):
        return labelled(outputs_of(model, fresh(x).to(device_of(model))), y)[0].cpu()
