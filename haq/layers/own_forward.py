"""Layers whose class has its own forward pass, such as weight standardisation or another kind of padding.

Such a pass still comes down to one convolution or matrix product. The pass runs unchanged, but its product is
intercepted on the way to PyTorch, so that it uses the weight that the layer holds and, later, quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.errors import ModelError
from haq.layers.variants import Variant, become
from haq.torch_internals import CONV_FORWARD, padding_of, parameters_of

__all__ = [
    "PRODUCTS",
    "OwnForward",
    "Substituted",
    "arguments",
    "has_own_forward",
    "own_class",
    "settle",
    "usual",
    "window_of",
]

PRODUCTS = (torch.conv2d, F.linear)
"""Functions that every convolution and linear layer comes down to."""

Layer = nn.Conv2d | nn.Linear


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


def has_own_forward(layer: Layer) -> bool:
    """Whether calling the layer does anything but PyTorch's own product with its weight, or ours."""
    if type(layer).forward.__module__.startswith("haq."):
        return False
    cls, base = type(layer), nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    names = ["forward", "__call__", *([CONV_FORWARD] if base is nn.Conv2d else [])]
    return "forward" in vars(layer) or any(getattr(cls, name) is not getattr(base, name) for name in names)


def window_of(conv: nn.Conv2d) -> tuple[tuple[int, int], list[int], tuple[int, int]]:
    """Returns the stride, the padding in the order of `F.pad`, and the dilation of a convolution's product."""
    if not isinstance(conv, OwnForward):
        return _pair(conv.stride), padding_of(conv), _pair(conv.dilation)
    stride, padding, dilation = conv.window
    sides: list[int] = []
    for axis in (1, 0):  # F.pad starts with the last dimension
        total = dilation[axis] * (conv.kernel_size[axis] - 1) if padding == "same" else 0
        before = total // 2 if isinstance(padding, str) else padding[axis]
        sides += [before, total - before if isinstance(padding, str) else before]
    return stride, sides, dilation


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def settle(name: str, layer: Layer) -> None:
    """Changes a layer with its own forward pass, in place, so that it computes with the weight that it holds.

    The pass is tried on generated inputs. If it only prepares the weight (weight standardisation), the layer becomes a
    plain one with that weight. If it does more (padding), it keeps its code and its product is intercepted. If its
    weight depends on the input, or if it makes several products, its weight is substituted later.

    Args:
        name: Name of the layer, for messages.
        layer: Layer with its own forward pass, in evaluation mode.

    Raises:
        ModelError: The layer has no weight, and no product that would show one.
    """
    if "forward" in vars(layer):
        _adopt(layer)
    calls = [_tried(layer, scale) for scale in (1.0, 0.5)]
    weight = _parameter(layer, "weight")
    if None in calls:
        if weight is None:
            kind = type(layer).__name__
            raise ModelError(f"layer {name!r} ({kind}) holds no weight and makes none; give it a parameter `weight`")
        become(layer, Substituted)
        return
    first, second = cast(list[_Call], calls)
    if not torch.equal(first.weight, second.weight) or not _same(first.bias, second.bias):
        become(layer, Substituted)
        return
    if weight is None or first.weight is not weight:
        layer.weight = nn.Parameter(first.weight.detach().clone())
    if first.bias is not _parameter(layer, "bias"):
        parameters_of(layer)["bias"] = None if first.bias is None else nn.Parameter(first.bias.detach().clone())
    if first.plain:
        layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    else:
        become(layer, OwnForward)
        cast(OwnForward, layer).window = first.rest[:3]


@dataclass(frozen=True)
class _Call:
    """The only product of a forward pass; `plain` if the pass does nothing else."""

    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]
    plain: bool


class _Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.results: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.calls.append(arguments(func, args, kwargs or {}))
            self.results.append(result)
        return result


def _tried(layer: Layer, scale: float) -> _Call | None:
    """Returns the product that the forward pass makes with a generated input, or `None` unless it makes exactly one."""
    if any(isinstance(child, nn.Conv2d | nn.Linear) for child in layer.children()):
        return None
    for x in _made_up(layer, scale):
        if (found := _seen(layer, x)) is not None:
            calls, alone = found
            if len(calls) != 1:
                return None
            (_, weight, bias, *rest) = calls[0]
            return _Call(weight, bias, tuple(rest), alone and rest == usual(layer))
    return None


def _seen(layer: Layer, x: Tensor) -> tuple[list[tuple[Any, ...]], bool] | None:
    """Returns the arguments of the layer's products for `x`, and whether it does nothing but the last; `None` on error.

    User code may fail on an input that it is not made for.
    """
    mode, given = _Seen(), x.clone()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), mode:
            y = layer(x)
    except Exception:
        return None
    alone = bool(mode.calls) and y is mode.results[-1] and mode.calls[-1][0] is x and torch.equal(x, given)
    return mode.calls, alone and not list(layer.children())


def _made_up(layer: Layer, scale: float) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        shapes = [(2, layer.in_features), (2, 3, layer.in_features)]
    else:
        reach = max(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        side = max(8, 2 * reach)
        shapes = [(2, layer.in_channels, side, side)]
    parameter = next(layer.parameters(), torch.zeros(()))
    return [(torch.randn(shape, generator=rng) * scale).to(parameter.device, parameter.dtype) for shape in shapes]


def usual(layer: Layer) -> list[Any]:
    """Returns the arguments after the bias that PyTorch's own layer gives to its product."""
    if isinstance(layer, nn.Linear):
        return []
    if layer.padding_mode != "zeros":
        return [None]  # PyTorch pads first, so the product never gets the layer's input itself
    return [layer.stride, layer.padding, layer.dilation, layer.groups]


def arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns all arguments of a product in order, with defaults filled in and single numbers turned into pairs.

    Args:
        func: One of `PRODUCTS`.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
    """
    if func is F.linear:
        names: dict[str, Any] = {"input": None, "weight": None, "bias": None}
    else:
        names = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    named = {**names, **dict(zip(names, args, strict=False)), **kwargs}
    for key in ("stride", "padding", "dilation"):
        if isinstance(value := named.get(key), int):
            named[key] = (value, value)
        elif isinstance(value, list):
            named[key] = tuple(value)
    return tuple(named.values())


def _adopt(layer: Layer) -> None:
    """Moves a forward pass that was put on the layer itself (`layer.forward = …`) into its class."""
    forward = vars(layer).pop("forward")
    cls = type(layer)

    def own(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    if getattr(forward, "__self__", None) is layer:  # a bound method would stay bound to this module in copies
        own = forward.__func__
    layer.__class__ = type(cls.__name__, (cls,), {"forward": own, "__module__": cls.__module__})


def _parameter(layer: Layer, name: str) -> Tensor | None:
    return parameters_of(layer).get(name)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
