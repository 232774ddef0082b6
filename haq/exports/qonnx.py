"""`qonnx`: Quant nodes of any width, for FINN and hls4ml.

Pappalardo et al. 2022, "QONNX: Representing Arbitrary-Precision Quantized Neural Networks", arXiv:2206.07527, section
5. Weights are floating-point constants that already lie on the grid, and a Quant node states the grid; for {−1, +1} it
is a BipolarQuant node.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from haq.exports.graph_nodes import Nodes
from haq.exports.grids import InputGrid
from haq.exports.onnx_graph import Writer
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["to_qonnx"]

_OPERATORS = "qonnx.custom_op.general"


def to_qonnx(network: nn.Module, sample: Tensor, scheme: str = "linear") -> bytes:
    """Returns a prepared network as a QONNX file for one image at a time, as FPGA flows expect.

    Args:
        network: From `haq.quant.prepare`, with a scheme of uniform grids.
        sample: One input.
        scheme: Name of the scheme, for messages.

    Raises:
        ConfigError: A quantizer is not a uniform grid, or a package is missing.
        ModelError: PyTorch cannot export the network.
    """
    return _Quant().write(network, sample, scheme)


class _Quant(Writer):
    extra, domains, batch = "qonnx", {_OPERATORS: 1}, None

    def weight(self, nodes: Nodes, stored: QuantizedTensor, output: str) -> None:
        from onnx import TensorProto

        assert stored.scale is not None
        values, grouped = stored.dequantize().float(), stored.granularity not in ("tensor", "channel")
        if grouped:
            values = group(values, stored.granularity)
        aside = (-1, *[1] * (values.dim() - 1)) if stored.granularity != "tensor" else (1,)
        scale = stored.scale.reshape(aside).numpy()
        zero = np.zeros(1) if stored.zero_point is None else stored.zero_point.reshape(aside).numpy()
        low, high = int(stored.codes.min()), int(stored.codes.max())
        binary = stored.bits == 1 and stored.zero_point is None and bool((stored.codes.abs() == 1).all())
        if stored.bits == 1 and low < 0 and not binary:
            zero, low, high = zero + 1, low + 1, high + 1  # {−1, 0} as {0, 1}: in QONNX a signed bit means −1 and +1
        constant = nodes.constant("values", values.numpy(), TensorProto.FLOAT)
        name = None if grouped else output
        result = _quantize(nodes, constant, scale, zero, stored.bits, (low, high), binary, name)
        if grouped:
            if stored.granularity == "column":
                result = nodes.node("Transpose", [result], perm=[1, 0])
            shape = nodes.constant("shape", np.array(stored.codes.shape), TensorProto.INT64)
            nodes.node("Reshape", [result, shape], output)

    def input(self, nodes: Nodes, grid: InputGrid, x: str, output: str) -> None:
        codes = (grid.low, grid.high)
        _quantize(nodes, x, np.array(grid.scale), np.array(grid.zero), grid.bits, codes, grid.binary, output)


def _quantize(
    nodes: Nodes,
    x: str,
    scale: np.typing.NDArray[np.generic],
    zero: np.typing.NDArray[np.generic],
    bits: int,
    codes: tuple[int, int],
    binary: bool,
    output: str | None,
) -> str:
    from onnx import TensorProto

    step = nodes.constant("scale", scale, TensorProto.FLOAT)
    if binary:
        return nodes.node("BipolarQuant", [x, step], output, domain=_OPERATORS)
    low, high = codes
    signed = low < 0 or (bits > 1 and high < 2 ** (bits - 1))
    while not (-(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1) if signed else high < 2**bits):
        bits += 1  # DoReFa's levels are odd multiples of half a step, which needs one more bit
    narrow = signed and low == 1 - 2 ** (bits - 1)
    offset = nodes.constant("zero_point", zero, TensorProto.FLOAT)
    width = nodes.constant("bits", float(bits), TensorProto.FLOAT)
    attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
    return nodes.node("Quant", [x, step, offset, width], output, domain=_OPERATORS, **attributes)
