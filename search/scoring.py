"""What policies are ranked by, and how networks are scored for it."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import nn

from haq.config import SearchConfig
from haq.data import ImageData, Samples, Tokens
from haq.errors import ConfigError
from haq.progress import Observer
from haq.quant.divergence import Reference, mixed
from haq.quant.evaluation import evaluate, teacher_of
from haq.scores import Fidelity, RankBy, Score

__all__ = ["choose_rank_by", "reference_of", "scored"]

_COMPARED = 256  # samples for divergence, which orders policies on few samples; fewer of large networks
_SATURATED = 0.995  # at this validation top-1, too few images are wrong to tell policies apart


def choose_rank_by(
    config: SearchConfig, data: ImageData, score: Score, observer: Observer, tuned: bool, few_labels: bool = False
) -> RankBy:
    """Returns what policies are ranked by: the given option, or a measure that tells policies apart.

    Args:
        config: Options.
        data: Pictures or texts.
        score: Score of the float network on the validation samples.
        observer: Receives the reason for the choice.
        tuned: Whether any network is fine-tuned.
        few_labels: Whether the network is so large that only a few of the labelled samples are used.
    """
    if config.rank_by != "auto":
        return config.rank_by
    if isinstance(data.val, Tokens):
        observer.say(
            f"policies are ranked by loss, as is usual for language models: {score.loss:.3f} nats in floating point"
        )
        return "loss"
    if not tuned:
        observer.say(
            "policies are ranked by divergence from the float network on mixed samples: nothing is fine-tuned, so "
            "labels add noise"
        )
        return "kl"
    if few_labels:
        observer.say(
            "policies are ranked by divergence from the float network on mixed samples, which tells them apart on fewer"
            " samples than labels do"
        )
        return "kl"
    if score.top1 < _SATURATED:
        return "top1"
    observer.say(
        f"float top-1 on the validation samples is {score.top1:.1%}: the network fits them (or was trained on them), "
        "so policies are ranked by divergence from the float network on mixed samples, which still tells them apart"
    )
    return "kl"


def reference_of(
    model: nn.Module, val: Samples, seed: int, threads: int | None = None, count: int = _COMPARED
) -> Reference:
    """Returns mixed validation samples with the float network's outputs, to compare quantized networks with.

    Args:
        model: The float network.
        val: Validation samples.
        seed: Determines which samples are mixed.
        threads: See `haq.quant.evaluation.evaluate`.
        count: Number of samples.

    Raises:
        ConfigError: The outputs take too much memory.
    """
    samples = mixed(val, count, seed)
    logits = teacher_of(model, samples, threads)
    if isinstance(logits, nn.Module):
        raise ConfigError(
            f"--rank-by kl: the float network's outputs for {len(samples)} validation samples take too much memory to "
            "compare with; use --rank-by loss, or fewer --val-images"
        )
    return Reference(samples, logits)


def scored(
    model: nn.Module,
    samples: Samples,
    reference: Reference | None,
    fidelity: Fidelity,
    steps: int = 0,
    threads: int | None = None,
) -> Score:
    """Scores a network on labelled samples, and compares it with the float network if there is a reference.

    Args:
        model: The quantized network.
        samples: Labelled samples.
        reference: Samples and outputs of the float network to compare with.
        fidelity: How the network was made.
        steps: Fine-tuning steps that it had.
        threads: See `haq.quant.evaluation.evaluate`.
    """
    score = evaluate(model, samples, fidelity, steps, threads)
    if reference is None:
        return score
    start = time.perf_counter()
    kl = reference.divergence(model, threads)
    return replace(score, kl=kl, seconds=score.seconds + time.perf_counter() - start)
