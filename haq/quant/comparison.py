"""Schemes side by side on one network."""

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
    """One scheme at one width.

    Attributes:
        scheme: Its name.
        w_bits: Of weights, between the ends.
        a_bits: Of activations, likewise; `None` for floating point.
        top1: As in `haq.quant.pipeline.Result`.
        size_bytes: Likewise.
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
    """Applies uniform widths by several schemes, with the ends at 8 bits.

    Args:
        model: The float network.
        data: As in `apply_policy`.
        schemes: One after the other.
        widths: Of weights; a scheme that defines none of them is shown at its first one. The scheme says which widths
            of activations go with them.
        qat_steps: As in `Recipe`, and so are `batch` and `seed`.
        batch: Images a step.
        seed: Decides the order of images.
        progress: Is told what is done, how much there is, and which scheme comes next.
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
