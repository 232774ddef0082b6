"""Layers that a network does not call: other code reads their weight, as in `F.linear(x, self.proj.weight)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from haq.errors import ModelError
from haq.layers.kinds import kind_of
from haq.layers.own_forward import PRODUCTS, arguments
from haq.layers.running import Sample, put_in_place, quantizable_layers, run_sample
from haq.layers.variants import Variant
from haq.torch_internals import parameters_of, tree_leaves

__all__ = ["CallsRead", "Reads", "computes", "find_reads", "operands", "storage"]

_SHAPE_ALONE = ("to", "type_as", "expand_as", "view_as", "reshape_as", "copy_")
"""Methods that take only the form of the result from their second tensor, or copy it unchanged."""


@dataclass(frozen=True)
class Reads:
    """Findings from running a network on a sample.

    Attributes:
        layers: Names of layers that are not called, but whose weight is used in exactly the product they would compute.
        changes_input: Whether the network changes its input in place.
        floating: Names of tables whose weight is also used in another way, such as by a head that multiplies by it.
    """

    layers: tuple[str, ...] = ()
    changes_input: bool = False
    floating: tuple[str, ...] = ()


class CallsRead(Variant):
    """Mixed into a network that reads weights of layers: products with such a weight call the layer instead."""

    read_layers: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network's own forward pass."""
        with _Calling([self.get_submodule(name) for name in self.read_layers]):
            return super().forward(*args, **kwargs)


class _Calling(TorchFunctionMode):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self._layers = {id(layer.weight): layer for layer in layers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            x, weight, *_ = arguments(func, args, kwargs or {})
            if id(weight) in self._layers:
                return self._layers[id(weight)](x)
        return func(*args, **(kwargs or {}))


def find_reads(network: nn.Module, sample: Sample) -> Reads:
    """Runs the network on a sample, and finds what reads the weights of its layers and whether the sample changes.

    Raises:
        ModelError: The network fails on the sample, or a layer's weight is used outside of the layer in another way
            than in the layer's own product. Tables of embeddings then stay in floating point instead.
    """
    layers = dict(quantizable_layers(network))
    watch = _Watch(layers)
    given = sample if isinstance(sample, tuple) else (sample,)
    inputs = tuple(value.clone() if isinstance(value, Tensor) else value for value in given)
    with watch.owners_watched(network), watch:
        run_sample(network, inputs if isinstance(sample, tuple) else inputs[0], copied=False)
    floating = tuple(name for name in watch.other if not kind_of(layers[name]).reads_values)
    for name, how in watch.other.items():
        if name in floating:
            continue
        where = "also read outside of it" if name in watch.called else "read, but the layer is not called"
        raise ModelError(
            f"layer {name!r}: its weight is {where} (by {how}), which no quantizer can follow; call the layer, or "
            "keep that weight as a parameter of another module"
        )
    changed = any(isinstance(old, Tensor) and not torch.equal(old, new) for old, new in zip(given, inputs, strict=True))
    return Reads(tuple(name for name in layers if name in watch.products), changed, floating)


class _Watch(TorchFunctionMode):
    """Records every function that computes with the weight of a layer outside of that layer."""

    def __init__(self, layers: dict[str, Any]) -> None:
        super().__init__()
        self._layers = layers
        self._names = {storage(layer.weight): name for name, layer in layers.items()}
        self._active: list[nn.Module] = []
        self.called: set[str] = set()
        self.products: set[str] = set()
        self.other: dict[str, str] = {}

    @contextmanager
    def owners_watched(self, network: nn.Module) -> Iterator[None]:
        """Inside its block, tracks which modules run that hold a layer's weight: the layer, or a tied embedding."""
        with ExitStack() as stack:
            for name, module in network.named_modules():
                held = {storage(parameter) for parameter in parameters_of(module).values() if parameter is not None}
                if name in self._layers or (held & self._names.keys() and not list(module.children())):
                    stack.enter_context(put_in_place(module, "forward", self._noting(name, module)))
            yield

    def _noting(self, name: str, module: nn.Module) -> Any:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.called.add(name)
            self._active.append(module)
            try:
                return inner(*args, **kwargs)
            finally:
                self._active.pop()

        return forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for operand in operands(func, args, kwargs or {}):
            name = self._names.get(storage(operand))
            if name is not None and self._outside(name) and computes(func, operand, result):
                self._note(name, func, args, kwargs or {})
        return result

    def _outside(self, name: str) -> bool:
        weight = storage(self._layers[name].weight)
        return not any(
            weight in {storage(p) for p in parameters_of(module).values() if p is not None} for module in self._active
        )

    def _note(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self._layers[name]
        if func in PRODUCTS and name not in self.called:
            own, (_, weight, bias, *rest) = parameters_of(layer), arguments(func, args, kwargs)
            if weight is own["weight"] and bias is own["bias"] and rest == kind_of(layer).usual(layer):
                self.products.add(name)
                return
        self.other.setdefault(name, _name(func))


def operands(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors whose values a call may use.

    Args:
        func: The function called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    given = list(args[:1] if _name(func) in _SHAPE_ALONE else args) + list(kwargs.values())
    return [value for value in tree_leaves(given) if isinstance(value, Tensor)]


def computes(func: Any, operand: Tensor, result: Any) -> bool:
    """Whether a call computed new values from a tensor, not just a view of it or a tensor of its shape.

    Args:
        func: The function called.
        operand: One of its `operands`.
        result: What it returned.
    """
    called = _name(func)
    if called.startswith("new_") or called.endswith("_like") or called == "__get__":
        return False
    made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    return any(storage(value) != storage(operand) for value in made)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def storage(values: Tensor) -> int:
    """Returns the address of the tensor's memory, equal for views of one tensor; −1 for sparse and nested tensors."""
    return values.untyped_storage().data_ptr() if values.layout is torch.strided and not values.is_nested else -1
