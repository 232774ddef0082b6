"""How good a network is on a set of labelled samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from haq.io.validation import restored

__all__ = ["QUALITIES", "Fidelity", "RankBy", "Score"]

Fidelity = Literal["float", "ptq", "qat"]
"""How the network was made: in floating point, quantized after calibration, or also fine-tuned."""

RankBy = Literal["top1", "loss", "kl"]

QUALITIES: Mapping[RankBy, str] = {"top1": "top-1", "loss": "loss", "kl": "divergence"}
"""Names, for people, of what policies can be ranked by."""


@dataclass(frozen=True)
class Score:
    """Quality of one network.

    Attributes:
        top1: Fraction of samples, or of positions with a label, whose most likely class is correct, 0 to 1.
        loss: Mean cross-entropy in nats.
        samples: Number of labels: of samples, or of positions that have one.
        seconds: Wall time of making and scoring the network.
        fidelity: How the network was made.
        steps: Number of fine-tuning steps.
        kl: Mean Kullback-Leibler divergence of its class probabilities from those of the float network, in nats; `None`
            where it was not measured.
    """

    top1: float
    loss: float
    samples: int
    seconds: float
    fidelity: Fidelity
    steps: int = 0
    kl: float | None = None

    @property
    def finite(self) -> bool:
        """Whether the network has not diverged: the loss of a diverged one is NaN or infinite."""
        return math.isfinite(self.loss)

    def objective(self, rank_by: RankBy) -> float:
        """Returns the number that a search maximises, between 0 and 1.

        HAQ ranks by `top1`. Ranking by `loss` uses exp(−loss), the geometric mean of the probabilities given to the
        correct classes. It is on the same scale and still orders policies where top-1 no longer tells them apart, as on
        samples that a pretrained network was trained on. Ranking by `kl` uses exp(−divergence) from the float network,
        on samples of its own (`haq.quant.divergence.mixed`). It needs no labels, and it tells networks apart that
        differ in one answer of a thousand.
        """
        if not self.finite:
            return 0.0
        if rank_by == "top1":
            return self.top1
        lost = self.loss if rank_by == "loss" or self.kl is None else self.kl
        return math.exp(-lost)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Score:
        """Restores the result of `to_dict`."""
        return restored(cls, data)
