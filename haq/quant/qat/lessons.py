"""What a network is shown at each step of fine-tuning, and what it is to answer."""

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
from haq.quant.evaluation import device_of, logits_of, outputs_of
from haq.threads import in_threads

__all__ = ["BATCH_SIZE", "Lessons"]

BATCH_SIZE = 64
_SHOWN = 256  # samples that tell how far a network is from the float one
_KEPT_BYTES = 2**28
_PART = 16  # steps that one thread prepares


class Lessons:
    """Batches of mixed samples with the float network's answers, or of samples with their labels.

    The float network is sure of samples that it was trained on, and its answers to what lies between two of them say
    more; see `haq.quant.divergence.mixed`. Every sample is seen once before any is seen again. A step's lesson depends
    on nothing but its number, so that networks can be compared, and runs go on where they stopped.

    Args:
        samples: To train on.
        teacher: The float network; `None` for the labels.
        seed: Decides the order of the samples, and what is mixed.
        batch: Images a step; fewer texts, see `Samples.fitting`.
    """

    def __init__(self, samples: Samples, teacher: nn.Module | None, seed: int, batch: int = BATCH_SIZE) -> None:
        self.samples, self.teacher, self._seed = samples, teacher, seed
        self.size = min(samples.fitting(batch), len(samples))
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._kept: Sequence[Tensor] = ()
        self._expected: Tensor | None = None  # the teacher's classes for the samples shown first

    @property
    def epoch(self) -> int:
        """Steps after which every sample has been seen."""
        return len(self.samples) // self.size

    def prepared(self, steps: int, progress: Callable[[float], None] = lambda share: None) -> Lessons:
        """Returns the same lessons with the teacher's answers for the first `steps` at hand, if memory allows.

        Args:
            steps: That several networks will take.
            progress: Called with the share that is done, from threads.
        """
        teacher = self.teacher
        if teacher is None or not steps or device_of(teacher).type != "cpu":
            return self
        if self.at(0, torch.device("cpu"))[1].nbytes * steps > _KEPT_BYTES:
            return self

        parts = [range(first, min(first + _PART, steps)) for first in range(0, steps, _PART)]
        done: list[range] = []

        def answered(part: range) -> list[Tensor]:
            own = sharing(teacher)
            answers = [_answers(own, self._inputs(step)[0]).log_softmax(1) for step in part]
            done.append(part)
            progress(len(done) / len(parts))
            return answers

        made = copy.copy(self)
        made._expected = self._classes(teacher)
        made._kept = [answer for answers in in_threads(answered, parts) for answer in answers]
        return made

    def at(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns inputs, and log-probabilities `(answers, classes)`, or class indices `(answers,)` without a teacher.

        Args:
            step: Number of the step, from 0.
            device: Where the network computes.
        """
        x, y = self._inputs(step)
        if self.teacher is None:
            target = y.flatten()
        elif step < len(self._kept):
            target = self._kept[step]
        else:
            target = _answers(self.teacher, x).log_softmax(1)
        return x.to(device), target.to(device)

    def agreement(self, model: nn.Module) -> float | None:
        """Returns the share of samples on which the network's answer is the teacher's; `None` without a teacher."""
        if self.teacher is None:
            return None
        expected = self._classes(self.teacher) if self._expected is None else self._expected
        return float((self._classes(model) == expected).float().mean())

    def _classes(self, model: nn.Module) -> Tensor:
        """Returns a network's answers to the first samples, as few as fit into a batch where they are texts."""
        shown = self.samples.subset(range(min(self.samples.fitting(_SHOWN), len(self.samples))))
        return logits_of(model, shown).argmax(-1).cpu()

    def _inputs(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns what networks read, and the labels."""
        epoch, place = divmod(step, self.epoch)
        order = self._order
        if order is None or order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch, 19])
            self._order = order = epoch, rng.permutation(len(self.samples))
        x, y = self.samples.batch(order[1][place * self.size : (place + 1) * self.size])
        if self.teacher is not None and x.is_floating_point():
            x = between(x, np.random.default_rng([self._seed, step, 17]))
        return x, y


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the network's outputs on the CPU, `(answers, classes)`."""
    with evaluating(model):
        return outputs_of(model, fresh(x).to(device_of(model))).flatten(0, -2).cpu()
