"""How rounding a layer changes the network's answers, to second order: one backward pass for all layers and widths.

A change Δz of the outputs before the softmax moves the answers by a Kullback-Leibler divergence of about ½ Δzᵀ F Δz
with F = diag(p) − p pᵀ, the Fisher information (Martens 2020, arXiv:1412.1193, section 9.2). With F = A Aᵀ,
A = (I − p 1ᵀ) diag(√p), and random signs v, E[(vᵀAᵀ Δz)²] is the same; and vᵀAᵀ Δz is g·Δy for a change Δy of what a
layer computes, where g is the gradient of vᵀAᵀ z. No labels are needed. Drawing answers instead of signs has the same
mean, but then rare answers of a confident network count for much. Unlike the diagonal of F, this includes what the
errors of several weights do together.

Of a layer that is no product of matrices, such as a table of embeddings, only the gradient for the whole batch is
taken. The signs of two samples are independent, so the square of the sum over samples has the same mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.data import IGNORED
from haq.layers import fresh, quantizable_layers, watched
from haq.layers.kinds import kind_of
from haq.layers.running import put_in_place
from haq.quant.compensation.moments import is_product
from haq.quant.evaluation import outputs_of

__all__ = ["Change", "squared_effects"]

Array = NDArray[np.float64]
Change = tuple[str, int, int]
"""(Layer, 0 for its weights or 1 for its input, width)."""

_GRADIENT_BYTES = 2**26  # of the weight's gradients for the samples of a chunk


def squared_effects(
    model: nn.Module,
    weights: Mapping[Change, tuple[Tensor, Tensor | None]],
    quantizers: Mapping[Change, nn.Module],
    x: Tensor,
    rng: torch.Generator,
    y: Tensor | None = None,
) -> dict[Change, float]:
    """Returns ½ Σ (g·Δ)² over the samples of a batch, for every change.

    Args:
        model: The float network, in evaluation mode.
        weights: Change → difference of the weight, and of the bias.
        quantizers: Change → quantizer of the layer's input.
        x: `(N, ...)`.
        rng: Draws the signs.
        y: Labels, `(N,)` or `(N, T)`; answers at positions that are `IGNORED` do not count.
    """
    layers = dict(quantizable_layers(model))
    names: dict[Any, str] = {layers[name]: name for name in {change[0] for change in (*weights, *quantizers)}}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    read: list[Tensor] = []

    whole = {layer: layer.weight.detach().requires_grad_() for layer in names if not is_product(layer)}

    # Copies, because other operations may write over a layer's input and output
    def before(layer: Any, given: Tensor) -> Tensor:
        if not given.is_floating_point():
            read.append(given)
            return given
        read.append(given.detach().requires_grad_() if not given.requires_grad else given.clone())
        return read[-1]

    def after(layer: Any, given: Tensor, y: Tensor) -> Tensor:
        calls.append((layer, read[-1], y))
        return y.clone()

    with ExitStack() as stack:
        for layer, weight in whole.items():
            stack.enter_context(put_in_place(layer, "weight", weight))
        stack.enter_context(watched(names, before=before, after=after))
        stack.enter_context(torch.enable_grad())
        logits = outputs_of(model, fresh(x)).flatten(0, -2)
        p = logits.detach().softmax(1)
        signed = p.sqrt() * (2.0 * torch.randint(2, p.shape, generator=rng) - 1)
        weights_of_z = signed - p * signed.sum(1, keepdim=True)
        if y is not None:
            weights_of_z[y.flatten() == IGNORED] = 0
        wanted = [given for _, given, _ in calls if given.requires_grad]
        wanted += [output for *_, output in calls] + list(whole.values())
        gradients = torch.autograd.grad((weights_of_z * logits).sum(), wanted, allow_unused=True)
    found = dict(zip(map(id, wanted), gradients, strict=True))
    effects: dict[Change, Tensor] = defaultdict(lambda: torch.zeros(len(x)))
    with torch.no_grad():
        for layer, weight in whole.items():
            for change, (added, _) in weights.items():
                if change[0] == names[layer] and (gradient := found[id(weight)]) is not None:
                    effects[change][0] += (gradient * added).sum()
        for layer, given, output in calls:
            by_input, by_output = found.get(id(given)), found[id(output)]
            name = names[layer]
            for change, quantizer in quantizers.items():
                if change[0] == name and by_input is not None:
                    moved = (quantizer(given) - given) * by_input
                    samples = _samples(given, len(x))
                    effects[change][:samples] += moved.reshape(samples, -1).sum(1)
            mine = {change: added for change, added in weights.items() if change[0] == name}
            if mine and by_output is not None and layer not in whole:
                samples = _samples(given, len(x))
                dots = _weight_effects(layer, given.detach(), by_output, list(mine.values()), samples)
                for change, dot in zip(mine, dots, strict=True):
                    effects[change][:samples] += dot
    return {change: float(0.5 * effect.double().square().sum()) for change, effect in effects.items()}


def _samples(given: Tensor, samples: int) -> int:
    """Returns how many samples an input is cut into: 1 if they are not its first dimension, as in packed sequences."""
    return 1 if len(given) % samples else samples


def _weight_effects(
    layer: nn.Module, x: Tensor, gradient: Tensor, added: Sequence[tuple[Tensor, Tensor | None]], samples: int
) -> Tensor:
    """Returns Σ g·Δy for each sample, `(changes, samples)`, from the weight's gradient for each sample."""
    rows, columns = gradient_and_columns(layer, x, gradient, samples)  # (N, groups, M, P), (N, groups, K, P)
    moved = torch.stack([weight.flatten() for weight, _ in added])
    shifts = torch.stack([torch.zeros(rows.shape[1] * rows.shape[2]) if b is None else b for _, b in added])
    size = max(1, _GRADIENT_BYTES // (4 * moved.shape[1]))
    dots = [
        moved @ (rows[start : start + size] @ columns[start : start + size].transpose(2, 3)).flatten(1).t()
        + shifts @ rows[start : start + size].sum(3).flatten(1).t()
        for start in range(0, samples, size)
    ]
    return torch.cat(dots, 1)


def gradient_and_columns(layer: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Returns a layer's gradient and input as the operands of its product.

    Args:
        layer: A layer that is a product.
        x: What it read.
        gradient: Of its output.
        samples: N; `x` may hold several windows of each sample.

    Returns:
        The output's gradient, `(N, groups, M, P)`, and the input's columns, `(N, groups, K, P)`.
    """
    kind = kind_of(layer)
    rows, columns = kind.results(layer, gradient), kind.windows(layer, x)
    if len(x) == samples:
        return rows, columns

    def by_sample(values: Tensor) -> Tensor:  # a network may fold windows of a sample into the batch
        return values.reshape(samples, -1, *values.shape[1:]).permute(0, 2, 3, 1, 4).flatten(3)

    return by_sample(rows), by_sample(columns)
