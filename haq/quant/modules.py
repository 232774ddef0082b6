"""Layers whose weights and input activations are fake-quantized."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["QuantConv2d", "QuantLinear", "Quantized", "quantized_like", "replace_module"]


class QuantConv2d(nn.Conv2d):
    """A convolution with quantizers; `nn.Identity` stands for floating point."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    gradient_quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Convolves the quantized input with the quantized weights, `(N, C, H, W)` → `(N, M, H', W')`."""
        y: Tensor = self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
        return cast(Tensor, self.gradient_quantizer(y))


class QuantLinear(nn.Linear):
    """A linear layer with quantizers; `nn.Identity` stands for floating point."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    gradient_quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies the quantized input by the quantized weights, `(..., in)` → `(..., out)`."""
        y = F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
        return cast(Tensor, self.gradient_quantizer(y))


Quantized = QuantConv2d | QuantLinear


def quantized_like(
    layer: nn.Conv2d | nn.Linear, weights: nn.Module, inputs: nn.Module, gradients: nn.Module | None = None
) -> Quantized:
    """Returns a layer with the same parameters and hooks as `layer`, and the given quantizers."""
    kind = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    quantized = cast(Quantized, kind.__new__(kind))
    # The layer's own attributes are taken over as they are, so that every form of convolution is covered; the two
    # registries are copied because quantizers are added to one of them.
    quantized.__dict__.update(layer.__dict__, _modules=dict(layer._modules), _parameters=dict(layer._parameters))
    quantized.weight_quantizer, quantized.input_quantizer = weights, inputs
    quantized.gradient_quantizer = gradients or nn.Identity()
    return quantized


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts `new` wherever `old` is registered in `model`, under however many names, and returns the model."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if module is old:
                setattr(parent, child, new)
    return model
