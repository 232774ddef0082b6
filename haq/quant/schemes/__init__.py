"""Every quantization scheme by name, one file each."""

from __future__ import annotations

from typing import Any

from haq.errors import ConfigError
from haq.io.prefixes import refuse_object
from haq.quant.schemes.base import Scheme
from haq.registry import SCHEMES

__all__ = ["Scheme", "get_scheme", "list_schemes", "resolve_scheme"]


def list_schemes() -> list[str]:
    """Returns the names that `get_scheme` knows, those that suit most users first."""
    return list(SCHEMES)


def get_scheme(name: str, **options: Any) -> Scheme:
    """Returns a scheme, with options of its own such as `granularity` or `clip`.

    Raises:
        ConfigError: The name or an option is unknown.

    Examples:
        >>> get_scheme("kmeans", granularity="channel").arxiv
        '1510.00149'
    """
    return _checked(name, SCHEMES[name]).with_options(**options)


def resolve_scheme(text: str, given: object = None) -> Scheme:
    """Returns a scheme by name, or the one in a user's file, `file.py:NAME`, which is run.

    `get_scheme` knows it from then on, because policies name it.

    Args:
        text: As the user gives it.
        given: The scheme itself, where the user gave an object.

    Raises:
        ConfigError: The name is unknown, or what it stands for is no `Scheme`.
    """
    if given is not None:
        SCHEMES.remember(text, _checked(text, given))
        return get_scheme(text)
    refuse_object("scheme", text, ConfigError)
    return _checked(text, SCHEMES.resolve(text))


def _checked(name: str, found: object) -> Scheme:
    if not isinstance(found, Scheme):
        raise ConfigError(f"scheme {name!r} is {type(found).__name__}, not a haq.quant.schemes.Scheme; make it one")
    return found
