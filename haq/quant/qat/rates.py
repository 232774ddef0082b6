"""How fast fine-tuning moves weights and grids."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.layers import quantizable_layers
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.quantizers.base import Quantizer

__all__ = ["Rates", "usual_rates"]

_CLOSE = 0.8
# Chosen on validation images of CIFAR-10; see benchmarks/README.md
_FAR, _NEAR = (8e-3, 5e-3), (4e-3, 1e-3)
_FLOAT_BITS = 8


@dataclass(frozen=True)
class Rates:
    """Learning rates at the start.

    Attributes:
        weights: Of weights, biases and batch norms.
        grids: Of what quantizers learn, as a share of a parameter's own magnitude.
    """

    weights: float
    grids: float

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns the parameters of a prepared network as an optimiser takes them, those of weights first."""
        quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        owned = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
        learned = [pair for quantizer in quantizers for pair in quantizer.learned()]
        grids = [{"params": [parameter], "lr": self.grids * size} for parameter, size in learned]
        return [{"params": weights, "lr": self.weights}, *grids]


def usual_rates(model: nn.Module, agreement: float | None) -> Rates:
    """Returns rates for a network by how close it is already.

    Compensated rounding leaves weights and grids that fit each other, and a network that answers nearly as the float
    one does; large moves lose that before they find something better. A network that was broken has far to go. The
    weights' rate is half with every bit of the median layer, because coarser grids need larger moves.

    Args:
        model: Prepared.
        agreement: Share of the training samples on which it answers as the float network does; `None` if that is not
            known.
    """
    weights, grids = _NEAR if agreement is not None and agreement > _CLOSE else _FAR
    return Rates(weights / 2 ** _median_bits(model), grids)


def _median_bits(model: nn.Module) -> float:
    def narrower(layer: Quantized) -> int:
        widths = [getattr(q, "bits", _FLOAT_BITS) for q in (layer.weight_quantizer, layer.input_quantizer)]
        return min(*widths, _FLOAT_BITS)

    layers = [layer for _, layer in quantizable_layers(model) if isinstance(layer, QuantConv2d | QuantLinear)]
    return statistics.median(narrower(layer) for layer in layers) if layers else _FLOAT_BITS
