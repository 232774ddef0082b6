"""Costs that depend on the network alone, and so are the same on all hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["FLOAT_BITS", "bops", "counted", "footprint", "size_bytes"]

FLOAT_BITS = 32
_FLOAT_BYTES = FLOAT_BITS // 8


def size_bytes(layer: LayerSpec, bits: LayerBits) -> int:
    """Returns the bytes that a deployed layer stores.

    It counts the weights, packed and rounded up to whole bytes; a 32-bit bias for every output channel, whether or not
    the layer has one now, because deployment folds batch normalisation into it; a 32-bit scale for every output channel
    of quantized weights; and one 32-bit scale for quantized activations. It does not count a scheme's own tables, such
    as the codebook of a k-means quantizer.

    Args:
        layer: The layer.
        bits: Its widths; `None` is 32-bit floating point, so that the original network has a size too.

    Examples:
        >>> from haq.layers import LayerSpec
        >>> fc = LayerSpec("fc", "linear", 64, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 640, 640, 10)
        >>> size_bytes(fc, LayerBits(4, 8))  # 640 · 4 / 8 weights, 10 · 4 biases, 10 · 4 + 4 scales
        404
        >>> size_bytes(fc, LayerBits(None, None))
        2600
    """
    weights = -(-layer.params * (bits.w_bits or FLOAT_BITS) // 8)
    scales = (layer.out_channels if bits.w_bits else 0) + (1 if bits.a_bits else 0)
    return weights + _FLOAT_BYTES * (layer.out_channels + scales)


def bops(layer: LayerSpec, bits: LayerBits) -> int:
    """Returns the bit operations for one sample: MACs times w_bits times a_bits, where `None` counts as 32."""
    return layer.macs * (bits.w_bits or FLOAT_BITS) * (bits.a_bits or FLOAT_BITS)


def counted(layer: LayerSpec, bits: LayerBits) -> dict[str, float]:
    """Returns what a layer costs on any hardware: metric field → cost."""
    return {"size_bytes": size_bytes(layer, bits), "bops": bops(layer, bits)}


def footprint(
    layers: Sequence[LayerSpec], w_bits: Sequence[int], a_bits: Sequence[int | None]
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns all costs that depend on the network alone, field → `(L, W, A)`.

    These are `size_bytes`, `bops`, and each layer's part of `bits_per_weight`, the average width of all weights:
    w_bits · weights / weights of all layers. The parts add up to the average.

    Args:
        layers: Of the whole network, L of them.
        w_bits: Widths of weights, W of them.
        a_bits: Widths of activations, A of them; `None` is floating point.

    Examples:
        >>> from haq.layers import LayerSpec
        >>> fc = LayerSpec("fc", "linear", 64, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 640, 640, 10)
        >>> footprint([fc], [2, 4], [8])["bits_per_weight"].tolist()
        [[[2.0], [4.0]]]
    """
    weights = sum(layer.params for layer in layers)
    cells = [(layer, LayerBits(w, a)) for layer in layers for w in w_bits for a in a_bits]
    counts: dict[str, Callable[[LayerSpec, LayerBits], float]] = {
        "size_bytes": size_bytes,
        "bops": bops,
        "bits_per_weight": lambda layer, bits: (bits.w_bits or FLOAT_BITS) * layer.params / weights,
    }
    shape = (len(layers), len(w_bits), len(a_bits))
    return {
        field: np.array([count(layer, bits) for layer, bits in cells], np.float64).reshape(shape)
        for field, count in counts.items()
    }
