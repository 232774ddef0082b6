"""Compiling loops to machine code; importing this module imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["jit", "keeps_code"]

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    """Compiles with numba at the first call, without the GIL, and keeps the machine code on disk if it can."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder for the cache is writable, neither beside this file nor in the user's home
        return cast(_F, numba.njit(**options)(function))


def keeps_code() -> bool:
    """Whether machine code is kept on disk; otherwise every process compiles the loops that it uses."""
    try:
        numba.njit(cache=True)(keeps_code)
    except RuntimeError:
        return False
    return True
