"""Dataclasses from plain data, with every value checked: a file may have been edited, or written by someone else."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from haq.errors import ConfigError, did_you_mean

__all__ = ["conforms", "described", "restored"]

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"
}  # fmt: skip
_LONGEST = 60
_MOST = 2**1000  # what a float holds


def restored(kind: type[T], data: object) -> T:
    """Makes a dataclass of a mapping of its fields; lists become tuples.

    Args:
        kind: The dataclass. Its fields are plain types, `Literal`s, tuples, mappings, or classes.
        data: The mapping; values whose field has a class must be objects already.

    Raises:
        ConfigError: It is no mapping, a key is unknown or missing, or a value is of another type.
    """
    hints = get_type_hints(kind)
    made = [field for field in fields(kind) if field.init]  # type: ignore[arg-type]  # a dataclass, see above
    known = [field.name for field in made]
    if not isinstance(data, Mapping):
        raise ConfigError(f"a mapping of {', '.join(known)} is needed, not {_shown(data)}")
    if unknown := [str(key) for key in data if key not in known]:
        raise ConfigError(f"unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}; known: {', '.join(known)}")
    required = [field.name for field in made if field.default is MISSING and field.default_factory is MISSING]
    if missing := [key for key in required if key not in data]:
        raise ConfigError(f"{missing[0]!r} is missing")
    values = {key: _tuples(value) for key, value in data.items()}
    for key, value in values.items():
        if not conforms(value, hints[key]):
            raise ConfigError(f"{key}={_shown(data[key])}: must be {described(hints[key])}")
    return kind(**values)


def conforms(value: object, kind: Any) -> bool:
    """Whether a value is of a type as annotations write it; whole numbers are numbers, and `True` is neither."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind in (int, float):  # bool is an int, and a float may be written without a point
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST
        return whole or (kind is float and isinstance(value, float))
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(conforms(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(inner) and all(map(conforms, value, inner))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            conforms(key, arguments[0]) and conforms(entry, arguments[1]) for key, entry in value.items()
        )
    return isinstance(value, kind)


def described(kind: Any) -> str:
    """Returns the type in words, as in "a whole number or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(described, arguments))
    if origin is tuple:
        return f"a list, each {described(arguments[0])}"
    if origin is not None:
        return f"a mapping of {' to '.join(map(described, arguments))}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
