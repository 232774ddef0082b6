"""Kinds of layers, one file each; `haq.registry.LAYERS` lists them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.kinds.base import LayerKind
from haq.layers.own_forward import StaysFloat
from haq.registry import LAYERS

__all__ = ["LayerKind", "bias_of", "kind_of", "known_kind"]


def known_kind(module: nn.Module) -> LayerKind | None:
    """Returns the kind of a layer; `None` if the module is no layer that can be quantized."""
    if isinstance(module, StaysFloat):
        return None
    cls: Any = type(module)  # mypy does not regard a type as hashable
    return next((kind for kind in _of_type(cls, LAYERS.changes) if kind.matches(module)), None)


@lru_cache(maxsize=4096)
def _of_type(cls: Any, changes: int) -> tuple[LayerKind, ...]:
    """Returns the kinds that a class belongs to, those of a user's own first; `changes` renews the answer."""
    # Networks that were opened before a user's file was run again have the classes that it made then
    kinds = [*(LAYERS[name] for name in reversed(list(LAYERS))), *reversed(LAYERS.replaced)]
    return tuple(kind for kind in kinds if issubclass(cls, kind.types))


def kind_of(layer: nn.Module) -> LayerKind:
    """Returns the kind of a layer.

    Raises:
        ModelError: The module is no layer that can be quantized.
    """
    kind = known_kind(layer)
    if kind is None:
        raise ModelError(f"{type(layer).__name__} is no layer that can be quantized; known kinds: {', '.join(LAYERS)}")
    return kind


def bias_of(layer: nn.Module) -> Tensor | None:
    """Returns the layer's bias, if it has one."""
    bias: Tensor | None = getattr(layer, "bias", None)
    return bias
