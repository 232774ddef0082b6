"""Finds the layers of a network, runs the network, and watches its layers while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.kinds import kind_of, known_kind
from haq.layers.own_forward import OwnForward
from haq.process_state import random_states_restored
from haq.torch_internals import tree_map

__all__ = [
    "Sample",
    "evaluating",
    "fresh",
    "groups_of",
    "put_in_place",
    "quantizable_layers",
    "run_sample",
    "same_randomness",
    "tied_layers",
    "watched",
]

T = TypeVar("T")

Sample = Tensor | tuple[Any, ...]
Before = Callable[[Any, Tensor], Tensor | None]
After = Callable[[Any, Tensor, Any], Any]


def quantizable_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields `(name, module)` for every distinct layer of a kind in `haq.registry.LAYERS`, in registration order.

    This need not be the order of calls, and a layer may never be called; `trace` lists the calls.
    """
    for name, module in model.named_modules():
        if known_kind(module) is not None:
            yield name, module


def groups_of(layer: nn.Module) -> int:
    """Returns the number of groups of a convolution; 1 for other layers."""
    return kind_of(layer).groups(layer)


def tied_layers(model: nn.Module) -> set[nn.Module]:
    """Returns the layers that share their weight with another module, such as a head tied to an embedding."""
    owners: dict[Tensor, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {layer for _, layer in quantizable_layers(model) if len(owners.get(layer.weight, set())) > 1}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs its block with the model in evaluation mode and without gradients, then restores every module's mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def fresh(inputs: T) -> T:
    """Returns copies of a network's inputs; needed if they are used again, because a network may change its inputs.

    Args:
        inputs: A tensor, or tuples, lists and dictionaries of tensors; other values are returned unchanged.
    """
    return cast(T, tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs))


def run_sample(model: nn.Module, sample: Sample, copied: bool = True) -> Any:
    """Returns the model's output for one input, in evaluation mode and without gradients.

    Args:
        model: Any network.
        sample: One input, or a tuple of positional inputs.
        copied: Whether the model gets a copy of the input, which it may change in place.

    Raises:
        ModelError: The model fails on the sample.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    try:
        with evaluating(model):
            return model(*(fresh(inputs) if copied else inputs))
    except Exception as error:  # the model is user code and may raise anything; the fix is the same
        shape = "of several inputs" if isinstance(sample, tuple) else f"of shape {tuple(sample.shape)}"
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{type(model).__name__} fails on a sample {shape}: {reason}; give data of the shape it expects"
        ) from error


@contextmanager
def same_randomness() -> Iterator[None]:
    """Gives a network that draws random numbers the same ones in every such block."""
    with random_states_restored():
        torch.manual_seed(0)
        yield


@contextmanager
def watched(modules: Iterable[nn.Module], before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Watches every call of these modules inside its block, however they are called.

    PyTorch's hooks do not see calls of `module.forward`, nor, by default, keyword arguments. They also switch off fast
    paths, so the watched network would not be the one in use. For a layer with its own forward pass, the product with
    its weight is watched, with the product's input and output.

    Args:
        modules: Layers, or other modules whose first argument is a tensor.
        before: Called with the module and its input before each call; a tensor that it returns replaces the input.
        after: Called with the module, its input and its output after each call; it may return a replacement for the
            output, or `None`.
    """

    def watching(module: nn.Module, place: str) -> Callable[..., Any]:
        first, inner = (1 if place == "product" else 0), getattr(module, place)

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs, x = _changed(args, kwargs, first, lambda x: before(module, x) if before is not None else None)
            y = inner(*args, **kwargs)
            new = after(module, x, y) if after is not None else None
            return y if new is None else new

        return call

    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            place = "product" if isinstance(module, OwnForward) else "forward"
            stack.enter_context(put_in_place(module, place, watching(module, place)))
        yield


@contextmanager
def put_in_place(module: nn.Module, name: str, method: Any) -> Iterator[None]:
    """Replaces a method or attribute of one module inside the block.

    Args:
        module: Only this instance is changed, not its class.
        name: Name of the method or attribute.
        method: Its replacement.
    """
    old = vars(module).get(name)
    vars(module)[name] = method
    try:
        yield
    finally:
        if old is None:
            del vars(module)[name]
        else:
            vars(module)[name] = old


def _changed(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], first: int, change: Callable[[Tensor], Tensor | None]
) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """Returns the arguments of a call with its input changed, and the new input.

    The input is the first tensor among the positional arguments from number `first` on, or else among the others.
    """
    place = next((place for place, value in enumerate(args) if place >= first and isinstance(value, Tensor)), None)
    if place is not None:
        new = change(args[place])
        x = args[place] if new is None else new
        return (*args[:place], x, *args[place + 1 :]), dict(kwargs), x
    key = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
    new = change(kwargs[key])
    x = kwargs[key] if new is None else new
    return args, {**kwargs, key: x}, x
