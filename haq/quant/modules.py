"""Layers whose weights and input activations are fake-quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.own_forward import OwnForward, Substituted, own_class
from haq.layers.running import put_in_place
from haq.layers.variants import variant
from haq.torch_internals import convolved, registries_for

__all__ = ["QuantConv2d", "QuantLinear", "Quantized", "quantized_like"]


class QuantConv2d(nn.Conv2d):
    """A convolution with quantizers; `nn.Identity` means floating point."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    gradient_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Convolves the quantized input with the quantized weights, `(N, C, H, W)` → `(N, M, H', W')`."""
        y = convolved(self, self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)
        return cast(Tensor, self.gradient_quantizer(y))


class QuantLinear(nn.Linear):
    """A linear layer with quantizers; `nn.Identity` means floating point."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    gradient_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Multiplies the quantized input by the quantized weights, `(..., in)` → `(..., out)`."""
        y = F.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)
        return cast(Tensor, self.gradient_quantizer(y))


Quantized = QuantConv2d | QuantLinear


class _QuantizedProduct(OwnForward):
    """Mixed into a layer with its own forward pass: quantizes its product."""

    def product(self, function: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """Returns the product of the quantized input with the quantized weights."""
        layer = cast(Quantized, self)
        y = function(layer.input_quantizer(x), layer.weight_quantizer(layer.weight), layer.bias, *rest)
        return cast(Tensor, layer.gradient_quantizer(y))


class _QuantizedWeight(Substituted):
    """Mixed into a layer whose product cannot be intercepted: quantizes what its own forward pass reads."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward pass of the layer's class."""
        layer = cast(Quantized, self)
        if args:
            args = (layer.input_quantizer(args[0]), *args[1:])
        else:
            name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            kwargs[name] = layer.input_quantizer(kwargs[name])
        with put_in_place(self, "weight", layer.weight_quantizer(layer.weight)):
            y = own_class(self).forward(self, *args, **kwargs)
        return layer.gradient_quantizer(y)


def quantized_like(
    layer: nn.Conv2d | nn.Linear, weights: nn.Module, inputs: nn.Module, gradients: nn.Module | None = None
) -> Quantized:
    """Returns a layer with the same parameters and hooks as `layer`, and the given quantizers.

    Args:
        layer: A convolution or linear layer; it is not changed.
        weights: Quantizer of the weight.
        inputs: Quantizer of the input.
        gradients: Quantizer of the output's gradient; by default gradients stay in floating point.
    """
    kind: type[nn.Module] = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    if isinstance(layer, OwnForward):
        kind = variant(own_class(layer), _QuantizedProduct, kind)
    elif isinstance(layer, Substituted):
        kind = variant(own_class(layer), _QuantizedWeight, kind)
    quantized = cast(Quantized, kind.__new__(kind))
    # All attributes are taken over unchanged, which covers every form of convolution; the two registries are copied,
    # because quantizers are added to one of them.
    quantized.__dict__.update(layer.__dict__, **registries_for(layer))
    quantized.weight_quantizer, quantized.input_quantizer = weights, inputs
    quantized.gradient_quantizer = gradients or nn.Identity()
    return quantized
