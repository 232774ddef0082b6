"""Nodes of an ONNX graph, collected to replace one mark."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DOMAIN", "Nodes"]

DOMAIN = "haq"
"""Operator set of the marks, which no file contains."""


class Nodes:
    """Collects the nodes and constants that replace one mark; their names start with the name of the layer."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, what: str, values: npt.ArrayLike, kind: int) -> str:
        """Adds a constant and returns its name.

        Args:
            what: End of the name.
            values: Values of the constant.
            kind: Their ONNX type.
        """
        from onnx import helper

        array, name = np.asarray(values), f"{self.key}_{what}"
        self.constants.append(helper.make_tensor(name, kind, array.shape, _raw(array, kind), raw=True))
        return name

    def node(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node and returns the name of its output.

        Args:
            op: Type of the node.
            inputs: Names of its inputs.
            output: Name of its output; by default one is made from the mark and `op`.
            **attributes: Attributes of the node.
        """
        from onnx import helper

        output = output or f"{self.key}_{op}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{self.key}/{op}", **attributes))
        return output


def _raw(array: npt.NDArray[Any], kind: int) -> bytes:
    """Returns values as ONNX stores them; the first of two 4-bit values is in the low half of the byte."""
    from onnx import TensorProto, helper

    if kind not in (TensorProto.INT4, TensorProto.UINT4):
        return array.astype(helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    halves = array.flatten().astype(np.int8).view(np.uint8) & 0xF
    halves = np.pad(halves, (0, len(halves) % 2))
    return (halves[::2] | halves[1::2] << 4).tobytes()
