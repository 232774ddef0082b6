"""Folds batch norms into the layers before them, because integer hardware has no normalisation step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from haq.layers import copied, quantizable_layers, reachable, replace_modules, run_sample, watched
from haq.layers.kinds import kind_of
from haq.torch_internals import BatchNorm

__all__ = ["batch_norms_after", "fold_batch_norm"]

logger = logging.getLogger(__name__)


def fold_batch_norm(model: nn.Module, sample: Tensor) -> nn.Module:
    """Returns a copy of `model` in evaluation mode with every batch norm folded into the layer that feeds it.

    Pairs are found by running the sample: a batch norm follows a layer if its input *is* the layer's output, however
    the forward pass is written. Another reader of that output would see a changed value. So the outputs of the folded
    network and the original are compared, and an unfolded copy is returned if they differ.

    Args:
        model: Any module.
        sample: One input, `(1, …)`.
    """
    model = reachable(model, sample)
    folded = copied(model).eval()
    pairs = batch_norms_after(folded, sample)
    if not pairs:
        return folded
    expected = run_sample(folded, sample)
    with torch.no_grad():
        for layer, norm in pairs:
            kind_of(layer).fold_norm(layer, norm)
    folded = replace_modules(folded, {norm: nn.Identity() for _, norm in pairs})
    result = run_sample(folded, sample)
    if torch.allclose(expected, result, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        return folded
    logger.warning("batch norms are not folded: a layer's output is read by more than its batch norm")
    return copied(model).eval()


def batch_norms_after(model: nn.Module, sample: Tensor) -> list[tuple[Any, BatchNorm]]:
    """Finds all `(layer, batch norm)` that run once and feed each other, by running the sample."""
    outputs: list[tuple[nn.Module, Tensor]] = []  # keeps tensors alive, so that identity means the same tensor
    inputs: list[tuple[BatchNorm, Tensor]] = []

    def layer_ran(module: nn.Module, x: Tensor, y: Tensor) -> None:
        outputs.append((module, y))

    def norm_ran(module: BatchNorm, x: Tensor) -> None:
        inputs.append((module, x))

    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    layers = [layer for _, layer in quantizable_layers(model) if kind_of(layer).folds_norm]
    with watched(layers, after=layer_ran), watched(norms, before=norm_ran):
        run_sample(model, sample)

    def once(module: nn.Module, calls: list[Any]) -> bool:
        return sum(called is module for called, _ in calls) == 1

    return [
        (layer, norm)
        for norm, x in inputs
        for layer, y in outputs
        if x is y and once(norm, inputs) and once(layer, outputs)
    ]
