"""Description of a layer for the search: shapes, weights and multiply-accumulates. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from haq.errors import ModelError
from haq.io.validation import restored

__all__ = ["LayerSpec", "Sizes", "ends"]

Sizes = tuple[int, ...]
"""One number for each dimension of space or time: `(length,)`, `(height, width)` or `(depth, height, width)`."""


@dataclass(frozen=True)
class LayerSpec:
    """One quantizable layer, as seen with one input sample.

    Attributes:
        name: Module path, as in `model.named_modules()`.
        kind: `conv`, `depthwise` (one input channel per group), `grouped` (several groups of several channels),
            `transposed` (a transposed convolution), `linear`, `embedding`, or a kind of your own; see
            `haq.layers.kinds`.
        in_channels: Input channels; features of a linear layer; rows of an embedding.
        out_channels: Output channels; features of a linear layer; values in a row of an embedding.
        kernel: Size of the kernel; `(1, 1)` for a linear layer and an embedding, as are `stride` and `dilation`.
        padding: Zeros on each side.
        groups: Number of groups; 1 for a linear layer.
        in_size: Input feature map of the first call; `(rows, 1)` for a linear layer, `(lookups, 1)` over all calls for
            an embedding.
        out_size: Output feature map, in the same form.
        macs: Multiply-accumulates for one sample, summed over all calls of the module; 0 for an embedding.
        params: Number of weights, without biases.
        biases: Number of biases.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int
    in_size: Sizes
    out_size: Sizes
    macs: int
    params: int
    biases: int

    def __post_init__(self) -> None:
        least = {"in_channels": 1, "out_channels": 1, "groups": 1, "params": 1, "macs": 0 if self.is_lookup else 1}
        for field, value in least.items():
            if getattr(self, field) < value:
                raise ModelError(
                    f"layer {self.name!r}: {field} must be at least {value}, but got {getattr(self, field)}"
                )

    @property
    def is_lookup(self) -> bool:
        """Whether the layer looks up rows of its weight, by indices that are not quantized."""
        return self.kind == "embedding"

    @property
    def rows(self) -> int:
        """Number of rows of the weight, each with its own scale: output channels, or rows of an embedding."""
        return self.in_channels if self.is_lookup else self.out_channels

    @property
    def reduction(self) -> int:
        """Length of one dot product, input channels of a group times kernel area (K of the layer as a GEMM)."""
        return 1 if self.is_lookup else self.params // self.out_channels

    @property
    def positions(self) -> int:
        """Positions for one sample at which the weight is applied, over all calls (N of the GEMM, for batch 1).

        These are output positions; input positions of a transposed convolution; lookups of an embedding.
        """
        return math.prod(self.in_size) if self.is_lookup else self.macs // self.params

    @property
    def calls(self) -> int:
        """How often the module is called for one sample; 1 for an embedding."""
        if self.is_lookup:
            return 1
        return max(1, self.positions // math.prod(self.in_size if self.kind == "transposed" else self.out_size))

    @property
    def values_read(self) -> int:
        """Activations that the calls for one sample read, each counted once; none for an embedding.

        Every call is assumed to read as much as the first. Of a strided layer with a small kernel, only the values
        under its kernel count.
        """
        if self.is_lookup:
            return 0
        whole = self.in_channels * math.prod(self.in_size) * self.calls
        return min(whole, self.groups * self.reduction * self.positions)

    @property
    def values_written(self) -> int:
        """Results that the calls for one sample write."""
        return self.out_channels * math.prod(self.out_size) * self.calls

    def weights_read(self, batch: int) -> int:
        """Returns how many weights a batch reads: all, but of an embedding at most the rows that are looked up."""
        return min(self.params, batch * self.positions * self.out_channels) if self.is_lookup else self.params

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
