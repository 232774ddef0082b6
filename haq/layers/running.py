"""Running a network, and watching its layers while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.own_forward import OwnForward
from haq.process_state import random_states_restored
from haq.torch_internals import tree_map

__all__ = [
    "Sample",
    "evaluating",
    "fresh",
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


def quantizable_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yields `(name, module)` for every distinct 2-d convolution and linear layer, in registration order.

    That order says nothing about the order of calls, nor whether a layer is called at all; `trace` does.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, module


def tied_layers(model: nn.Module) -> set[nn.Module]:
    """Returns the layers whose weight another module holds, too, such as a head that is tied to an embedding."""
    owners: dict[Tensor, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {layer for _, layer in quantizable_layers(model) if len(owners.get(layer.weight, set())) > 1}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs its block with the model in evaluation mode and without gradients; restores every module's mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def fresh(inputs: T) -> T:
    """Returns copies of what a network is to read, for inputs that are read again: it may change them in place.

    Args:
        inputs: A tensor, or tuples, lists and dictionaries of them; anything else is returned as it is.
    """
    return cast(T, tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs))


def run_sample(model: nn.Module, sample: Sample, copied: bool = True) -> Any:
    """Returns what the model gives for one input, in evaluation mode and without gradients.

    Args:
        model: Any network.
        sample: One input, or a tuple of positional inputs.
        copied: Whether the model gets a copy, since it may change its input in place.

    Raises:
        ModelError: The model fails on the sample.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    try:
        with evaluating(model):
            return model(*(fresh(inputs) if copied else inputs))
    except Exception as error:  # the model is the user's code: whatever it raises, the fix is the same
        shape = "of several inputs" if isinstance(sample, tuple) else f"of shape {tuple(sample.shape)}"
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{type(model).__name__} fails on a sample {shape}: {reason}; give data of the shape it expects"
        ) from error


@contextmanager
def same_randomness() -> Iterator[None]:
    """Lets a network that draws random numbers draw the same ones in each such block."""
    with random_states_restored():
        torch.manual_seed(0)
        yield


@contextmanager
def watched(modules: Iterable[nn.Module], before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Watches every call of these modules inside its block, however they are called.

    Hooks of PyTorch see no keyword arguments by themselves, and no call of `module.forward`; they also switch off fast
    paths, so that another network would be watched than the one that is used. Of a layer with a forward pass of its
    own, the product with its weight is watched: what that reads and gives.

    Args:
        modules: Layers, or others that take one tensor first.
        before: Called with the module and its input, before each call; a tensor that it returns takes its place.
        after: Called with the module, its input and its output, after each call; what it returns takes its place,
            unless that is `None`.
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
def put_in_place(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Gives this one module another method inside the block."""
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
    """Returns the arguments of a call with its input changed, and that input: the first one, whatever its name."""
    if len(args) > first:
        new = change(args[first])
        x = args[first] if new is None else new
        return (*args[:first], x, *args[first + 1 :]), dict(kwargs), x
    key = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
    new = change(kwargs[key])
    x = kwargs[key] if new is None else new
    return args, {**kwargs, key: x}, x
