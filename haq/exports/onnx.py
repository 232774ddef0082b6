"""`onnx`: QuantizeLinear and DequantizeLinear with the integer types of ONNX, which onnxruntime runs.

Weights are integer constants in the smallest type that holds their codes, followed by DequantizeLinear. Inputs are
clipped to the true range if the type is wider, followed by QuantizeLinear and DequantizeLinear (ONNX operators, opset
21, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).

onnxruntime's optimiser turns 8-bit layers into integer kernels. Their limits decide how such a layer is written:

- Before AVX-512 VNNI, products of unsigned and signed bytes are added in pairs in 16 bits, and saturate; unsigned bytes
  on both sides do not (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do
  I need to try U8U8?"). So inputs are UINT8, and so are weights if two of them may overflow the pair.
- A layer's bias becomes a 32-bit integer in steps of S_w·S_x. It is rounded, so that later codes move by a step, and
  exceeds 32 bits for a channel of tiny weights. So a bias is a separate Add after the layer, which stays exact.
- In onnxruntime 1.26 and earlier, QLinearConv refuses zero points of weights that differ between channels, and QGemm
  refuses weights without zero points (https://github.com/microsoft/onnxruntime/issues/28447). So 8-bit weights always
  have zero points; filters with different ones are written as a matrix and a Reshape, and their convolution stays in
  floating point.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import Tensor, nn

from haq.exports.graph_nodes import Nodes
from haq.exports.grids import InputGrid
from haq.exports.onnx_graph import Writer
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["to_onnx"]

_TYPES = {"INT4": (-8, 7), "UINT4": (0, 15), "INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767)}
_TYPES["UINT16"] = (0, 65535)
_HALF = 128  # difference between the codes of a signed and an unsigned byte
_PAIRED = 64  # two products of an unsigned byte and such codes fit 16 bits


def to_onnx(network: nn.Module, sample: Tensor, scheme: str = "linear") -> bytes:
    """Returns a prepared network as an ONNX file with a free batch axis; its input is normalised, its output logits.

    Args:
        network: From `haq.quant.prepare`, with a scheme of uniform grids.
        sample: One input.
        scheme: Name of the scheme, for messages.

    Raises:
        ConfigError: A quantizer is not a uniform grid, or a package is missing.
        ModelError: PyTorch cannot export the network.
    """
    return _QDQ().write(network, sample, scheme)


def _container(low: int, high: int, signed: bool) -> tuple[int, bool]:
    """Returns the narrowest ONNX type that holds these codes, and whether it has no other values."""
    from onnx import TensorProto

    for name, (least, most) in _TYPES.items():
        if least <= low and high <= most and (least < 0) == signed:
            return cast(int, getattr(TensorProto, name)), (low, high) == (least, most)
    raise AssertionError(f"codes {low} to {high} are beyond 16 bits")


def _weight_type(stored: QuantizedTensor) -> tuple[int, int]:
    """Returns the type of a weight's codes in the file, and the offset that is added to them there."""
    from onnx import TensorProto

    low, high = int(stored.codes.min()), int(stored.codes.max())
    if stored.zero_point is not None:
        low, high = min(low, int(stored.zero_point.min())), max(high, int(stored.zero_point.max()))
    kind, _ = _container(low, high, signed=low < 0 or high < 2 ** (stored.bits - 1))
    if kind == TensorProto.INT8 and max(-low, high) > _PAIRED:
        return TensorProto.UINT8, _HALF
    return kind, 0


def _input_type(grid: InputGrid) -> tuple[int, int, bool]:
    """Returns the type of an input's codes, the offset that is added to them, and whether they use the whole type."""
    from onnx import TensorProto

    kind, exact = _container(grid.low, grid.high, signed=grid.low < 0)
    return (TensorProto.UINT8, _HALF, exact) if kind == TensorProto.INT8 else (kind, 0, exact)


class _QDQ(Writer):
    extra, domains, batch, bias_apart, loops = "onnx", {}, "batch", True, True

    def weight(self, nodes: Nodes, stored: QuantizedTensor, output: str) -> None:
        from onnx import TensorProto

        assert stored.scale is not None
        kind, offset = _weight_type(stored)
        grouped = stored.granularity not in ("tensor", "channel")
        codes = (group(stored.codes, stored.granularity) if grouped else stored.codes).numpy() + offset
        zeros = (0 if stored.zero_point is None else stored.zero_point.numpy()) + np.full(stored.scale.shape, offset)
        whole, fused = stored.granularity == "tensor", kind in (TensorProto.INT8, TensorProto.UINT8)
        if fused and codes.ndim > 2 and (zeros != zeros[0]).any():
            grouped, codes = True, codes.reshape(len(codes), -1)
        inputs = [
            nodes.constant("codes", codes, kind),
            nodes.constant("scale", stored.scale.numpy().reshape([] if whole else -1), TensorProto.FLOAT),
        ]
        if fused or zeros.any():
            inputs.append(nodes.constant("zero_point", zeros.reshape([] if whole else -1), kind))
        result = nodes.node("DequantizeLinear", inputs, None if grouped else output, **({} if whole else {"axis": 0}))
        if grouped:
            if stored.granularity == "column":
                result = nodes.node("Transpose", [result], perm=[1, 0])
            shape = nodes.constant("shape", np.array(stored.codes.shape), TensorProto.INT64)
            nodes.node("Reshape", [result, shape], output)

    def input(self, nodes: Nodes, grid: InputGrid, x: str, output: str) -> None:
        from onnx import TensorProto

        kind, offset, exact = _input_type(grid)
        low, high = (
            nodes.constant(what, value, TensorProto.FLOAT)
            for what, value in zip(("low", "high"), grid.bounds, strict=True)
        )
        if grid.binary:
            zero = nodes.constant("threshold", 0.0, TensorProto.FLOAT)
            x = nodes.node("Where", [nodes.node("GreaterOrEqual", [x, zero]), high, low])
        elif kind in (TensorProto.INT4, TensorProto.UINT4):
            # onnxruntime 1.31 refuses a graph in which a Clip (this one, or a ReLU6 before it) feeds 4-bit codes
            x = nodes.node("Min", [nodes.node("Max", [x, low]), high])
        elif not exact:
            x = nodes.node("Clip", [x, low, high])
        scale = nodes.constant("scale", grid.scale, TensorProto.FLOAT)
        zero = nodes.constant("zero_point", grid.zero + offset, kind)
        codes = nodes.node("QuantizeLinear", [x, scale, zero])
        nodes.node("DequantizeLinear", [codes, scale, zero], output)
