"""What the rest of a network costs: all that it computes and stores outside of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from haq.hwmodels.accelerators.footprint import footprint_of_rest
from haq.hwmodels.hardware import Hardware, price_layer
from haq.layers import LayerSpec
from haq.layers.rest import Rest
from haq.metrics import METRICS
from haq.policy import LayerBits

__all__ = ["rest_costs", "widest"]


def rest_costs(hardware: Hardware, layers: Sequence[LayerSpec], rest: Rest | None, batch: int) -> dict[str, float]:
    """Returns field → cost to add to the total of the layers; nothing where nothing is left.

    Time, energy and other sums that the cost model gives are an estimate: that of one linear layer with as many
    multiply-accumulates, at the widest pair that the hardware runs, although the rest stays in floating point. What is
    not a product, such as a softmax, costs nothing here, as between the layers of any network.

    Args:
        hardware: The cost model.
        layers: Of the network.
        rest: What the network reads beside them.
        batch: Samples at once.

    Raises:
        HardwareError: The hardware does not price a linear layer.
    """
    counted = footprint_of_rest(layers, rest)
    if not rest or not rest.macs:
        return counted
    given = price_layer(hardware, _as_layer(rest), widest(hardware), batch).values
    added = {metric.field for metric in METRICS.values() if metric.combine == "sum"} - {"size_bytes", "bops"}
    return {field: cost for field, cost in given.items() if field in added} | counted


def widest(hardware: Hardware) -> LayerBits:
    """Returns the pair of widths that is nearest to floating point."""
    return max(hardware.pairs, key=lambda pair: (min(pair.w_bits or 0, pair.a_bits or 0), pair.w_bits, pair.a_bits))


def _as_layer(rest: Rest) -> LayerSpec:
    """Returns a linear layer with the multiply-accumulates of the rest.

    It holds the weights that take part in them. Products of two activations have no weights, so theirs is a cube.
    """
    side = max(1, round(rest.macs ** (1 / 3)))
    weights = max(side**2, min(rest.multiplied, rest.macs))
    inputs = max(1, round(weights**0.5))
    outputs = max(1, round(weights / inputs))
    rows = max(1, round(rest.macs / (inputs * outputs)))
    macs = rows * inputs * outputs
    return LayerSpec(
        "rest", "linear", inputs, outputs, (1, 1), (1, 1), (0, 0), (1, 1), 1, (rows, 1), (rows, 1), macs,
        inputs * outputs, 0,
    )  # fmt: skip
