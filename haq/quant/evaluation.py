"""Scoring a network on labelled samples."""

from __future__ import annotations

import itertools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Samples
from haq.errors import ModelError
from haq.layers import evaluating
from haq.layers.copying import sharing
from haq.scores import Fidelity, Score
from haq.threads import in_threads

__all__ = ["device_of", "evaluate", "logits_of", "outputs_of", "teacher_of"]

_BATCH = 50  # what a layer computes for so few images stays in the cache
_TEACHER_BYTES = 2**28


def device_of(model: nn.Module) -> torch.device:
    """Returns where the network computes."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Returns what the network gives for these inputs.

    Raises:
        ModelError: It is no tensor.
    """
    outputs = model(x)
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"{type(model).__name__} returns a {type(outputs).__name__}, and which part of it is the logits is not "
            "known; let its forward return one tensor in evaluation mode"
        )
    return outputs


def logits_of(model: nn.Module, samples: Samples) -> Tensor:
    """Returns the network's outputs for all samples in evaluation mode, `(N, classes)` or `(N, T, words)`."""
    with evaluating(model):
        return torch.cat([outputs_of(model, x.to(device_of(model))) for x, _ in samples.batches(_BATCH)])


def teacher_of(model: nn.Module, samples: Samples) -> Tensor | nn.Module:
    """Returns the network's outputs for all samples, or, where they would take much memory, the network itself."""
    taken = logits_of(model, samples.subset([0])).nbytes * len(samples)
    return logits_of(model, samples) if taken <= _TEACHER_BYTES else model


def _sums(model: nn.Module, samples: Samples, reference: Tensor | None) -> tuple[int, float, float]:
    """Returns right answers, cross-entropy and divergence, summed over the samples."""
    correct, seen, loss, divergence = 0, 0, 0.0, 0.0
    device = device_of(model)
    with evaluating(model):
        for x, y in samples.batches(_BATCH):
            logits, y = outputs_of(model, x.to(device)).flatten(0, -2), y.to(device).flatten()
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            if reference is not None:
                exact = reference[seen : seen + len(x)].to(device).flatten(0, -2).log_softmax(1)
                divergence += float(F.kl_div(logits.log_softmax(1), exact, reduction="sum", log_target=True))
                seen += len(x)
    return correct, loss, divergence


def evaluate(
    model: nn.Module, samples: Samples, fidelity: Fidelity, steps: int = 0, reference: Tensor | None = None
) -> Score:
    """Scores the network in evaluation mode.

    Args:
        model: Maps `(N, C, H, W)` to `(N, classes)`, or tokens `(N, T)` to `(N, T, words)`, all of which count.
        samples: What to score on.
        fidelity: How the network was made; kept in the score.
        steps: Fine-tuning steps behind it; kept in the score.
        reference: The float network's outputs for the samples, to compare with.
    """
    start = time.perf_counter()
    # PyTorch's own threads wait for each other at every layer, and on a busy machine for minutes
    parts = torch.get_num_threads() if device_of(model).type == "cpu" else 1
    ends = [round(part * len(samples) / parts) for part in range(parts + 1)]

    def score(part: range) -> tuple[int, float, float]:
        if len(part) == len(samples):
            return _sums(model, samples, reference)
        exact = None if reference is None else reference[part.start : part.stop]
        return _sums(sharing(model), samples.subset(part), exact)

    found = in_threads(score, [range(low, high) for low, high in itertools.pairwise(ends) if high > low])
    correct, loss, divergence = map(sum, zip(*found, strict=True))
    count = samples.y.size
    kl = None if reference is None else max(divergence, 0.0) / count  # rounding may leave −1e-9 of nothing
    return Score(correct / count, loss / count, count, time.perf_counter() - start, fidelity, steps, kl)
