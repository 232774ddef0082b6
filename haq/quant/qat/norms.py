"""Finds the batch norms whose statistics may be updated from the activations of a quantized network."""

from __future__ import annotations

import logging

import numpy as np
from torch import Tensor, nn

from haq.data import Samples
from haq.errors import ModelError
from haq.layers import evaluating
from haq.quant.evaluation import device_of, outputs_of
from haq.torch_internals import BatchNorm

__all__ = ["norms_of", "trainable"]

logger = logging.getLogger(__name__)


def norms_of(model: nn.Module) -> dict[str, BatchNorm]:
    """Returns the network's batch norms by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}


def trainable(model: nn.Module, samples: Samples, size: int, quiet: bool) -> list[BatchNorm]:
    """Returns the batch norms whose statistics may be updated from batches of `size`.

    Args:
        model: A prepared network.
        samples: Samples to train on.
        size: Samples per step.
        quiet: Whether to leave out the warning about norms whose statistics cannot be updated.

    Raises:
        ModelError: A norm without running statistics needs larger batches.
    """
    norms = norms_of(model)
    modes = {module: module.training for module in model.modules()}
    model.train()
    free = {module for module in norms.values() if module.training}  # a network may keep some in evaluation mode
    for module, mode in modes.items():
        module.training = mode
    counts: dict[nn.Module, int] = {}

    def count(module: BatchNorm, args: tuple[Tensor, ...]) -> None:
        counts[module] = min(args[0].numel() // args[0].shape[1], counts.get(module, args[0].numel()))
        if counts[module] < 2 and module.running_mean is None:
            name = next(name for name, norm in norms.items() if norm is module)
            raise ModelError(
                f"batch norm {name!r} has no running statistics, and a batch of {size} gives it one value per channel; "
                "fine-tune with --batch 2 or more"
            )

    handles = [module.register_forward_pre_hook(count) for module in norms.values()]
    try:
        if norms:
            with evaluating(model):
                outputs_of(model, samples.batch(np.arange(size))[0].to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    single = [name for name, module in norms.items() if module in free and counts.get(module) == 1]
    if single and not quiet:
        logger.warning("batches of %d leave the statistics of %d batch norms unchanged", size, len(single))
    return [module for module in norms.values() if module in free and counts.get(module, 0) > 1]
