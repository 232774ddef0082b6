"""Copies networks and replaces modules, wherever a network keeps references to them.

Networks hold modules not only in their registries, but also in lists, dictionaries and objects, in `functools.partial`,
as bound methods, and in the closures of functions. `copy.deepcopy` follows all of these except closures.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from haq.errors import ModelError
from haq.io.prefixes import one_line
from haq.torch_internals import REGISTRIES, children_of, share_tensors, tree_leaves

__all__ = ["copied", "replace_module", "replace_modules", "sharing"]

M = TypeVar("M", bound=nn.Module)
Change = Callable[[nn.Module], nn.Module]

_PLAIN = (
    types.NoneType, bool, int, float, complex, str, bytes, type, types.ModuleType, torch.Tensor, torch.dtype,
    torch.device, torch.Generator,
)  # fmt: skip


def copied(model: M) -> M:
    """Returns a deep copy whose functions refer to the modules of the copy, not to those of `model`.

    Raises:
        ModelError: Something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():  # deepcopy refuses stored values that were computed with gradients
        for value in tree_leaves([part for name, part in vars(module).items() if name not in REGISTRIES]):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        result: M = copy.deepcopy(model, memo)
    except Exception as error:  # the user's classes may raise anything
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {one_line(error)}; keep files, locks and the like out of the "
            "network"
        ) from None
    _References(lambda module: memo.get(id(module), module)).follow(result)
    return result


def sharing(model: M) -> M:
    """Returns a copy that shares parameters and buffers.

    Each thread needs its own copy, because forward passes may store values in modules.
    """
    own = copied(model)
    for module, twin in zip(model.modules(), own.modules(), strict=True):
        share_tensors(twin, module)
    return own


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replaces every reference to `old` in `model` by `new`, and returns the model.

    Args:
        model: Changed in place.
        old: Module to replace; it may have several names.
        new: Module to put in its place.
    """
    return replace_modules(model, {old: new})


def replace_modules(model: nn.Module, places: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces several modules at once.

    Args:
        model: Changed in place.
        places: Old module → new module.

    Returns:
        The model, or its replacement if it is itself in `places`.
    """
    if model in places:
        return places[model]
    parents = [*model.modules(), *places.values()]  # a new module may hold another old one
    for parent in parents:
        for child, module in list(children_of(parent).items()):
            if module is not None and module in places:
                setattr(parent, child, places[module])
    _References(lambda module: places.get(module, module)).follow(model)
    return model


class _References:
    """Changes references to modules outside the registries."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._known: dict[int, tuple[Any, Any]] = {}  # id → (the value, to keep it alive; what it became)

    def follow(self, model: nn.Module) -> None:
        for module in list(model.modules()):
            for name, value in list(vars(module).items()):
                if name not in REGISTRIES and (new := self._changed(value)) is not value:
                    vars(module)[name] = new

    def _changed(self, value: Any) -> Any:
        """Returns `value` with the modules that it refers to changed, in place if possible."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, nn.Module):
            return self._change(value)
        if id(value) not in self._known:
            self._known[id(value)] = value, value  # stops at circular references
            self._known[id(value)] = value, self._followed(value)
        return self._known[id(value)][1]

    def _followed(self, value: Any) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            return self._sequence(value)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, types.MethodType):
            owner = self._changed(value.__self__)
            if owner is value.__self__:
                return value
            return getattr(owner, value.__name__, types.MethodType(value.__func__, owner))
        if isinstance(value, functools.partial):
            return self._partial(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, weakref.ReferenceType):
            target = value()
            return value if (new := self._changed(target)) is target else weakref.ref(new)
        if hasattr(value, "__dict__"):
            self._mapping(vars(value))
        return value

    def _sequence(self, value: Any) -> Any:
        parts = list(value)
        new = [self._changed(part) for part in parts]
        if all(a is b for a, b in zip(parts, new, strict=True)):
            return value
        if isinstance(value, list):
            value[:] = new  # in place, because others may refer to the list
            return value
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        pairs = [(self._changed(key), self._changed(part)) for key, part in value.items()]
        if any(a is not b or c is not d for (a, c), (b, d) in zip(pairs, value.items(), strict=True)):
            value.clear()  # in place, for the same reason
            value.update(pairs)
        return value

    def _partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        function, args, keywords = map(self._changed, (value.func, value.args, dict(value.keywords)))
        if function is value.func and args is value.args and keywords == value.keywords:
            return value
        return functools.partial(function, *args, **keywords)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """Returns a function with changed closure and defaults: a new one, because others may share the given one."""
        cells = function.__closure__ or ()
        new_cells = tuple(map(self._cell, cells))
        defaults = self._changed(function.__defaults__)
        keywords = self._changed(dict(function.__kwdefaults__ or {})) or None
        same = all(a is b for a, b in zip(cells, new_cells, strict=True))
        if same and defaults is function.__defaults__ and keywords == function.__kwdefaults__:
            return function
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, new_cells)
        new.__kwdefaults__ = keywords
        new.__dict__.update(function.__dict__)
        return new

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # the cell is still empty
            return cell
        # In a copied network, containers in a closure are still those of the original; the copy needs its own
        own = copy.copy(content) if isinstance(content, list | dict) else content
        new = self._changed(own)
        return cell if new is content or (own is not content and new == content) else types.CellType(new)
