"""Modules that hold several weights, changed so that each weight is a layer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CodeType, MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from haq.layers.variants import Variant
from haq.torch_internals import parameters_of

__all__ = ["Split", "filled", "linear", "mentions"]

M = TypeVar("M", bound=nn.Module)


class Split(Variant):
    """Mixed into a module whose weights are held by children, which it calls.

    Attributes:
        moved: Name of a parameter that the module had → the children's parameters that hold its parts now.
        turned: Names of those that are held transposed.
    """

    moved: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    turned: tuple[str, ...] = ()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Accepts a state of the module as it was."""
        for old, new in self.moved.items():
            if (values := state_dict.pop(prefix + old, None)) is not None:
                values = values.t() if old in self.turned else values
                state_dict.update(zip((prefix + name for name in new), values.chunk(len(new)), strict=True))
        super()._load_from_state_dict(state_dict, prefix, *args)


def filled(make: Callable[[], M], weight: nn.Parameter, bias: nn.Parameter | None = None) -> M:
    """Returns a layer that holds these parameters themselves, not copies of them.

    Args:
        make: Constructs the layer.
        weight: Its weight.
        bias: Its bias.
    """
    with torch.device("meta"):  # neither memory nor random numbers for values that are not kept
        layer = make()
    own = parameters_of(layer)
    own.update({"weight": weight, **({"bias": bias} if "bias" in own else {})})
    return layer


def linear(weight: nn.Parameter, bias: nn.Parameter | None, training: bool) -> nn.Linear:
    """Returns a linear layer that holds these parameters.

    Args:
        weight: `(out, in)`.
        bias: `(out,)`.
        training: Mode of the layer.
    """
    rows, columns = weight.shape
    return filled(lambda: nn.Linear(columns, rows, bias is not None), weight, bias).train(training)


def mentions(cls: type[nn.Module], names: Iterable[str]) -> bool:
    """Whether code of a subclass of PyTorch's module names one of these attributes.

    Args:
        cls: A module's class; of its bases, PyTorch's own are left out.
        names: Names of the attributes.
    """
    wanted, own = set(names), [base for base in cls.__mro__ if not base.__module__.startswith(("torch.", "haq."))]
    methods = [method for base in own for method in vars(base).values()]
    return any(wanted & _named(method.__code__) for method in methods if hasattr(method, "__code__"))


def _named(code: CodeType) -> set[str]:
    inner = [_named(part) for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names, *(part for part in code.co_consts if isinstance(part, str))}.union(*inner)
