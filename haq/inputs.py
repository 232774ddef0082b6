"""What a network reads, kept as it is: a forward pass may change its input in place."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["fresh"]

Input = TypeVar("Input")


def fresh(x: Input) -> Input:
    """Returns a copy of what a network is to read, for inputs that are read again.

    Args:
        x: A tensor, or a tuple, list or dict of them; anything else is returned as it is.
    """
    from torch import Tensor  # torch takes over a second to import

    if isinstance(x, Tensor):
        return x.clone()  # type: ignore[return-value]
    if isinstance(x, dict):
        return type(x)((key, fresh(value)) for key, value in x.items())
    if isinstance(x, tuple | list):
        parts = [fresh(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x
