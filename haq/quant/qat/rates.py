"""Learning rates of fine-tuning for weights and grids."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.layers import quantizable_layers
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer

__all__ = ["Rates", "usual_rates"]

_CLOSE = 0.8  # agreement above which a network counts as near the float one
# (weights, grids), chosen on validation images of CIFAR-10; see benchmarks/README.md
_FAR, _NEAR = (8e-3, 5e-3), (4e-3, 1e-3)
_FLOAT_BITS = 8


@dataclass(frozen=True)
class Rates:
    """Learning rates at the start.

    Attributes:
        weights: Rate of weights, biases and batch norms.
        grids: Rate of the quantizers' parameters, as a share of each parameter's magnitude.
    """

    weights: float
    grids: float

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns the parameter groups of a prepared network for an optimiser, with the weights first."""
        quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        owned = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
        learned = [pair for quantizer in quantizers for pair in quantizer.learned()]
        grids = [{"params": [parameter], "lr": self.grids * size} for parameter, size in learned]
        return [{"params": weights, "lr": self.weights}, *grids]


def usual_rates(model: nn.Module, agreement: float | None) -> Rates:
    """Returns rates that depend on how close the network is to the float one.

    Compensated rounding leaves weights and grids that fit each other, and answers close to the float network's; large
    steps lose this before they find something better. A network that was broken has far to go. The weights' rate is
    halved for each bit of the median layer's width, because coarser grids need larger steps.

    Args:
        model: A prepared network.
        agreement: Share of training samples on which it agrees with the float network; `None` if unknown.
    """
    weights, grids = _NEAR if agreement is not None and agreement > _CLOSE else _FAR
    return Rates(weights / 2 ** _median_bits(model), grids)


def _median_bits(model: nn.Module) -> float:
    def narrower(layer: Quantized) -> int:
        widths = [getattr(q, "bits", _FLOAT_BITS) for q in (layer.weight_quantizer, layer.input_quantizer)]
        return min(*widths, _FLOAT_BITS)

    layers = [layer for _, layer in quantizable_layers(model) if isinstance(layer, Quantized)]
    return statistics.median(narrower(layer) for layer in layers) if layers else _FLOAT_BITS
