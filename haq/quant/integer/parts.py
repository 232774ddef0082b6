"""Converts single operations of a traced network: layers with their batch norms, and windows of pooling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.layers.kinds import kind_of
from haq.layers.kinds.lowering import lowered
from haq.quant.graph import argument
from haq.quant.integer.arithmetic import Grid
from haq.quant.integer.graph import RANGE
from haq.quant.integer.layers import IntegerConv2d, IntegerLinear, IntegerLowered, LayerCodes
from haq.quant.integer.pooling import Window
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.torch_internals import BatchNorm

__all__ = ["average_window", "integer_layer", "linear_parts", "max_window", "pad_widths", "terms_of"]


def integer_layer(
    name: str, layer: Quantized, norms: Iterable[BatchNorm], inputs: Grid, outputs: Grid, clip: tuple[int, int]
) -> IntegerConv2d | IntegerLinear | IntegerLowered:
    """Returns the integer layer for a quantized one.

    A following batch norm scales every channel by γ/σ and shifts it by β − μ·γ/σ, which become part of the factor and
    the bias. The weights' codes stay as they were trained (Jacob et al. 2018, section 3.2, fold the batch norm into the
    weights instead).

    Args:
        name: Name of the layer, for errors.
        layer: Layer whose weight's codes have scales and whose input is on `inputs`.
        norms: The batch norm that follows the layer, if any.
        inputs: Grid of the layer's input.
        outputs: Grid of the output.
        clip: Smallest and largest code of the output.
    """
    weight, factor, constant = linear_parts(layer, norms, inputs.scale)
    parts = LayerCodes(weight, factor, constant, inputs, outputs, clip)
    if isinstance(cast(nn.Module, layer), nn.Linear):
        return IntegerLinear(parts)
    conv = lowered(layer)
    assert conv is not None, f"the graph was checked, but layer {name!r} is no convolution"
    window = Window(conv.kernel, conv.stride, conv.dilation, conv.padding)
    made = IntegerConv2d(replace(parts, weight=conv.weight(weight)), window, kind_of(layer).groups(layer))
    return made if conv.is_plain else IntegerLowered(conv, made)


def linear_parts(layer: Quantized, norms: Iterable[BatchNorm], input_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns weight, factor and constant of y = factor·Σ weight·(x − Z) + constant, including a following batch norm.

    Args:
        layer: Layer whose weight's codes have scales.
        norms: The batch norm that follows it, if any.
        input_scale: Step of its input's grid.

    Returns:
        Weight: codes minus their zero point, int8 if they fit, else int32; factor and constant: float64 `(M,)`.
    """
    quantized = cast(Quantizer, layer.weight_quantizer).encode(layer.weight)
    codes = quantized.codes.flatten(1)
    if quantized.zero_point is not None:
        codes = codes - quantized.zero_point[:, None]
    assert quantized.scale is not None
    factor = quantized.scale.double().expand(len(codes)) * input_scale
    constant = torch.zeros_like(factor) if layer.bias is None else layer.bias.double()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        slope = (norm.running_var.double() + norm.eps).rsqrt()
        slope = slope if norm.weight is None else slope * norm.weight.double()
        constant = (constant - norm.running_mean.double()) * slope
        constant = constant if norm.bias is None else constant + norm.bias.double()
        factor = factor * slope
    dtype = torch.int8 if torch.equal(codes.to(torch.int8), codes) else torch.int32
    return codes.to(dtype).reshape(layer.weight.shape), factor, constant


def average_window(node: fx.Node, module: nn.Module | None) -> tuple[Window | None, tuple[int, ...], bool]:
    """Returns the window of average pooling (`None` for all positions), the size of its input, and `keepdim`.

    Raises:
        ModelError: It averages over other dimensions than all after the channels, or over windows of different sizes.
    """
    shape = node.all_input_nodes[0].meta[RANGE][0]
    size = tuple(shape[2:])
    if "mean" in str(getattr(node.target, "__name__", node.target)):
        dims = argument(node, 1, "dim", None)
        every, rank = set(range(2, len(shape))), len(shape)
        over = {dims} if isinstance(dims, int) else set(dims or ())
        if not every or {d % rank for d in over} != every:
            wanted = tuple(every) or "those after the channels"
            raise ModelError(f"mean {node.name!r} is over dimensions {dims}; integers average over {wanted} only")
        return None, size, bool(argument(node, 2, "keepdim", False))
    if "daptive" in str(getattr(node.target, "__name__", type(module).__name__)):
        output = _option(node, module, 1, "output_size", None)
        if output != 1 and not (isinstance(output, tuple | list) and set(output) == {1}):
            raise ModelError(f"adaptive pooling {node.name!r} to {output}; integers average all positions only")
        return None, size, True
    kernel = _pair(_option(node, module, 1, "kernel_size", None))
    padding = _option(node, module, 3, "padding", 0)
    even = _option(node, module, 5, "count_include_pad", True) or _pair(padding) == (0, 0)
    if _option(node, module, 4, "ceil_mode", False) or _option(node, module, 6, "divisor_override", None) or not even:
        raise ModelError(
            f"pooling {node.name!r} has windows of different sizes; use ceil_mode=False, count_include_pad=True "
            "and no divisor_override"
        )
    return _pool_window(kernel, _option(node, module, 2, "stride", None), padding, 1), size, True


def max_window(node: fx.Node, module: nn.Module | None) -> Window:
    """Returns the window of max pooling.

    Raises:
        ModelError: It has `ceil_mode` or returns indices.
    """
    if _option(node, module, 5, "ceil_mode", False) or _option(node, module, 6, "return_indices", False):
        raise ModelError(f"pooling {node.name!r} has ceil_mode or return_indices; integer max pooling has neither")
    kernel, stride = _option(node, module, 1, "kernel_size", None), _option(node, module, 2, "stride", None)
    return _pool_window(
        _pair(kernel), stride, _option(node, module, 3, "padding", 0), _option(node, module, 4, "dilation", 1)
    )


def pad_widths(node: fx.Node, module: nn.Module | None) -> Any:
    """Returns the widths that `torch.nn.functional.pad` takes.

    Raises:
        ModelError: It does not pad with zeros.
    """
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
    if module is None and (mode != "constant" or value):
        raise ModelError(f"padding {node.name!r} is {mode!r} with {value}; integers pad with constant zeros only")
    return _option(node, module, 1, "padding" if module else "pad", None)


def terms_of(node: fx.Node) -> list[fx.Node]:
    """Returns the two terms of an addition.

    Raises:
        ModelError: A term is not a tensor of the network, or has a factor.
    """
    terms = [argument(node, 0, "input", None), argument(node, 1, "other", None)]
    if not all(isinstance(term, fx.Node) and RANGE in term.meta for term in terms) or "alpha" in node.kwargs:
        raise ModelError(
            f"addition {node.name!r} adds {terms[1]!r}; integers add two tensors without alpha; "
            "make a constant part of a layer's bias"
        )
    return terms


def _option(node: fx.Node, module: nn.Module | None, position: int, name: str, default: Any) -> Any:
    return argument(node, position, name, default) if module is None else getattr(module, name, default)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def _pool_window(kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any) -> Window:
    vertical, horizontal = _pair(padding)
    step = kernel if stride in (None, [], ()) else _pair(stride)
    return Window(kernel, step, _pair(dilation), (horizontal, horizontal, vertical, vertical))
