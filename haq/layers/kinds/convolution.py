"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.kinds.base import LayerKind
from haq.layers.own_forward import OwnForward
from haq.layers.spec import LayerSpec
from haq.torch_internals import convolved, padding_of

__all__ = ["CONVOLUTION", "gathered", "window_of"]

Window = tuple[tuple[int, ...], list[int], tuple[int, ...]]


class _Convolution(LayerKind):
    """`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`; weight `(M, C / groups, *kernel)`."""

    types = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    channel_axis = 1
    gains_bias = True
    folds_norm = True

    def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
        stride, padding, dilation = window_of(layer)
        rank = len(stride)
        # `F.pad` starts with the last dimension; one more on the far side, as 'same' may need, is ignored
        before = tuple(padding[2 * axis] for axis in reversed(range(rank)))
        out_size, params = tuple(y.shape[-rank:]), layer.weight.numel()
        calls = math.prod(y.shape[: -rank - 1])
        return LayerSpec(
            name, _kind(layer), layer.in_channels, layer.out_channels, tuple(layer.kernel_size), stride, before,
            dilation, layer.groups, tuple(x.shape[-rank:]), out_size, calls * math.prod(out_size) * params, params,
            0 if layer.bias is None else layer.bias.numel(),
        )  # fmt: skip

    def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        return convolved(layer, x, weight, bias)

    def count(self, layer: Any, x: Tensor) -> int:
        padded = self.padded(layer, x)
        return len(padded) * math.prod(_places(layer, padded))

    def columns(self, layer: Any, x: Tensor, chosen: Tensor) -> Tensor:
        stride, _, dilation = window_of(layer)
        taken = gathered(self.padded(layer, x), tuple(layer.kernel_size), stride, dilation, chosen)
        return taken.reshape(layer.groups, -1, len(chosen))

    def windows(self, layer: Any, x: Tensor) -> Tensor:
        if not isinstance(layer, nn.Conv2d):
            return super().windows(layer, x)
        stride, _, dilation = window_of(layer)
        columns = F.unfold(self.padded(layer, x), layer.kernel_size, dilation, 0, stride)
        return columns.reshape(len(x), layer.groups, columns.shape[1] // layer.groups, -1)

    def padded(self, layer: Any, x: Tensor) -> Tensor:
        """Returns a batch of inputs with its padding."""
        x = x if x.dim() == layer.weight.dim() else x[None]
        # The product in a forward pass of a user's own pads with zeros
        mode = "constant" if layer.padding_mode == "zeros" or isinstance(layer, OwnForward) else layer.padding_mode
        return F.pad(x, window_of(layer)[1], mode=mode)

    def examples(self, layer: Any, generator: torch.Generator) -> list[Tensor]:
        reach = max(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        sides = [max(8, 2 * reach)] * len(layer.kernel_size)
        return [torch.randn(2, layer.in_channels, *sides, generator=generator)]

    def usual(self, layer: Any) -> list[Any]:
        if layer.padding_mode != "zeros":
            return [None]  # PyTorch pads first, so the product never gets the layer's input itself
        return [layer.stride, layer.padding, layer.dilation, layer.groups]


CONVOLUTION = _Convolution()


def _kind(layer: Any) -> str:
    if layer.groups == 1:
        return "conv"
    return "depthwise" if layer.groups == layer.in_channels else "grouped"


def window_of(layer: Any) -> Window:
    """Returns the stride, the padding in the order of `F.pad`, and the dilation of a convolution's product."""
    if not isinstance(layer, OwnForward):
        return tuple(layer.stride), padding_of(layer), tuple(layer.dilation)
    stride, padding, dilation = layer.window
    kernel: tuple[int, ...] = vars(layer)["kernel_size"]
    sides: list[int] = []
    for axis in reversed(range(len(stride))):  # F.pad starts with the last dimension
        total = dilation[axis] * (kernel[axis] - 1) if padding == "same" else 0
        before = total // 2 if isinstance(padding, str) else padding[axis]
        sides += [before, total - before if isinstance(padding, str) else before]
    return stride, sides, dilation


def _places(layer: Any, x: Tensor) -> tuple[int, ...]:
    """Returns the number of windows in a padded input along each dimension."""
    stride, _, dilation = window_of(layer)
    spans = ((kernel - 1) * step + 1 for kernel, step in zip(layer.kernel_size, dilation, strict=True))
    return tuple((size - span) // step + 1 for size, span, step in zip(x.shape[2:], spans, stride, strict=True))


def gathered(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], chosen: Tensor
) -> Tensor:
    """Returns windows of an input.

    Args:
        x: The input with its padding, `(N, C, *size)`.
        kernel: Size of a window.
        stride: Steps between windows.
        dilation: Steps within a window.
        chosen: Numbers of the windows, `(n,)`.

    Returns:
        `(C, taps, n)`.
    """
    sizes, rank = x.shape[2:], len(kernel)
    places = [
        (size - (taps - 1) * apart - 1) // step + 1
        for size, taps, apart, step in zip(sizes, kernel, dilation, stride, strict=True)
    ]
    whole = math.prod(places)
    sample, place = chosen // whole, chosen % whole
    pixels = sample.reshape(-1, *[1] * rank)
    for axis in range(rank):
        within = place // math.prod(places[axis + 1 :]) % places[axis]
        steps = (within * stride[axis])[:, None] + dilation[axis] * torch.arange(kernel[axis])
        pixels = pixels * sizes[axis] + steps.reshape(-1, *[kernel[axis] if a == axis else 1 for a in range(rank)])
    # Channels last, so that a whole pixel is copied at once
    taken = x.movedim(1, -1).reshape(-1, x.shape[1])[pixels.flatten(1)]  # (n, taps, C)
    return taken.permute(2, 1, 0)
