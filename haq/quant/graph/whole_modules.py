"""Keeps modules whole while `torch.export` runs a network: each call becomes one operator, and then a node again."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from haq.errors import ModelError
from haq.quant.graph.leaves import keeps_form
from haq.torch_internals import faked, forget_forward_hooks, registries_for, tree_flatten, tree_unflatten

__all__ = ["WholeModules"]

_MOST_CALLS = 1000
"""Calls of whole modules in one forward pass; a loop over many time steps would take minutes to trace."""

_numbers = itertools.count()
_tracing: dict[int, WholeModules] = {}
"""Which traces are going on: the operator is one for the whole process, and may only carry numbers."""


class WholeModules:
    """The calls of some modules of a network during one trace.

    Args:
        network: A copy that is used for this trace alone, because its modules are changed.
        whole: Which modules are kept whole.
    """

    def __init__(self, network: nn.Module, whole: Callable[[nn.Module], bool]) -> None:
        self._number = next(_numbers)
        self._calls: list[_Call] = []
        inside: tuple[str, ...] = ()
        for name, module in list(network.named_modules()):
            if whole(module) and not name.startswith(inside or ("\n",)):
                inside += (f"{name}.",)
                self._replace(name, module)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Lets the operator reach this trace inside the block."""
        _tracing[self._number] = self
        try:
            yield
        finally:
            del _tracing[self._number]

    def restore(self, graph: fx.Graph) -> set[str]:
        """Turns the operators in a graph into calls of modules, and returns the names of these modules.

        Raises:
            ModelError: A module returns something else than a tensor, or a tuple of them.
        """
        names: set[str] = set()
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is _operator():
                tensors, sizes, _, number = node.args
                call = self._calls[number]
                names.add(call.name)
                args, kwargs = call.arguments(tensors, sizes)
                with graph.inserting_before(node):
                    new = graph.create_node("call_module", call.name, args, kwargs)
                for part in list(node.users):  # the operator returns a list
                    if call.single:
                        part.replace_all_uses_with(new)
                        graph.erase_node(part)
                    else:
                        part.replace_input_with(node, new)
                graph.erase_node(node)
        return names

    def results(self, number: int, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Returns tensors without values like those that a call returns; the operator asks for them."""
        return self._calls[number].results(tensors, sizes)

    def _replace(self, name: str, module: nn.Module) -> None:
        inner = copy.copy(module)
        vars(inner).update(registries_for(module))
        forget_forward_hooks(inner)  # those of the module itself run

        def forward(*args: Any, **kwargs: Any) -> Any:
            if len(self._calls) == _MOST_CALLS:
                raise ModelError(f"it calls its layers more than {_MOST_CALLS} times, the last one {name!r}")
            call = _Call(name, inner, *_parted(args, kwargs))
            self._calls.append(call)
            tensors, sizes = call.given(args, kwargs)
            results = _operator()(tensors, sizes, self._number, len(self._calls) - 1)
            return results[0] if call.single else tuple(results)

        vars(module)["forward"] = forward


@dataclass
class _Call:
    """One call of a module.

    Attributes:
        name: Name of the module in the network.
        module: The module as it was.
        structure: How the arguments are nested.
        constants: Arguments that are neither tensors nor sizes that depend on the batch, in the place of each.
        single: Whether the module returned one tensor, not a tuple.
    """

    name: str
    module: nn.Module
    structure: Any
    constants: list[Any]
    single: bool = True

    def given(self, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Any]]:
        """Returns the tensors and the sizes among the arguments."""
        parts = tree_flatten((args, kwargs))[0]
        return [p for p in parts if isinstance(p, Tensor)], [p for p in parts if isinstance(p, torch.SymInt)]

    def arguments(self, tensors: Sequence[Any], sizes: Sequence[Any]) -> Any:
        """Returns positional and keyword arguments with these tensors and sizes."""
        given = {_TENSOR: iter(tensors), _SIZE: iter(sizes)}
        parts = [next(given[part]) if isinstance(part, _Place) else part for part in self.constants]
        return tree_unflatten(parts, self.structure)

    def results(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Returns tensors without values like those that the call returns."""
        if keeps_form(self.module):
            return [torch.empty_like(tensors[0])]
        args, kwargs = self.arguments(tensors, sizes)
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        held = {name: faked(values, tensors[0]) for name, values in state.items()}
        results = functional_call(self.module, held, args, kwargs)
        self.single = isinstance(results, Tensor)
        listed = [results] if self.single else results
        if not (isinstance(listed, list | tuple) and all(isinstance(part, Tensor) for part in listed)):
            raise ModelError(f"module {self.name!r} returns something else than a tensor or a tuple of tensors")
        return [part.clone() for part in listed]  # an operator must not return what it was given


class _Place:
    """Stands for an argument that differs between a call and the graph."""


_TENSOR, _SIZE = _Place(), _Place()


def _parted(args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
    parts, structure = tree_flatten((args, kwargs))
    places = [_TENSOR if isinstance(p, Tensor) else _SIZE if isinstance(p, torch.SymInt) else p for p in parts]
    return structure, places


@cache
def _operator() -> Any:
    """Returns the operator that stands for a call; it has no values, because only its shape is ever asked for."""
    torch.library.define("haq::whole_module", "(Tensor[] tensors, SymInt[] sizes, int trace, int call) -> Tensor[]")

    def results(tensors: Sequence[Tensor], sizes: Sequence[Any], trace: int, call: int) -> list[Tensor]:
        return _tracing[trace].results(call, tensors, sizes)

    torch.library.register_fake("haq::whole_module", results)
    return torch.ops.haq.whole_module.default
