"""How many samples each step of a search takes: fewer of a large network, so that its first trial starts soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from haq.data import ImageData, Samples
from haq.layers import LayerSpec
from haq.quant.effort import affordable
from haq.quant.qat import BATCH_SIZE

__all__ = ["Effort", "at_most"]

_SENSITIVITY_PASSES = 5  # a forward and a backward pass, and the gradient of each sample's weights
_TRAINING_PASSES = 4
# Seconds that two cores may take, for the network's layers alone
_CALIBRATION_S, _PASSES_S, _SCORE_S, _SENSITIVITY_S, _LESSON_S = 20.0, 40.0, 8.0, 40.0, 2.0
_LEAST, _LEAST_LESSON = 16, 8
_ENOUGH_LABELS = 256  # fewer leave too few wrong answers to tell policies apart
_LONG_LESSONS = 1e12  # multiply-accumulates; beyond, the float network's answers are computed when they are needed


@dataclass(frozen=True)
class Effort:
    """The most samples that each step takes; the defaults are those of small networks.

    They follow from counts of multiply-accumulates, so they are the same on every machine.

    Attributes:
        macs: Multiply-accumulates of the network's layers for one sample.
        calibration: Samples for the ranges of inputs and the moments of layers.
        passes: Samples for post-training passes.
        validation: Samples that networks are scored on; `None` for all.
        labels: Samples for the top-1 of a trial if something else ranks it.
        compared: Samples on which networks are compared with the float network.
        sensitivity: Samples for sensitivities.
        lesson: Samples in a step of fine-tuning.
        cut: What there is less of than usual: name → usual number of samples, and this one.
    """

    macs: int = 0
    calibration: int = 512
    passes: int = 1024
    validation: int | None = None
    labels: int = 128
    compared: int = 256
    sensitivity: int = 512
    lesson: int = BATCH_SIZE
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Sequence[LayerSpec], data: ImageData) -> Self:
        """Returns the numbers for a network and its data.

        Args:
            layers: Layers of the network.
            data: Its data.
        """
        macs, usual, train, val = sum(layer.macs for layer in layers), cls(), len(data.train), len(data.val)
        # What there is, passes over the network for each sample, seconds, and the least number
        steps = {
            "calibration": (min(usual.calibration, train), 1, _CALIBRATION_S, _LEAST),
            "passes": (min(usual.passes, train), 1, _PASSES_S, _LEAST),
            "validation": (val, 1, _SCORE_S, _LEAST),
            "labels": (min(usual.labels, val), 1, _SCORE_S, _LEAST),
            "compared": (min(usual.compared, val), 1, _SCORE_S, _LEAST),
            "sensitivity": (min(usual.sensitivity, train), _SENSITIVITY_PASSES, _SENSITIVITY_S, _LEAST),
            "lesson": (usual.lesson, _TRAINING_PASSES, _LESSON_S, _LEAST_LESSON),
        }
        taken = {
            name: affordable(count, passes * macs, seconds, least)
            for name, (count, passes, seconds, least) in steps.items()
        }
        cut = {name: (steps[name][0], count) for name, count in taken.items() if count < steps[name][0]}
        return cls(macs, **{name: taken[name] for name in cut}, cut=cut)

    @property
    def few_labels(self) -> bool:
        """Whether so few validation samples are scored that labels no longer tell policies apart."""
        return self.validation is not None and self.validation < _ENOUGH_LABELS

    def prepares(self, steps: int) -> bool:
        """Whether the float network's answers for this many steps of fine-tuning are computed in advance."""
        return self.macs * self.lesson * steps <= _LONG_LESSONS

    def __str__(self) -> str:
        """Says in one line what there is less of than usual; empty for a network that is not large."""
        words = {
            "calibration": "calibrating on {1:,} of {0:,} samples",
            "validation": "scoring on {1:,} of {0:,}",
            "sensitivity": "measuring sensitivities on {1:,} of {0:,}",
            "lesson": "fine-tuning with {1:,} samples a step, not {0:,}",
        }
        said = [words[name].format(*counts) for name, counts in self.cut.items() if name in words]
        if not said:
            return ""
        return f"the network is large ({self.macs / 1e9:.1f} G multiplications a sample): " + ", ".join(said)


def at_most(samples: Samples, count: int | None) -> Samples:
    """Returns the first samples; all, for `None` or if there are not more."""
    return samples if count is None or count >= len(samples) else samples.subset(range(count))
