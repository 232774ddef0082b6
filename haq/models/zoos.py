"""Pretrained networks from `timm` and `torchvision`."""

from __future__ import annotations

from typing import Any

from torch import nn

from haq.errors import ModelError, did_you_mean
from haq.io.prefixes import need, one_line

__all__ = ["load_timm", "load_torchvision"]


def load_timm(name: str) -> nn.Module:
    """Returns a pretrained image classifier from `timm`.

    Raises:
        ModelError: The name is unknown, or the network cannot be downloaded.
    """
    asked = f"model 'timm:{name}'"
    timm = need("timm", "timm", asked, ModelError)
    return _made(asked, name, timm.list_models(pretrained=True), lambda: timm.create_model(name, pretrained=True))


def load_torchvision(name: str) -> nn.Module:
    """Returns a pretrained image classifier from `torchvision`, with its default weights.

    Raises:
        ModelError: The name is unknown, or the network cannot be downloaded.
    """
    asked = f"model 'torchvision:{name}'"
    models = need("torchvision", "torchvision", asked, ModelError).models
    return _made(asked, name, models.list_models(module=models), lambda: models.get_model(name, weights="DEFAULT"))


def _made(asked: str, name: str, known: list[str], make: Any) -> nn.Module:
    if name.partition(".")[0] not in {other.partition(".")[0] for other in known}:  # timm: architecture.weights
        raise ModelError(f"{asked} is unknown{did_you_mean(name, known)}; give one of its pretrained image classifiers")
    try:
        model: nn.Module = make()
    except Exception as failure:  # a download may raise anything
        raise ModelError(
            f"cannot load {asked}: {one_line(failure)}; go online once, then it stays in the cache"
        ) from None
    return model
