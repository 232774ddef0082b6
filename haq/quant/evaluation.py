"""Scoring a network on labelled images."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Images
from haq.layers import evaluating
from haq.scores import Fidelity, Score

__all__ = ["evaluate", "logits_of"]

_BATCH = 50  # what a layer computes for so few images stays in the cache


def logits_of(model: nn.Module, images: Images) -> Tensor:
    """Returns the network's outputs for all images in evaluation mode, `(N, classes)`."""
    with evaluating(model):
        return torch.cat([model(x) for x, _ in images.batches(_BATCH)])


def evaluate(model: nn.Module, images: Images, fidelity: Fidelity, steps: int = 0) -> Score:
    """Scores the network in evaluation mode.

    Args:
        model: Maps `(N, C, H, W)` to `(N, classes)`.
        images: What to score on.
        fidelity: How the network was made; kept in the score.
        steps: Fine-tuning steps behind it; kept in the score.
    """
    start = time.perf_counter()
    correct, loss = 0, 0.0
    with evaluating(model):
        for x, y in images.batches(_BATCH):
            logits = model(x)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    count = len(images)
    return Score(correct / count, loss / count, count, time.perf_counter() - start, fidelity, steps)
