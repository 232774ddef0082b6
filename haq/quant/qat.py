"""Quantization-aware fine-tuning by distillation from the float network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Images
from haq.quant.quantizers import Quantizer

__all__ = ["BATCH_SIZE", "Finetuning"]

BATCH_SIZE = 64
_WEIGHT_RATE = 6e-5
_SCALE_RATE = 2e-3


class Finetuning:
    """A fine-tuning run that can be advanced in chunks.

    The quantized network learns to give the float network's outputs: the loss is the Kullback-Leibler divergence of
    the two softmax distributions (Hinton et al. 2015, arXiv:1503.02531, with temperature 1). A pretrained network fits
    its training labels almost perfectly, so labels hold little gradient, while its outputs still do. Adam, with a
    cosine from the full rate to zero over `steps`. Batch norms that were not folded keep their statistics.

    Args:
        model: A prepared network; it is trained in place.
        images: Training images.
        teacher: The float network's outputs for them, `(N, classes)`.
        steps: Length of the whole run.
        seed: Decides the order of the images.
        rate: Multiplies the default learning rates.
    """

    def __init__(
        self, model: nn.Module, images: Images, teacher: Tensor, steps: int, seed: int, rate: float = 1.0
    ) -> None:
        self.model, self.images, self.teacher, self.steps = model, images, teacher, steps
        self.done = 0
        scales = [m.log_scale for m in model.modules() if isinstance(m, Quantizer)]
        known = {id(scale) for scale in scales}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self._optimizer = torch.optim.Adam(
            [{"params": weights, "lr": rate * _WEIGHT_RATE}, {"params": scales, "lr": rate * _SCALE_RATE}]
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        )
        self._batches = _endless_batches(len(images), np.random.default_rng(seed))

    def run(self, steps: int) -> float:
        """Takes up to `steps` more steps, never past the whole run, and returns the last batch's loss in nats."""
        self.model.eval()  # statistics and dropout stay as deployed; gradients flow all the same
        loss = torch.zeros(())
        for _ in range(min(steps, self.steps - self.done)):
            chosen = next(self._batches)
            x, _ = self.images.batch(chosen)
            target = F.log_softmax(self.teacher[torch.from_numpy(chosen)], dim=1)
            self._optimizer.zero_grad(set_to_none=True)
            loss = F.kl_div(F.log_softmax(self.model(x), dim=1), target, reduction="batchmean", log_target=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self.done += 1
        return float(loss.detach())


def _endless_batches(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields index arrays; every image is seen once before any is seen again."""
    size = min(BATCH_SIZE, count)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
