"""Dataclasses from plain data, with every value checked: a file may have been edited, or come from someone else."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from haq.errors import ConfigError, HaqError, did_you_mean

__all__ = ["check_fields", "check_names", "conforms", "described", "restored"]

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"
}  # fmt: skip
_LONGEST = 60
_MOST = 2**1000  # fits into a float


def restored(kind: type[T], data: object) -> T:
    """Makes a dataclass from a mapping of its fields; lists become tuples.

    Args:
        kind: The dataclass. Its fields are plain types, `Literal`s, tuples, mappings, or classes.
        data: The mapping; values of fields that are classes must already be objects of them.

    Raises:
        ConfigError: `data` is not a mapping, a key is unknown or missing, or a value has the wrong type.
    """
    hints, checks, required = _shape(kind)  # type: ignore[arg-type]  # mypy does not regard a type as hashable
    if not isinstance(data, dict | Mapping):
        raise ConfigError(f"a mapping of {', '.join(hints)} is needed, not {_shown(data)}")
    check_names(kind, data)
    if missing := [key for key in required if key not in data]:
        raise ConfigError(f"{missing[0]!r} is missing")
    values = {key: _tuples(value) for key, value in data.items()}
    for key, value in values.items():
        if not checks[key](value):
            raise ConfigError(f"{key}={_shown(data[key])}: must be {described(hints[key])}")
    return kind(**values)


def check_names(kind: type, names: Iterable[object]) -> None:
    """Raises `ConfigError` if a name is not a field of the dataclass."""
    known = list(_shape(kind)[0])
    if unknown := [str(name) for name in names if name not in known]:
        meant = did_you_mean(unknown[0], known)
        raise ConfigError(f"unknown option {unknown[0]!r}{meant}; known: {', '.join(known)}")


def check_fields(made: object, error: type[HaqError] = ConfigError) -> None:
    """Checks the types of a dataclass's fields, from its `__post_init__`: Python code may have passed anything.

    NumPy's numbers, paths and lists become plain numbers, text and tuples. The class itself checks the words of a
    `Literal` and the range of a number, because it can explain more.

    Raises:
        error: A value does not have the type of its field.
    """
    hints, checks, _ = _shape(type(made))  # type: ignore[arg-type]  # as above
    for name, hint in hints.items():
        given = getattr(made, name)
        value = _plain(given)
        probe = 0 if type(value) is int else value
        if not (isinstance(value, str) if get_origin(hint) is Literal else checks[name](probe)):
            raise error(f"{name}={_shown(given)}: must be {described(hint)}")
        if value is not given:
            object.__setattr__(made, name, value)


def _plain(value: object) -> object:
    """Returns a value in the form that a file would hold."""
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple | range) else value


@cache
def _shape(kind: type) -> tuple[dict[str, Any], dict[str, Callable[[object], bool]], list[str]]:
    """Returns the types of a dataclass's fields, their checks, and the names of the fields without a default."""
    made, every = [field for field in fields(kind) if field.init], get_type_hints(kind)
    required = [field.name for field in made if field.default is MISSING and field.default_factory is MISSING]
    hints = {field.name: every[field.name] for field in made}
    return hints, {name: _check(hint) for name, hint in hints.items()}, required


def conforms(value: object, kind: Any) -> bool:
    """Whether a value has an annotated type; whole numbers count as numbers, and `True` as neither."""
    return _check(kind)(value)


@cache
def _check(kind: Any) -> Callable[[object], bool]:
    """Returns the check of a type, made once: a run folder may hold a million values of a few types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: True
    if kind is float:  # it may be written without a point
        return lambda value: type(value) is float or _whole(value)
    if kind is int:
        return _whole
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        checks = tuple(map(_check, arguments))
        return lambda value: any(check(value) for check in checks)
    if origin is tuple:
        return _check_tuple(arguments)
    if origin is not None and issubclass(origin, Mapping):
        key, entry = map(_check, arguments)
        return lambda value: isinstance(value, dict | Mapping) and all(key(k) and entry(v) for k, v in value.items())
    return lambda value: isinstance(value, kind)


def _whole(value: object) -> bool:
    return type(value) is int and abs(value) <= _MOST  # bool is an int for isinstance


def _check_tuple(arguments: tuple[Any, ...]) -> Callable[[object], bool]:
    checks = [_check(argument) for argument in arguments if argument is not Ellipsis]

    def check(value: object) -> bool:
        if not isinstance(value, tuple):
            return False
        inner = checks[:1] * len(value) if arguments[-1] is Ellipsis else checks
        return len(value) == len(inner) and all(each(part) for each, part in zip(inner, value, strict=True))

    return check


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
    return tuple(map(_tuples, value)) if type(value) is list else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
