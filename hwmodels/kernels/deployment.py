"""Networks that run on the bit-serial kernels of this machine."""

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from haq.errors import HardwareError
from haq.hwmodels.kernels.bit_planes import PlaneLayer
from haq.hwmodels.kernels.runtime import Kernel, Runtime
from haq.hwmodels.kernels.stopwatch import get_stopwatch
from haq.layers import LayerSpec, copied, quantizable_layers, replace_modules, run_sample, watched
from haq.layers.kinds.lowering import Lowered, lowered
from haq.layers.own_forward import OwnForward, Substituted, own_class
from haq.policy import LayerBits
from haq.quant.folding import batch_norms_after
from haq.quant.integer.arithmetic import Grid
from haq.quant.integer.graph import grid_of
from haq.quant.integer.parts import linear_parts
from haq.quant.modules import Quantized
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes.lsq import LSQQuantizer
from haq.torch_internals import BatchNorm

__all__ = ["BitSerialModule", "deploy", "random_module"]

logger = logging.getLogger(__name__)

_GRIDS = (UniformQuantizer, LSQQuantizer)


class LoweredModule(nn.Module):
    """A layer of another kind that runs as a convolution in two dimensions.

    Args:
        conv: The layer as such a convolution.
        inner: That convolution.
    """

    def __init__(self, conv: Lowered, inner: BitSerialModule) -> None:
        super().__init__()
        self._conv, self.inner = conv, inner

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Returns the output of the fake-quantized layer, up to rounding in float32."""
        return self._conv.leave(self.inner(self._conv.enter(x)))


class BitSerialModule(nn.Module):
    """A layer that quantizes its input, multiplies bit planes and rescales: `(N, C, H, W)` or `(..., K)`, float32.

    Outputs of convolutions are laid out channels last; inputs in another layout are copied.

    Attributes:
        kernel: Kernel that computes the layer; it may be replaced.
        linear: Whether it is a fully connected layer, whose input may have any number of dimensions.
        weight: Empty; networks such as vision transformers read the type of a layer's weight.

    Args:
        kernel: See above.
        linear: See above.
        device: Where the kernel is, `cpu` or `cuda`.
    """

    kernel: Kernel
    weight: Tensor

    def __init__(self, kernel: Kernel, linear: bool, device: str = "cpu") -> None:
        super().__init__()
        self.kernel, self.linear, self._watch = kernel, linear, get_stopwatch(device)
        self.register_buffer("weight", torch.empty(0, device=device), persistent=False)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the fake-quantized layer, up to rounding in float32."""
        with self._watch:
            if self.linear:
                return self._run(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            return self._run(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _run(self, x: Tensor) -> Tensor:
        kernel = self.kernel
        if isinstance(kernel, PlaneLayer):
            return kernel.forward(x)
        return torch.from_numpy(kernel(x.contiguous().numpy()))

    @property
    def elapsed_ns(self) -> int:
        """Time spent in `forward` so far; set it to 0 to start again."""
        return self._watch.elapsed_ns

    @elapsed_ns.setter
    def elapsed_ns(self, value: int) -> None:
        assert value == 0, "a stopwatch starts at zero"
        self._watch.reset()


def deploy(quantized: nn.Module, sample: Tensor, backend: str | None = None, device: str = "cpu") -> nn.Module:
    """Returns a copy of a fake-quantized network whose quantized layers run on bit-serial kernels.

    Batch norms become part of the scale and the bias of the layer before them, so that no code changes. If anything but
    its batch norm reads a layer's output, all batch norms stay in PyTorch. Everything else runs in PyTorch.

    Args:
        quantized: From `haq.quant.prepare`, with a scheme of uniform grids, per tensor or channel for weights.
        sample: One input.
        backend: Name of the kernels; see `Runtime`.
        device: Where the network runs, `cpu` or `cuda`.

    Raises:
        HardwareError: The kernels do not support a layer's quantizers, padding or widths, or the device is not
            available.
    """
    runtime = Runtime.of(device, backend)
    deployed = copied(quantized).eval().requires_grad_(False)
    norms = _movable_norms(deployed, sample)
    layers = [(name, layer) for name, layer in quantizable_layers(deployed) if isinstance(layer, Quantized)]
    if not layers:
        raise HardwareError("the network has no quantized layer to run; prepare it with a policy first")
    places: dict[nn.Module, nn.Module] = {}
    for name, layer in layers:
        norm = norms.get(layer)
        conv = _lowered(name, layer)
        module: nn.Module = BitSerialModule(_kernel(name, layer, conv, norm, runtime), conv is None, device)
        if conv is not None and not conv.is_plain:
            module = LoweredModule(conv, cast(BitSerialModule, module))
        for constant in set(cast("list[str]", layer.__constants__)) & set(
            vars(layer)
        ):  # a forward pass may read `out_channels`
            setattr(module, constant, getattr(layer, constant))
        places[layer] = module
        if norm is not None:
            places[norm] = nn.Identity()
    return replace_modules(deployed, places).to(device)


def _movable_norms(network: nn.Module, sample: Tensor) -> dict[nn.Module, BatchNorm]:
    """Finds the batch norm that can become part of each layer; tries all at once, with hooks."""
    norms: dict[nn.Module, BatchNorm] = dict(batch_norms_after(network, sample))
    if not norms:
        return norms
    moved = {layer: copy.deepcopy(norm) for layer, norm in norms.items()}
    expected = run_sample(network, sample)
    with (
        watched(norms, after=lambda layer, x, y: moved[layer](y)),
        watched(norms.values(), after=lambda norm, x, y: x),
    ):
        found = run_sample(network, sample)
    if torch.equal(expected, found):
        return norms
    logger.warning("batch norms stay in PyTorch: a layer's output is read by more than its batch norm")
    return {}


def _lowered(name: str, layer: nn.Module) -> Lowered | None:
    """Returns a layer as a convolution in two dimensions; `None` if it is a linear layer."""
    if isinstance(layer, OwnForward | Substituted):
        raise HardwareError(
            f"layer {name!r} ({type(layer).__name__}) has a forward pass of its own, which bit-serial kernels do not "
            "run; make it a plain Conv2d or Linear"
        )
    if isinstance(layer, nn.Linear):
        return None
    conv, mode = lowered(layer), getattr(layer, "padding_mode", "zeros")
    if mode != "zeros" or (conv is not None and conv.padding[::2] != conv.padding[1::2]):
        raise HardwareError(
            f"layer {name!r} pads with padding={cast(Any, layer).padding!r}, padding_mode={mode!r}; bit-serial kernels "
            "pad with zeros, equally on both sides"
        )
    if conv is None:
        raise HardwareError(
            f"layer {name!r} ({own_class(layer).__name__}) has no bit-serial kernel; they run linear layers and "
            "convolutions in one and two dimensions, also transposed"
        )
    return conv


def _kernel(name: str, layer: Any, conv: Lowered | None, norm: BatchNorm | None, runtime: Runtime) -> Kernel:
    grid = _input_grid(name, layer)
    with torch.no_grad():
        weight, factor, constant = linear_parts(layer, [norm] if norm is not None else [], grid.scale)
    offset = 2 ** (grid.bits - 1) if grid.signed else 0
    weights, codes, zeros = cast(UniformQuantizer, layer.weight_quantizer), weight.to(torch.int32), None
    if getattr(weights, "zero_point", None) is not None:  # LSQ has none
        zeros = cast(Tensor, weights.zero_point).expand(len(codes))
        codes = codes + zeros.view(-1, *[1] * (codes.dim() - 1))
    if conv is not None:
        codes = conv.weight(codes)
    build = partial(
        runtime.layer,
        codes.contiguous().numpy(),
        weights.bits,
        grid.bits,
        signed_weights=weights.signed,
        a_zero_point=grid.zero + offset,
        scale=factor.float().numpy(),
        bias=constant.float().numpy(),
        a_scale=grid.scale,
        w_zero_points=None if zeros is None else zeros.numpy(),
        name=name,
    )
    if conv is None:
        return build()
    left, _, top, _ = conv.padding
    return build(stride=conv.stride, padding=(top, left), dilation=conv.dilation, groups=layer.groups)


def _input_grid(name: str, layer: Quantized) -> Grid:
    """Returns the grid of a layer's input, after a check that the kernels support both quantizers."""
    weights, inputs = layer.weight_quantizer, layer.input_quantizer
    for what, quantizer in (("weights", weights), ("inputs", inputs)):
        if isinstance(quantizer, nn.Identity):
            raise HardwareError(f"the {what} of layer {name!r} are in floating point; give them 1 to 8 bits")
        if not isinstance(quantizer, _GRIDS):
            raise HardwareError(
                f"the {what} of layer {name!r} are quantized by {type(quantizer).__name__}, which bit-serial kernels "
                "do not compute; use a scheme of uniform grids, such as linear or lsq"
            )
    if weights.granularity not in ("tensor", "channel"):
        raise HardwareError(
            f"the weights of layer {name!r} have scales within a channel, granularity={weights.granularity}; "
            "bit-serial kernels take one per tensor or channel; quantize with granularity=channel"
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


def random_module(
    layer: LayerSpec, bits: LayerBits, seed: int = 0, backend: str | None = None, device: str = "cpu"
) -> BitSerialModule:
    """Returns a layer with random weights, for measurements.

    Args:
        layer: Shape of the layer, linear or from `haq.layers.kinds.lowering.lowered_spec`.
        bits: Widths of the layer.
        seed: Seed of the weights.
        backend: Name of the kernels; see `Runtime`.
        device: Where the layer runs, `cpu` or `cuda`.

    Raises:
        HardwareError: A width is not 1 to 8 bits, or the device is not available.
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
        Runtime.of(device, backend).layer, codes, bits.w_bits, bits.a_bits, scale=ones, bias=ones,
        a_scale=1 / (2**bits.a_bits - 1), name=layer.name,
    )  # fmt: skip
    if layer.kind == "linear":
        return BitSerialModule(build(), linear=True, device=device)
    window = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return BitSerialModule(build(**window, groups=layer.groups), linear=False, device=device)
