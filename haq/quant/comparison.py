"""Compares schemes on one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from haq.data import ImageData
from haq.quant.pipeline import Recipe, apply_policy, uniform_policy
from haq.quant.qat import BATCH_SIZE, Lessons
from haq.quant.reach import reached
from haq.quant.schemes import Scheme

__all__ = ["Compared", "compare_schemes"]


@dataclass(frozen=True)
class Compared:
    """Result of one scheme at one width.

    Attributes:
        scheme: Name of the scheme.
        w_bits: Width of weights in all layers but the first and the last.
        a_bits: Width of activations in these layers; `None` for floating point.
        top1: As in `haq.quant.pipeline.Result`.
        size_bytes: As in `haq.quant.pipeline.Result`.
    """

    scheme: str
    w_bits: int
    a_bits: int | None
    top1: Mapping[str, float]
    size_bytes: int


def compare_schemes(
    model: nn.Module,
    data: ImageData,
    schemes: Sequence[Scheme],
    widths: Sequence[int],
    qat_steps: int = 0,
    batch: int = BATCH_SIZE,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Compared]:
    """Applies uniform widths with several schemes, with the first and the last layer at 8 bits.

    Args:
        model: The float network.
        data: As in `apply_policy`.
        schemes: Schemes to compare.
        widths: Widths of weights; a scheme that supports none of them is applied at its own first width. The scheme
            determines the width of activations; see `Scheme.activation_width`.
        qat_steps: Fine-tuning steps.
        batch: Images per step.
        seed: Seed for the order of images.
        progress: Called with the number of cases done, their total, and the name of the next scheme.
    """
    cases = [
        (scheme, w_bits, scheme.activation_width(w_bits))
        for scheme in schemes
        for w_bits in ([width for width in widths if width in scheme.widths] or scheme.widths[:1])
    ]
    model, layers = reached(model, data.train.batch([0])[0])
    lessons = Lessons(data.train, model, seed, batch).prepared(qat_steps)
    found = []
    for done, (scheme, w_bits, a_bits) in enumerate(cases):
        progress(done, len(cases), scheme.name)
        policy = uniform_policy(layers, w_bits, a_bits).with_scheme(scheme.name)
        recipe = Recipe(scheme, qat_steps=qat_steps, batch=batch, seed=seed)
        result = apply_policy(model, policy, data, recipe, lessons=lessons)
        found.append(Compared(scheme.name, w_bits, a_bits, result.top1, result.size_bytes))
    progress(len(cases), len(cases), "")
    return found
