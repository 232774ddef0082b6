"""Scores networks on labelled samples."""

from __future__ import annotations

import itertools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import IGNORED, Samples
from haq.errors import HaqError, ModelError
from haq.io.prefixes import one_line
from haq.layers import evaluating
from haq.layers.copying import sharing
from haq.scores import Fidelity, Score
from haq.threads import in_threads

__all__ = ["device_of", "evaluate", "labelled", "logits_of", "outputs_of", "teacher_of"]

_BATCH = 50  # so few samples that a layer's outputs stay in the cache
_PART = 1000  # most samples that a thread evaluates at a time
_TEACHER_BYTES = 2**28


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the network's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the network's outputs for these inputs.

    Raises:
        ModelError: The network fails, does not return a tensor, or has no entry for an integer of its inputs.
    """
    try:
        outputs = model(x)
    except (HaqError, MemoryError):
        raise
    except Exception as error:  # the model is the user's code
        given, fix = f"inputs of shape {tuple(x.shape)}", "check its forward pass"
        if isinstance(error, IndexError) and not x.is_floating_point():
            given = f"inputs with values from {int(x.min())} to {int(x.max())}"
            fix = "give indices for which its embeddings have rows"
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"{type(model).__name__} fails on {given}: {reason}; {fix}") from error
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"{type(model).__name__} returns a {type(outputs).__name__}, and haq does not know which part of it holds "
            "the logits; let its forward return one tensor in evaluation mode"
        )
    return outputs


def labelled(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the outputs that have labels, `(answers, classes)`, and these labels, `(answers,)`.

    Args:
        outputs: `(N, classes)`, or `(N, T, classes)`.
        y: `(N,)`, or `(N, T)` with `IGNORED` at positions without a label.
    """
    outputs, y = outputs.flatten(0, -2), y.flatten()
    counted = y != IGNORED
    if bool(counted.all()):
        return outputs, y.to(outputs.device)
    return outputs[counted.to(outputs.device)], y[counted].to(outputs.device)


def logits_of(model: nn.Module, samples: Samples, threads: int | None = None) -> Tensor:
    """Returns the network's outputs for all samples in evaluation mode, `(N, classes)` or `(N, T, classes)`.

    Args:
        model: See `evaluate`.
        samples: Inputs of the network.
        threads: See `evaluate`.
    """

    def outputs(part: range) -> Tensor:
        own, mine = _part(model, samples, part)
        with evaluating(own):
            return torch.cat([outputs_of(own, x.to(device_of(own))) for x, _ in mine.batches(_BATCH)])

    return torch.cat(in_threads(outputs, _parts(model, samples, threads), threads))


def teacher_of(model: nn.Module, samples: Samples, threads: int | None = None) -> Tensor | nn.Module:
    """Returns the network's outputs for all samples, or the network itself if they would take over 256 MiB.

    Args:
        model: See `evaluate`.
        samples: Inputs of the network.
        threads: See `evaluate`.
    """
    taken = logits_of(model, samples.subset([0])).nbytes * len(samples)
    return logits_of(model, samples, threads) if taken <= _TEACHER_BYTES else model


def _sums(model: nn.Module, samples: Samples) -> tuple[int, float]:
    """Returns the number of correct answers and the cross-entropy in nats, summed over the samples."""
    correct, loss = 0, 0.0
    device = device_of(model)
    with evaluating(model):
        for x, y in samples.batches(_BATCH):
            logits, y = labelled(outputs_of(model, x.to(device)), y)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    return correct, loss


def evaluate(
    model: nn.Module, samples: Samples, fidelity: Fidelity, steps: int = 0, threads: int | None = None
) -> Score:
    """Scores the network in evaluation mode.

    Args:
        model: Maps `(N, …)` to `(N, classes)`, or to `(N, T, classes)`; every position with a label counts.
        samples: Samples to score on.
        fidelity: How the network was made; stored in the score.
        steps: Fine-tuning steps that the network has had; stored in the score.
        threads: Number of parts evaluated at a time on the CPU; by default PyTorch's number of threads.
    """
    start = time.perf_counter()

    def score(part: range) -> tuple[int, float]:
        return _sums(*_part(model, samples, part))

    correct, loss = map(sum, zip(*in_threads(score, _parts(model, samples, threads), threads), strict=True))
    count = samples.answers
    return Score(correct / count, loss / count, count, time.perf_counter() - start, fidelity, steps)


def _parts(model: nn.Module, samples: Samples, threads: int | None) -> list[range]:
    """Splits the samples for threads of our own.

    PyTorch's threads wait for each other at every layer, which can take minutes on a busy machine.
    """
    count = (threads or torch.get_num_threads()) if device_of(model).type == "cpu" else 1
    if count > 1:
        count = max(count, -(-len(samples) // _PART))  # small parts, because Ctrl-C waits for those that have begun
    ends = [round(part * len(samples) / count) for part in range(count + 1)]
    return [range(low, high) for low, high in itertools.pairwise(ends) if high > low]


def _part(model: nn.Module, samples: Samples, part: range) -> tuple[nn.Module, Samples]:
    """Returns a network for one thread, and its part of the samples."""
    return (model, samples) if len(part) == len(samples) else (sharing(model), samples.subset(part))
