"""Networks that run on the bit-serial kernels of this machine."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.errors import HardwareError
from haq.hwmodels.bitserial import BitSerialLayer
from haq.layers import LayerSpec, quantizable_layers
from haq.policy import LayerBits
from haq.quant.folding import batch_norms_after
from haq.quant.integer.arithmetic import Grid
from haq.quant.integer.graph import grid_of
from haq.quant.integer.parts import linear_parts
from haq.quant.modules import Quantized, QuantLinear, replace_module
from haq.quant.schemes.lsq import LSQQuantizer
from haq.quant.uniform import UniformQuantizer

__all__ = ["BitSerialModule", "deploy", "random_module"]

_GRIDS = (UniformQuantizer, LSQQuantizer)


class BitSerialModule(nn.Module):
    """A layer that quantizes its input, multiplies bit planes and rescales: `(N, C, H, W)` or `(..., K)`, float32.

    Outputs of convolutions are laid out channels last; inputs should be, or they are copied.

    Attributes:
        kernel: What computes it.
        elapsed_ns: Time spent in `forward` so far.
    """

    def __init__(self, kernel: BitSerialLayer) -> None:
        super().__init__()
        self.kernel, self.elapsed_ns = kernel, 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the fake-quantized layer gives, up to rounding in float32."""
        start = time.perf_counter_ns()
        if x.dim() == 4:
            y = torch.from_numpy(self.kernel(x.permute(0, 2, 3, 1).contiguous().numpy())).permute(0, 3, 1, 2)
        else:
            y = torch.from_numpy(self.kernel(x.reshape(-1, x.shape[-1]).numpy())).reshape(*x.shape[:-1], -1)
        self.elapsed_ns += time.perf_counter_ns() - start
        return y


def deploy(quantized: nn.Module, sample: Tensor, backend: str | None = None) -> nn.Module:
    """Returns a copy of a fake-quantized network whose quantized layers run on bit-serial kernels.

    Batch norms become part of the layer before them: of its scale and its bias, so that no code changes. Everything
    else stays in PyTorch.

    Args:
        quantized: From `haq.quant.prepare`, with a scheme of uniform grids, symmetric for weights.
        sample: One input.
        backend: Of the kernels; see `BitSerialLayer`.

    Raises:
        HardwareError: A layer's quantizers, padding or widths are not what the kernels compute.
    """
    deployed = copy.deepcopy(quantized).eval().requires_grad_(False)
    norms: dict[nn.Module, list[_BatchNorm]] = defaultdict(list)
    for layer, norm in batch_norms_after(deployed, sample):
        norms[layer].append(norm)
    layers = [(name, layer) for name, layer in quantizable_layers(deployed) if isinstance(layer, Quantized)]
    if not layers:
        raise HardwareError("the network has no quantized layer to run; prepare it with a policy first")
    for name, layer in layers:
        module = BitSerialModule(_kernel(name, layer, norms[layer], backend))
        for constant in set(layer.__constants__) & set(vars(layer)):  # a forward pass may ask for `out_channels`
            setattr(module, constant, getattr(layer, constant))
        deployed = replace_module(deployed, layer, module)
        for norm in norms[layer]:
            deployed = replace_module(deployed, norm, nn.Identity())
    return deployed


def _kernel(name: str, layer: Quantized, norms: list[_BatchNorm], backend: str | None) -> BitSerialLayer:
    grid = _input_grid(name, layer)
    with torch.no_grad():
        weight, factor, constant = linear_parts(layer, norms, grid.scale)
    offset = 2 ** (grid.bits - 1) if grid.signed else 0
    weights = cast(UniformQuantizer, layer.weight_quantizer)
    build = partial(
        BitSerialLayer,
        weight.to(torch.int32).numpy(),
        weights.bits,
        grid.bits,
        signed_weights=weights.signed,
        a_zero_point=grid.zero + offset,
        scale=factor.float().numpy(),
        bias=constant.float().numpy(),
        a_scale=grid.scale,
        backend=backend,
        name=name,
    )
    if isinstance(layer, QuantLinear):
        return build()
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # also of 'same' and 'valid'
    if layer.padding_mode != "zeros" or left != right or top != bottom:
        raise HardwareError(f"layer {name!r} does not pad alike with zeros on both sides; the kernels do nothing else")
    stride, dilation = cast("tuple[int, int]", layer.stride), cast("tuple[int, int]", layer.dilation)
    return build(stride=stride, padding=(top, left), dilation=dilation, groups=layer.groups)


def _input_grid(name: str, layer: Quantized) -> Grid:
    """The grid of a layer's input, once both quantizers are known to be what the kernels compute."""
    weights, inputs = layer.weight_quantizer, layer.input_quantizer
    for what, quantizer in (("weights", weights), ("input", inputs)):
        if not isinstance(quantizer, _GRIDS):
            raise HardwareError(
                f"the {what} of layer {name!r} are quantized by {type(quantizer).__name__}, which bit-serial kernels "
                "do not compute; use a scheme of uniform grids, such as linear or lsq"
            )
    if getattr(weights, "zero_point", None) is not None or weights.granularity not in ("tensor", "channel"):
        raise HardwareError(
            f"the weights of layer {name!r} have zero points or scales within a channel; bit-serial kernels take "
            "symmetric ones per tensor or channel, as of the scheme linear"
        )
    if inputs.granularity != "tensor":
        raise HardwareError(f"the input of layer {name!r} has several scales; bit-serial kernels take one per tensor")
    grid = grid_of(cast(UniformQuantizer, inputs))
    if grid.binary or grid.rounding != "nearest":
        raise HardwareError(
            f"the input of layer {name!r} has codes -1 and +1, or is rounded down; bit-serial kernels take signed "
            "activations of 2 bits and more, rounded to nearest"
        )
    return grid


def random_module(layer: LayerSpec, bits: LayerBits, seed: int = 0, backend: str | None = None) -> BitSerialModule:
    """Returns a layer of the shape and widths of `layer`, with random weights, for measuring.

    Raises:
        HardwareError: A width is not of 1 to 8 bits.
    """
    if bits.w_bits is None or bits.a_bits is None or max(bits.w_bits, bits.a_bits) > 8:
        raise HardwareError(f"layer {layer.name!r} at {bits}: bit-serial kernels take widths of 1 to 8 bits")
    rng = np.random.default_rng(seed)
    inputs = layer.in_channels // layer.groups
    shape = (layer.out_channels, inputs) if layer.kind == "linear" else (layer.out_channels, inputs, *layer.kernel)
    if bits.w_bits == 1:
        codes = 2 * rng.integers(0, 2, shape) - 1
    else:
        codes = rng.integers(-(2 ** (bits.w_bits - 1)), 2 ** (bits.w_bits - 1), shape)
    ones = np.ones(layer.out_channels, np.float32)
    build = partial(
        BitSerialLayer, codes, bits.w_bits, bits.a_bits, scale=ones, bias=ones, a_scale=1 / (2**bits.a_bits - 1),
        backend=backend, name=layer.name,
    )  # fmt: skip
    if layer.kind == "linear":
        return BitSerialModule(build())
    return BitSerialModule(
        build(stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups)
    )
