"""Times as users write them: `10m`, `90s`, `1.5h`, or a number of seconds."""

from __future__ import annotations

import math
import re

from haq.errors import ConfigError

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SYNTAX = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|m|h|d)?\s*")


def parse_duration(text: str, option: str) -> float:
    """Reads a time and returns seconds.

    Args:
        text: A number and a unit, `s`, `m`, `h` or `d`; seconds without one.
        option: The option, for the message.

    Raises:
        ConfigError: It cannot be read, or is not more than 0.

    Examples:
        >>> parse_duration("10m", "--time-limit"), parse_duration("90", "--time-limit")
        (600.0, 90.0)
    """
    match = _SYNTAX.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{option} {text}: write a time of more than 0, such as 90s, 10m or 2h")
    return seconds


def format_duration(seconds: float) -> str:
    """Returns a time as people read it.

    Examples:
        >>> format_duration(600), format_duration(90), format_duration(5400)
        ('10 min', '90 s', '90 min')
    """
    return f"{seconds / 60:.3g} min" if seconds >= 120 else f"{seconds:.3g} s"
