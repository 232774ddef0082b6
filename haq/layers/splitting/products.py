"""Functions of one weight as the layers that they come down to: `F.linear(x, w)`, `x @ w`, `F.conv1d(x, w)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.splitting.base import filled

__all__ = ["Product", "layer_of", "product_of", "turns"]

_LINEAR = {"input": None, "weight": None, "bias": None}
_ADDMM = {"bias": None, "input": None, "weight": None, "beta": 1, "alpha": 1}
_CONV = {**_LINEAR, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {**_LINEAR, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_LOOKUP = {
    "input": None, "weight": None, "padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False,
    "sparse": False,
}  # fmt: skip

_FUNCTIONS: dict[Any, tuple[str, Mapping[str, Any]]] = {
    F.linear: ("Linear", _LINEAR),
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), ("matmul", _LINEAR)),
    **dict.fromkeys((torch.addmm, Tensor.addmm), ("addmm", _ADDMM)),
    torch.conv1d: ("Conv1d", _CONV),
    torch.conv2d: ("Conv2d", _CONV),
    torch.conv3d: ("Conv3d", _CONV),
    torch.conv_transpose1d: ("ConvTranspose1d", _TRANSPOSED),
    torch.conv_transpose2d: ("ConvTranspose2d", _TRANSPOSED),
    torch.conv_transpose3d: ("ConvTranspose3d", _TRANSPOSED),
    F.embedding: ("Embedding", _LOOKUP),
    Tensor.__getitem__: ("Embedding", {"weight": None, "input": None}),
}
"""Function → what it is, and its arguments with their defaults."""

_TURN = ("t", "transpose", "swapaxes", "swapdims", "permute", "adjoint", "__get__")
"""Functions that may transpose a matrix; `__get__` is that of `.T` and `.mT`."""


@dataclass(frozen=True)
class Product:
    """A product of an input with one weight.

    Attributes:
        kind: Name of the layer's class in `torch.nn`.
        options: What else the class takes, by name, beside numbers of channels and the kernel.
        turned: Whether the layer's weight is the transpose of the one in the call.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    turned: bool = False

    def spread(self, bias: Tensor) -> Tensor:
        """Returns a bias in the shape in which it is added to the product."""
        return bias.reshape(-1, *(1,) * int(self.kind[-2])) if self.kind.endswith("d") else bias


def product_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Product, dict[str, Any]] | None:
    """Returns the product that a call computes, and its arguments by name, among them `input` and `weight`.

    Args:
        func: Any function.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        `None` if no layer computes the same.
    """
    if func not in _FUNCTIONS:
        return None
    kind, defaults = _FUNCTIONS[func]
    named = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
    if named.keys() != defaults.keys() or len(args) > len(defaults) or getattr(named["input"], "shape", None) is None:
        return None
    options = {name: value for name, value in named.items() if name not in _LINEAR}
    if kind in ("Linear", "matmul", "addmm"):
        usual = options == ({"beta": 1, "alpha": 1} if kind == "addmm" else {}) and named["weight"].dim() == 2
        return (Product("Linear", turned=kind != "Linear"), named) if usual else None
    if kind == "Embedding":
        usual = all(value == _LOOKUP[name] for name, value in options.items()) and named["weight"].dim() == 2
        return (Product(kind), named) if usual and named["input"].dtype in (torch.int64, torch.int32) else None
    plain = ((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(options.items()))
    return Product(kind, tuple(plain)), named


def turns(func: Any, given: Tensor, result: Any) -> bool:
    """Whether a call only transposed a matrix."""
    if getattr(func, "__name__", "") not in _TURN or not isinstance(result, Tensor) or given.dim() != 2:
        return False
    return (result.shape, result.stride()) == (given.shape[::-1], given.stride()[::-1])


def layer_of(product: Product, weight: nn.Parameter) -> nn.Module:
    """Returns a layer without a bias that computes a product with a parameter, which it holds.

    Args:
        product: The product.
        weight: As in the call; if it is turned, the layer holds its transpose, a new parameter.
    """
    if product.turned:
        weight = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
    make: type[nn.Module] = getattr(nn, product.kind)
    options, shape = dict(product.options), tuple(weight.shape)
    if product.kind == "Linear":
        return filled(lambda: nn.Linear(shape[1], shape[0], bias=False), weight)
    if product.kind == "Embedding":
        return filled(lambda: nn.Embedding(shape[0], shape[1]), weight)
    first, second, *kernel = shape
    second *= options["groups"]
    channels = (first, second) if product.kind.startswith("ConvTranspose") else (second, first)
    return filled(lambda: make(*channels, tuple(kernel), bias=False, **options), weight)
