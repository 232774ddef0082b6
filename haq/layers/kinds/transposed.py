"""Transposed convolutions, and their weight with the output channels first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.kinds.base import LayerKind
from haq.layers.kinds.convolution import gathered
from haq.layers.spec import LayerSpec
from haq.layers.variants import Variant, become
from haq.torch_internals import output_padding_of

__all__ = ["TRANSPOSED", "OutputFirst", "Spread", "inputs_first", "put_outputs_first"]

_FUNCTIONS = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


@dataclass(frozen=True)
class Spread:
    """Turns the input of a transposed convolution into that of a convolution with step 1.

    Attributes:
        stride: Distance between two values of the input.
        before: Zeros before the first value along each dimension; a negative number cuts values off.
        after: Zeros behind the last value.
    """

    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any) -> Spread:
        """Returns how a transposed convolution reads its input."""
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        before = tuple(span - padding for span, padding in zip(spans, layer.padding, strict=True))
        after = tuple(side + more for side, more in zip(before, layer.output_padding, strict=True))
        return cls(tuple(layer.stride), before, after)

    def __call__(self, x: Tensor, zero: int = 0) -> Tensor:
        """Returns the input, `(N, C, *size)`, with zeros, or the code that stands for 0, between and around values."""
        rank = len(self.stride)
        x = x if x.dim() == rank + 2 else x[None]
        shape = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], self.stride, strict=True)]
        apart = x.new_full((*x.shape[:2], *shape), zero)
        every: list[Any] = [slice(None, None, step) for step in self.stride]
        apart[(..., *every)] = x
        sides = [side for axis in reversed(range(rank)) for side in (self.before[axis], self.after[axis])]
        return F.pad(apart, sides, value=zero)


class _Transposed(LayerKind):
    """`nn.ConvTranspose1d`, `2d` and `3d`, after `put_outputs_first`: weight `(M, C / groups, *kernel)`.

    A transposed convolution is a convolution with step 1, with the kernel reversed, of the input with zeros between its
    values (Dumoulin and Visin 2016, arXiv:1603.07285, section 4).
    """

    types = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    channel_axis = 1
    gains_bias = True
    folds_norm = True

    def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
        rank, params = len(layer.kernel_size), layer.weight.numel()
        in_size = tuple(x.shape[-rank:])
        calls = math.prod(x.shape[: -rank - 1])
        return LayerSpec(
            name, "transposed", layer.in_channels, layer.out_channels, tuple(layer.kernel_size), tuple(layer.stride),
            tuple(layer.padding), tuple(layer.dilation), layer.groups, in_size, tuple(y.shape[-rank:]),
            calls * math.prod(in_size) * params, params, 0 if layer.bias is None else layer.bias.numel(),
        )  # fmt: skip

    def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        function = _FUNCTIONS[len(layer.kernel_size)]
        added = output_padding_of(layer, x, *rest, **named)
        weight = inputs_first(weight, layer.groups)
        y: Tensor = function(x, weight, bias, layer.stride, layer.padding, added, layer.groups, layer.dilation)
        return y

    def count(self, layer: Any, x: Tensor) -> int:
        spread = Spread.of(layer)(x)
        return len(spread) * math.prod(self._places(layer, spread))

    def columns(self, layer: Any, x: Tensor, chosen: Tensor) -> Tensor:
        ones = (1,) * len(layer.kernel_size)
        taken = gathered(Spread.of(layer)(x), tuple(layer.kernel_size), ones, tuple(layer.dilation), chosen)
        return taken.flip(1).reshape(layer.groups, -1, len(chosen))

    def _places(self, layer: Any, spread: Tensor) -> tuple[int, ...]:
        spans = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return tuple(size - span for size, span in zip(spread.shape[2:], spans, strict=True))

    def examples(self, layer: Any, generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(2, layer.in_channels, *[8] * len(layer.kernel_size), generator=generator)]

    def usual(self, layer: Any) -> list[Any]:
        return [layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation]


TRANSPOSED = _Transposed()


class OutputFirst(Variant):
    """Mixed into a transposed convolution whose weight is held with its output channels first."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Runs the transposed convolution, `(N, C, *size)` → `(N, M, *size)`."""
        return TRANSPOSED.run(self, input, self.weight, self.bias, output_size)


def put_outputs_first(layer: nn.Module) -> None:
    """Changes a transposed convolution, in place, so that its weight has the output channels first.

    PyTorch's weight, `(C, M / groups, *kernel)`, has no dimension with all output channels, which have a scale each.
    """
    become(layer, OutputFirst)
    weight, groups = cast(nn.Parameter, layer.weight), cast(int, layer.groups)
    layer.weight = nn.Parameter(inputs_first(weight.detach(), groups).contiguous(), weight.requires_grad)


def inputs_first(weight: Tensor, groups: int) -> Tensor:
    """Returns a weight `(M, C / groups, *kernel)` as PyTorch takes it, `(C, M / groups, *kernel)`, or the inverse."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
