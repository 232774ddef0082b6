"""Vectors in LLVM code; one lane is a plain number, so that the same code serves CPUs without vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

__all__ = ["splat", "vector_type"]


def vector_type(element: Any, lanes: int) -> Any:
    """Returns the type of `lanes` neighbouring elements."""
    return ir.VectorType(element, lanes) if lanes > 1 else element


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeats a number in all lanes.

    Args:
        builder: LLVM builder to emit into.
        value: The number.
        lanes: Number of lanes.
    """
    if lanes == 1:
        return value
    index = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, value, index(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(index, lanes), [0] * lanes))
