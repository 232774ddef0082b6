"""Layers with a forward pass of their own are changed so that they compute with the weight that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from haq.errors import ModelError
from haq.layers.kinds import kind_of, known_kind
from haq.layers.kinds.transposed import TRANSPOSED, OutputFirst, put_outputs_first
from haq.layers.own_forward import PRODUCTS, OwnForward, Substituted, arguments
from haq.layers.variants import become
from haq.torch_internals import CONV_FORWARD, parameters_of

__all__ = ["has_own_forward", "is_settled", "settle"]


def is_settled(layer: nn.Module) -> bool:
    """Whether a layer computes with the weight that it holds, output channels first."""
    if isinstance(layer, OwnForward | Substituted | OutputFirst):
        return True
    return kind_of(layer) is not TRANSPOSED and not has_own_forward(layer)


def has_own_forward(layer: nn.Module) -> bool:
    """Whether calling the layer does anything but the forward pass of its kind's class, or ours."""
    if type(layer).forward.__module__.startswith("haq."):
        return False
    cls, base = type(layer), _base(layer)
    names = ["forward", "__call__", *([CONV_FORWARD] if hasattr(base, CONV_FORWARD) else [])]
    return "forward" in vars(layer) or any(getattr(cls, name) is not getattr(base, name) for name in names)


def _base(layer: nn.Module) -> type[nn.Module]:
    """Returns the class of the layer's kind that the layer's own class derives from."""
    return next(cls for cls in kind_of(layer).types if isinstance(layer, cls))


def settle(name: str, layer: nn.Module) -> None:
    """Changes a layer, in place, so that it computes with the weight that it holds, output channels first.

    A forward pass of its own is tried on generated inputs. If it only prepares the weight (weight standardisation), the
    layer becomes a plain one with that weight. If it does more (padding), it keeps its code and its product is
    intercepted. If its weight depends on the input, or if it makes several products, its weight is substituted later.

    Args:
        name: Name of the layer, for messages.
        layer: A layer that is not settled, in evaluation mode.

    Raises:
        ModelError: The layer has no weight, and no product that would show one.
    """
    if not has_own_forward(layer):
        put_outputs_first(layer)
        return
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
        layer.__class__ = _base(layer)
        if not is_settled(layer):
            put_outputs_first(layer)
    elif kind_of(layer) is TRANSPOSED:  # the pass gives its product a weight with the input channels first
        become(layer, Substituted)
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


def _tried(layer: nn.Module, scale: float) -> _Call | None:
    """Returns the product that the forward pass makes with a generated input, or `None` unless it makes exactly one."""
    if any(known_kind(child) for child in layer.children()):
        return None
    for x in _made_up(layer, scale):
        if (found := _seen(layer, x)) is not None:
            calls, alone = found
            if len(calls) != 1:
                return None
            (_, weight, bias, *rest) = calls[0]
            return _Call(weight, bias, tuple(rest), alone and rest == kind_of(layer).usual(layer))
    return None


def _seen(layer: nn.Module, x: Tensor) -> tuple[list[tuple[Any, ...]], bool] | None:
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


def _made_up(layer: nn.Module, scale: float) -> list[Tensor]:
    generated = kind_of(layer).examples(layer, torch.Generator().manual_seed(0))
    parameter = next(layer.parameters(), torch.zeros(()))
    return [(x * scale).to(parameter.device, parameter.dtype) for x in generated]


def _adopt(layer: nn.Module) -> None:
    """Moves a forward pass that was put on the layer itself (`layer.forward = …`) into its class."""
    forward = vars(layer).pop("forward")
    cls = type(layer)

    def own(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    if getattr(forward, "__self__", None) is layer:  # a bound method would stay bound to this module in copies
        own = forward.__func__
    layer.__class__ = type(cls.__name__, (cls,), {"forward": own, "__module__": cls.__module__})


def _parameter(layer: nn.Module, name: str) -> Tensor | None:
    return parameters_of(layer).get(name)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
