"""Copying a network, and putting a module in the place of another, wherever the network keeps a reference to it.

Networks hold modules in more than their registries: in lists, dictionaries and tuples, in `functools.partial`, as bound
methods, and in the closures of functions. `copy.deepcopy` follows all but the last.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["copied", "replace_module"]

M = TypeVar("M", bound=nn.Module)
Change = Callable[[nn.Module], nn.Module]

_DEPTH = 6  # of containers within containers, of functions within closures


def copied(model: M) -> M:
    """Returns a deep copy whose functions refer to the modules of the copy, and not to those of `model`."""
    memo: dict[int, Any] = {}
    for module in model.modules():  # values that were computed with gradients, and kept, which deepcopy refuses
        for value in tree_leaves([part for name, part in vars(module).items() if name not in _REGISTRIES]):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    result: M = copy.deepcopy(model, memo)
    _follow(result, lambda module: memo.get(id(module), module))
    return result


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts `new` wherever `model` refers to `old`, under however many names, and returns the model."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if module is old:
                setattr(parent, child, new)
    _follow(model, lambda module: new if module is old else module)
    return model


def _follow(model: nn.Module, change: Change) -> None:
    """Applies `change` to every reference to a module that is not in a registry."""
    for module in list(model.modules()):
        for name, value in list(vars(module).items()):
            if name not in _REGISTRIES and (new := _changed(value, change, _DEPTH)) is not value:
                vars(module)[name] = new


_REGISTRIES = ("_parameters", "_buffers", "_modules")
_NOT_FOLLOWED = (type, types.ModuleType, torch.Tensor, torch.dtype, torch.Generator)


def _changed(value: Any, change: Change, depth: int) -> Any:
    """Returns `value` with the modules that it refers to changed: itself where none are."""
    if depth == 0:
        return value
    if isinstance(value, nn.Module):
        return change(value)
    if isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
        new = [_changed(part, change, depth - 1) for part in parts]
        return _refilled(value, new) if any(a is not b for a, b in zip(parts, new, strict=True)) else value
    if isinstance(value, dict):
        pairs = [(_changed(key, change, depth - 1), _changed(part, change, depth - 1)) for key, part in value.items()]
        if any(a is not b or c is not d for (a, c), (b, d) in zip(pairs, value.items(), strict=True)):
            value.clear()  # in place: others may refer to the dictionary
            value.update(pairs)
        return value
    if isinstance(value, types.MethodType):
        owner = _changed(value.__self__, change, depth - 1)
        if owner is value.__self__:
            return value
        return getattr(owner, value.__name__, types.MethodType(value.__func__, owner))
    if isinstance(value, functools.partial):
        parts = [value.func, value.args, dict(value.keywords)]
        new = [_changed(part, change, depth - 1) for part in parts]
        same = all(a is b for a, b in zip(parts[:2], new[:2], strict=True)) and new[2] == value.keywords
        return value if same else functools.partial(new[0], *new[1], **new[2])
    if isinstance(value, types.FunctionType):
        return _changed_function(value, change, depth)
    if isinstance(value, weakref.ReferenceType):
        target = value()
        return value if (new := _changed(target, change, 1)) is target else weakref.ref(new)
    if hasattr(value, "__dict__") and not isinstance(value, _NOT_FOLLOWED):
        for name, part in list(vars(value).items()):
            if (new := _changed(part, change, depth - 1)) is not part:
                vars(value)[name] = new
    return value


def _refilled(value: Any, new: list[Any]) -> Any:
    if isinstance(value, list):
        value[:] = new  # in place, for the same reason
        return value
    return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)


def _changed_function(function: types.FunctionType, change: Change, depth: int) -> types.FunctionType:
    """Returns a function with other modules in its closure and defaults; the given one may be shared with others."""
    cells = function.__closure__ or ()
    new_cells = tuple(_changed_cell(cell, change, depth) for cell in cells)
    defaults = _changed(function.__defaults__, change, depth - 1)
    keywords = _changed(dict(function.__kwdefaults__ or {}), change, depth - 1) or None
    same = all(a is b for a, b in zip(cells, new_cells, strict=True))
    if same and defaults is function.__defaults__ and keywords == function.__kwdefaults__:
        return function
    new = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, new_cells)
    new.__kwdefaults__ = keywords
    new.__dict__.update(function.__dict__)
    return new


def _changed_cell(cell: types.CellType, change: Change, depth: int) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    if isinstance(content, list | dict):  # those of the original: the copy needs its own
        content = copy.copy(content)
        new = _changed(content, change, depth - 1)
        return cell if new == cell.cell_contents else types.CellType(new)
    new = _changed(content, change, depth - 1)
    return cell if new is content else types.CellType(new)
