"""Errors that a user can fix. The command line prints their message as one line and exits with code 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "ConstraintError",
    "DataError",
    "HaqError",
    "HardwareError",
    "ModelError",
    "did_you_mean",
    "first_names",
    "printable",
]


class HaqError(Exception):
    """A mistake in the user's input; the message names the thing, the value and the fix."""


class ConfigError(HaqError):
    """An option, a configuration file, a policy or a run folder is wrong."""


class ConstraintError(HaqError):
    """A constraint cannot be read, or no policy can meet it."""


class DataError(HaqError):
    """A data set is missing, empty or of the wrong shape."""


class HardwareError(HaqError):
    """A hardware description or cost table is wrong, or lacks what is needed."""


class ModelError(HaqError):
    """A model or its weights cannot be loaded, traced or quantized."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" when `name` is close to one of `known`, otherwise an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_names(names: Sequence[str]) -> str:
    """Returns names for a message, of which no more than three are shown.

    Examples:
        >>> first_names(["a", "b"]), first_names(["a", "b", "c", "d"])
        ('a, b', 'a, b, c, …')
    """
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def printable(text: str) -> str:
    r"""Escapes every character that would control a terminal.

    Examples:
        >>> printable("conv\x1b[2J")
        'conv\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
