"""Costs that depend on the network alone, and so are the same on all hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from haq.layers import LayerSpec
from haq.layers.rest import Rest
from haq.policy import LayerBits

__all__ = ["FLOAT_BITS", "bops", "counted", "footprint", "footprint_of_rest", "size_bytes", "weights_of"]

FLOAT_BITS = 32
_FLOAT_BYTES = FLOAT_BITS // 8


def size_bytes(layer: LayerSpec, bits: LayerBits) -> int:
    """Returns the bytes that a deployed layer stores.

    It counts the weights, packed and rounded up to whole bytes; a 32-bit bias for every output channel, whether or not
    the layer has one now, because deployment folds batch normalisation into it; a 32-bit scale for every output channel
    of quantized weights; and one 32-bit scale for quantized activations. An embedding has a scale for every row, and
    neither a bias nor activations that are quantized. A scheme's own tables, such as the codebook of a k-means
    quantizer, are not counted.

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
    scales = (layer.rows if bits.w_bits else 0) + (1 if bits.a_bits and not layer.is_lookup else 0)
    biases = 0 if layer.is_lookup else layer.out_channels
    return weights + _FLOAT_BYTES * (biases + scales)


def bops(layer: LayerSpec, bits: LayerBits) -> int:
    """Returns the bit operations for one sample: MACs times w_bits times a_bits, where `None` counts as 32."""
    return layer.macs * (bits.w_bits or FLOAT_BITS) * (bits.a_bits or FLOAT_BITS)


def counted(layer: LayerSpec, bits: LayerBits) -> dict[str, float]:
    """Returns what a layer costs on any hardware: metric field → cost."""
    return {"size_bytes": size_bytes(layer, bits), "bops": bops(layer, bits)}


def footprint(
    layers: Sequence[LayerSpec], w_bits: Sequence[int], a_bits: Sequence[int | None], rest: Rest | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns all costs that depend on the network alone, field → `(L, W, A)`.

    These are `size_bytes`, `bops`, and each layer's part of `bits_per_weight`, the average width of all weights:
    w_bits · weights / weights of the network. The parts, with that of `footprint_of_rest`, add up to the average.

    Args:
        layers: Of the whole network, L of them.
        w_bits: Widths of weights, W of them.
        a_bits: Widths of activations, A of them; `None` is floating point.
        rest: What the network reads beside them.

    Examples:
        >>> from haq.layers import LayerSpec
        >>> fc = LayerSpec("fc", "linear", 64, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 640, 640, 10)
        >>> footprint([fc], [2, 4], [8])["bits_per_weight"].tolist()
        [[[2.0], [4.0]]]
    """
    weights = weights_of(layers, rest)
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


def footprint_of_rest(layers: Sequence[LayerSpec], rest: Rest | None) -> dict[str, float]:
    """Returns what the rest of a network costs on any hardware, field → cost; nothing where nothing is left.

    Its tensors keep their stored type, its products are those of 32-bit floating point, and its weights count in the
    average width with the width that they have.

    Args:
        layers: Of the network.
        rest: What the network reads beside them.
    """
    if not rest:
        return {}
    costs = {
        "size_bytes": float(rest.size_bytes),
        "bops": float(rest.macs * FLOAT_BITS * FLOAT_BITS),
        "bits_per_weight": 8 * rest.weight_bytes / weights_of(layers, rest),
    }
    return {field: cost for field, cost in costs.items() if cost}


def weights_of(layers: Sequence[LayerSpec], rest: Rest | None) -> int:
    """Returns the number of weights that the average width is over."""
    return sum(layer.params for layer in layers) + (rest.weights if rest else 0)
