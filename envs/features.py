"""What HAQ's agent sees of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.layers import LayerSpec

__all__ = ["layer_features"]

_MATRICES = ("linear", "embedding")
"""Kinds whose weight is a matrix, without a kernel."""


def layer_features(layers: Sequence[LayerSpec]) -> NDArray[np.float32]:
    """Returns the eight features of HAQ's observation that do not depend on decisions, `(L, 8)`, scaled to [0, 1].

    In the order of eq. 1 of arXiv:1811.08886: index of the layer, input channels, output channels, height of the
    kernel, stride, size of the input, number of weights, depthwise or not. As in the public code, each column is scaled
    so that its smallest value over the layers becomes 0 and its largest becomes 1. A column with the same value in all
    layers becomes 0; the public code leaves it as it is, outside [0, 1].

    Args:
        layers: All layers of the network, in the order of their first call.
    """
    rows = np.array(
        [
            (
                index, layer.in_channels, layer.out_channels, layer.kernel[0], _stride(layer), _input_size(layer),
                layer.params, _is_depthwise(layer),
            )
            for index, layer in enumerate(layers)
        ],
        np.float64,
    )  # fmt: skip
    smallest, span = rows.min(axis=0), np.ptp(rows, axis=0)
    scaled: NDArray[np.float32] = ((rows - smallest) / np.where(span > 0, span, 1)).astype(np.float32)
    return scaled


# How the public code reads a layer (mit-han-lab/haq, `_build_state_embedding` and `measure_layer`)


def _stride(layer: LayerSpec) -> int:
    return 0 if layer.kind in _MATRICES else layer.stride[0]


def _input_size(layer: LayerSpec) -> int:
    """Returns width times height; for a linear layer, the size of the second axis: its channels or its tokens."""
    whole = math.prod(layer.in_size)
    return layer.in_channels if layer.kind in _MATRICES and layer.in_size[0] == 1 else whole


def _is_depthwise(layer: LayerSpec) -> bool:
    """Whether there are as many groups as input channels; also true of a convolution with one input channel."""
    return layer.kind not in _MATRICES and layer.groups == layer.in_channels
