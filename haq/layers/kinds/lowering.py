"""Convolutions in one dimension, and transposed ones, as ordinary convolutions in two: what integer kernels compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from haq.layers.kinds.convolution import window_of
from haq.layers.kinds.transposed import Spread
from haq.layers.own_forward import OwnForward, Substituted
from haq.layers.spec import LayerSpec

__all__ = ["Lowered", "lowered", "lowered_spec"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_PLAIN = (nn.Conv1d, nn.Conv2d)

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A layer as a convolution in two dimensions that pads with zeros.

    Attributes:
        kernel: Height and width; the height is 1 for a layer in one dimension.
        stride: Vertical and horizontal.
        dilation: Vertical and horizontal.
        padding: Left, right, top and bottom.
        rank: Number of dimensions of the layer, 1 or 2.
        spread: What a transposed convolution does to its input first; `None` for others.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[int, int, int, int]
    rank: int
    spread: Spread | None

    @property
    def is_plain(self) -> bool:
        """Whether the layer is such a convolution already."""
        return self.rank == 2 and self.spread is None

    def weight(self, values: Tensor) -> Tensor:
        """Returns values of the layer's weight as `(M, C / groups, kh, kw)`."""
        if self.spread is not None:
            values = values.flip(*range(2, values.dim()))
        return values if values.dim() == 4 else values.unsqueeze(2)

    def enter(self, x: Tensor, zero: int = 0) -> Tensor:
        """Returns what the convolution reads, `(N, C, H, W)`.

        Args:
            x: Input of the layer.
            zero: The code that stands for 0 in `x`.
        """
        if self.spread is not None:
            x = self.spread(x, zero)
        return x if x.dim() == 4 else x.unsqueeze(2)

    def leave(self, y: Tensor) -> Tensor:
        """Returns the layer's output from that of the convolution, `(N, M, H', W')`."""
        return y.squeeze(2) if self.rank == 1 else y


def lowered(layer: nn.Module) -> Lowered | None:
    """Returns the layer as a convolution in two dimensions, or `None` if it is none.

    Layers that pad with anything but zeros, or have a forward pass of their own, are none.
    """
    known = isinstance(layer, _PLAIN + _TRANSPOSED) and not isinstance(layer, OwnForward | Substituted)
    if not known or cast(str, layer.padding_mode) != "zeros":
        return None
    conv: Any = layer
    stride, padding, dilation = window_of(conv)
    spread = Spread.of(conv) if isinstance(layer, _TRANSPOSED) else None
    if spread is not None:
        stride, padding = (1,) * len(stride), [0] * len(padding)
    sides = cast("tuple[int, int, int, int]", (*padding, 0, 0)[:4])
    return Lowered(_pair(conv.kernel_size), _pair(stride), _pair(dilation), sides, len(stride), spread)


def _pair(values: tuple[int, ...]) -> Pair:
    height, width = (1, *values)[-2:]
    return int(height), int(width)


def lowered_spec(layer: LayerSpec) -> LayerSpec | None:
    """Returns one call of a layer as it is lowered; `None` for layers that are neither linear nor lowered."""
    if layer.kind == "linear":
        return replace(layer, macs=layer.macs // layer.calls)
    if layer.is_lookup or len(layer.kernel) > 2:
        return None
    kernel, dilation, out_size = (_pair(values) for values in (layer.kernel, layer.dilation, layer.out_size))
    if layer.kind != "transposed":
        padding = (0, *layer.padding)[-2:]
        return replace(
            layer, kernel=kernel, stride=_pair(layer.stride), padding=cast(Pair, padding), dilation=dilation,
            in_size=_pair(layer.in_size), out_size=out_size, macs=layer.macs // layer.calls,
        )  # fmt: skip
    spread = tuple(size + d * (k - 1) for size, d, k in zip(out_size, dilation, kernel, strict=True))
    kind = "conv" if layer.groups == 1 else "depthwise" if layer.groups == layer.in_channels else "grouped"
    return replace(
        layer, kind=kind, kernel=kernel, stride=(1, 1), padding=(0, 0), dilation=dilation, in_size=spread,
        out_size=out_size, macs=math.prod(out_size) * layer.params,
    )  # fmt: skip
