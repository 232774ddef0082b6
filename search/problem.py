"""Everything that is known before the first trial: network, data, costs, budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from haq.config import SearchConfig
from haq.data import ImageData, get_data
from haq.envs import Budget
from haq.errors import ConfigError, DataError, HardwareError
from haq.hwmodels import CostTable, get_hardware
from haq.layers import LayerSpec, evaluating, trace
from haq.models import load_model, pretrained_digits
from haq.policy import LayerBits
from haq.search.observer import Observer

__all__ = ["Problem", "pinned_ends", "pose"]


@dataclass(frozen=True)
class Problem:
    """What is to be solved.

    Attributes:
        model: The float network, in evaluation mode.
        data: Training, validation and test images.
        sample: One training image, `(1, C, H, W)`.
        layers: In the order of their first call.
        table: Prices every layer at every width that may occur.
        budget: Candidate widths, pinned layers and limits.
    """

    model: nn.Module
    data: ImageData
    sample: Tensor
    layers: list[LayerSpec]
    table: CostTable
    budget: Budget


def pinned_ends(layers: list[LayerSpec]) -> dict[str, LayerBits]:
    """Holds the first and the last layer at 8 bits, as HAQ does; a network of one or two layers is left free."""
    if len(layers) <= 2:
        return {}
    return {layer.name: LayerBits(8, 8) for layer in (layers[0], layers[-1])}


def pose(config: SearchConfig, observer: Observer) -> Problem:
    """Loads, traces and prices; raises a `HaqError` for anything wrong with the options, and writes nothing.

    Raises:
        ConfigError: A width is not supported by the hardware.
        ConstraintError: No policy meets the constraints.
        DataError: The data cannot be used with the model.
        HardwareError: The hardware is unknown or its description is wrong.
        ModelError: The model or its weights are wrong.
    """
    hardware = get_hardware(config.hardware)
    data = get_data(config.data, config.val_images, config.seed)
    model = _load(config, data, observer)
    sample = data.train.batch([0])[0]
    layers = trace(model, sample)
    _check_classes(model, sample, data)
    widths = tuple(sorted({*config.bits, 8}))
    try:
        table = CostTable.build(hardware, layers, widths, widths, config.batch)
    except HardwareError as error:
        raise ConfigError(f"--bits with --hardware {config.hardware}: {error}") from None
    pinned = pinned_ends(layers) if config.pin_ends else {}
    return Problem(model, data, sample, layers, table, Budget(table, config.parsed_constraints(), config.bits, pinned))


def _check_classes(model: nn.Module, sample: Tensor, data: ImageData) -> None:
    with evaluating(model):
        logits = model(sample)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < data.num_classes:
        what = f"an output of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"the data has {data.num_classes} classes, but the model gives {what} for one image; "
            f"it must give (1, {data.num_classes}) or more classes"
        )
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the model gives NaN or infinite outputs for a training image; check its weights and the data")


def _load(config: SearchConfig, data: ImageData, observer: Observer) -> nn.Module:
    if (config.model, config.data, config.weights) == ("digits-resnet", "digits", None):
        return pretrained_digits(data.train, lambda done, total: observer.progress("train float", done, total))
    channels = data.train.batch([0])[0].shape[1]
    return load_model(config.model, config.weights, data.num_classes, channels)
