"""Description of a layer for the search: shapes, weights and multiply-accumulates. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from haq.errors import ModelError
from haq.io.validation import restored

__all__ = ["LayerKind", "LayerSpec", "Pair", "ends"]

LayerKind = Literal["conv", "depthwise", "grouped", "linear"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerSpec:
    """One quantizable layer, as seen with one input sample.

    Attributes:
        name: Module path, as in `model.named_modules()`.
        kind: `depthwise` has one input channel per group; `grouped` has several groups of several channels.
        in_channels: Input channels (features of a linear layer).
        out_channels: Output channels (features of a linear layer).
        kernel: Height and width; `(1, 1)` for a linear layer, as are `stride` and `dilation`.
        padding: Zeros on each side, `(vertical, horizontal)`.
        groups: Number of groups; 1 for a linear layer.
        in_size: Input feature map of the first call, `(height, width)`; `(rows, 1)` for a linear layer.
        out_size: Output feature map of the first call, in the same form.
        macs: Multiply-accumulates for one sample, summed over all calls of the module.
        params: Number of weights, without biases.
        biases: Number of biases.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_size: Pair
    out_size: Pair
    macs: int
    params: int
    biases: int

    def __post_init__(self) -> None:
        for field in ("in_channels", "out_channels", "groups", "macs", "params"):
            if getattr(self, field) < 1:
                raise ModelError(f"layer {self.name!r}: {field} must be at least 1, but got {getattr(self, field)}")

    @property
    def reduction(self) -> int:
        """Length of one dot product, input channels of a group times kernel area (K of the layer as a GEMM)."""
        return self.params // self.out_channels

    @property
    def positions(self) -> int:
        """Output positions for one sample, over all calls (N of the layer as a GEMM, for batch 1)."""
        return self.macs // self.params

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON types; `from_dict` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LayerSpec:
        """Rebuilds a layer from the output of `to_dict`; JSON's lists become tuples again."""
        return restored(cls, data)


def ends(layers: Sequence[LayerSpec]) -> tuple[str, ...]:
    """Returns the names of the first and the last layer, which are usually held at 8 bits.

    Returns nothing for a network of one or two layers, where no layer would be left between them.

    Args:
        layers: Layers in the order of their first call, from `trace`.
    """
    return (layers[0].name, layers[-1].name) if len(layers) > 2 else ()
