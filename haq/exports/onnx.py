"""`onnx`: QuantizeLinear and DequantizeLinear with the integer types of ONNX, which onnxruntime runs.

Weights are integer constants in the smallest type that holds their codes, then DequantizeLinear. Inputs are clipped to
the true range where the type is wider than that, then QuantizeLinear and DequantizeLinear (ONNX operators, opset 21,
https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
"""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import Tensor, nn

from haq.exports.grids import InputGrid
from haq.exports.marking import Nodes, Writer
from haq.quant.granularity import group
from haq.quant.tensor import QuantizedTensor

__all__ = ["to_onnx"]

_TYPES = {"INT4": (-8, 7), "UINT4": (0, 15), "INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767)}
_TYPES["UINT16"] = (0, 65535)


def to_onnx(network: nn.Module, sample: Tensor, scheme: str = "linear") -> bytes:
    """Returns a prepared network as an ONNX file with a free batch axis; its input is normalised, its output logits.

    Args:
        network: From `haq.quant.prepare`, with a scheme of uniform grids.
        sample: One input.
        scheme: For messages.

    Raises:
        ConfigError: A quantizer is not a uniform grid, or a package is missing.
        ModelError: PyTorch cannot export the network.
    """
    return _QDQ().write(network, sample, scheme)


def _container(low: int, high: int, signed: bool) -> tuple[int, bool]:
    """Returns the narrowest ONNX type that holds these codes, and whether it holds no others."""
    from onnx import TensorProto

    for name, (least, most) in _TYPES.items():
        if least <= low and high <= most and (least < 0) == signed:
            return cast(int, getattr(TensorProto, name)), (low, high) == (least, most)
    raise AssertionError(f"codes {low} to {high} are beyond 16 bits")


class _QDQ(Writer):
    extra, domains, batch = "onnx", {}, "batch"

    def weight(self, nodes: Nodes, stored: QuantizedTensor, output: str) -> None:
        from onnx import TensorProto

        assert stored.scale is not None
        zeros = None if stored.zero_point is None else stored.zero_point.numpy()
        codes = stored.codes.numpy()
        low, high = int(codes.min()), int(codes.max())
        if zeros is not None:
            low, high = min(low, int(zeros.min())), max(high, int(zeros.max()))
        kind, _ = _container(low, high, signed=low < 0 or high < 2 ** (stored.bits - 1))
        grouped = stored.granularity not in ("tensor", "channel")
        if grouped:
            codes = group(stored.codes, stored.granularity).numpy()
        whole = stored.granularity == "tensor"
        inputs = [
            nodes.constant("codes", codes, kind),
            nodes.constant("scale", stored.scale.numpy().reshape([] if whole else -1), TensorProto.FLOAT),
        ]
        if zeros is not None:
            inputs.append(nodes.constant("zero_point", zeros.reshape([] if whole else -1), kind))
        result = nodes.node("DequantizeLinear", inputs, None if grouped else output, **({} if whole else {"axis": 0}))
        if grouped:
            if stored.granularity == "column":
                result = nodes.node("Transpose", [result], perm=[1, 0])
            shape = nodes.constant("shape", np.array(stored.codes.shape), TensorProto.INT64)
            nodes.node("Reshape", [result, shape], output)

    def input(self, nodes: Nodes, grid: InputGrid, x: str, output: str) -> None:
        from onnx import TensorProto

        kind, exact = _container(grid.low, grid.high, signed=grid.low < 0)
        low, high = (
            nodes.constant(what, value, TensorProto.FLOAT)
            for what, value in zip(("low", "high"), grid.bounds, strict=True)
        )
        if grid.binary:
            zero = nodes.constant("threshold", 0.0, TensorProto.FLOAT)
            x = nodes.node("Where", [nodes.node("GreaterOrEqual", [x, zero]), high, low])
        elif kind in (TensorProto.INT4, TensorProto.UINT4):
            # onnxruntime 1.31 refuses a graph where a Clip, this one or a ReLU6 before it, feeds 4-bit codes
            x = nodes.node("Min", [nodes.node("Max", [x, low]), high])
        elif not exact:
            x = nodes.node("Clip", [x, low, high])
        scale = nodes.constant("scale", grid.scale, TensorProto.FLOAT)
        zero = nodes.constant("zero_point", grid.zero, kind)
        codes = nodes.node("QuantizeLinear", [x, scale, zero])
        nodes.node("DequantizeLinear", [codes, scale, zero], output)
