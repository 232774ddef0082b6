"""Layers whose class has its own forward pass, such as weight standardisation or another kind of padding.

Such a pass still comes down to one convolution or matrix product. The pass runs unchanged, but its product is
intercepted on the way to PyTorch, so that it uses the weight that the layer holds and, later, quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.layers.variants import Variant

__all__ = ["PRODUCTS", "OwnForward", "StaysFloat", "Substituted", "arguments", "own_class"]

_CONVOLUTION = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1,
    "dilation": 1,
}  # fmt: skip
_NAMES: dict[Any, dict[str, Any]] = {
    F.linear: {"input": None, "weight": None, "bias": None},
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONVOLUTION),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
}

PRODUCTS = tuple(_NAMES)
"""Functions that every convolution and linear layer comes down to."""


def arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns all arguments of a product in order, with defaults filled in and single numbers repeated.

    Args:
        func: One of `PRODUCTS`.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
    """
    names = _NAMES[func]
    named = {**names, **dict(zip(names, args, strict=False)), **kwargs}
    for key in ("stride", "padding", "output_padding", "dilation"):
        if isinstance(value := named.get(key), int):
            named[key] = (value,) * (named["weight"].dim() - 2)
        elif isinstance(value, list):
            named[key] = tuple(value)
    return tuple(named.values())


class OwnForward(Variant):
    """Mixed into a layer whose forward pass makes one product; `product` computes it.

    Attributes:
        window: For a convolution, the product's `(stride, padding, dilation)`; the layer's attributes may differ.
    """

    window: tuple[Any, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward pass of the layer's class."""
        with _Taken(self):
            return own_class(self).forward(self, *args, **kwargs)

    def product(self, function: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """Returns the product of `x` with the weight that the layer holds.

        Args:
            function: One of `PRODUCTS`.
            x: Input of the product.
            *rest: Its arguments after the bias: stride, padding and so on.
        """
        return function(x, self.weight, self.bias, *rest)


class Substituted(Variant):
    """Mixed into a layer whose product cannot be intercepted; to quantize it, its weight is substituted."""


class StaysFloat(Variant):
    """Mixed into a layer that no policy gives widths to, because other code reads its weight too."""


class _Taken(TorchFunctionMode):
    def __init__(self, layer: OwnForward) -> None:
        super().__init__()
        self._layer = layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            x, _, _, *rest = arguments(func, args, kwargs or {})
            return self._layer.product(func, x, *rest)
        return func(*args, **(kwargs or {}))


def own_class(module: nn.Module) -> type[nn.Module]:
    """Returns the user's class that a variant was made from."""
    cls = type(module)
    while issubclass(cls, Variant):
        cls = cls.made_of[0]
    return cls
