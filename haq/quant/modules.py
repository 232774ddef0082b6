"""Layers whose weights and inputs are fake-quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from haq.layers.kinds import bias_of, kind_of
from haq.layers.kinds.transposed import OutputFirst
from haq.layers.own_forward import OwnForward, Substituted, own_class
from haq.layers.running import put_in_place
from haq.layers.variants import Variant, variant
from haq.torch_internals import registries_for

__all__ = ["Lookups", "Quantized", "quantized_like"]


class Quantized(Variant):
    """Mixed into the class of a layer of any kind: quantizes its input and its weight.

    Attributes:
        weight_quantizer: Of the weight; `nn.Identity` means floating point.
        input_quantizer: Of the input; `Lookups` where the input is indices.
        gradient_quantizer: Of the gradient of the output.
        weight: Output channels first, or rows of a table.
        bias: `(M,)`; `None` for none. Tables of embeddings do not have the attribute.
    """

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    gradient_quantizer: nn.Module
    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, *args: Any, **named: Any) -> Any:
        """Runs the layer with its quantized input, the first argument or `input`, and its quantized weight."""
        given, *rest = args or (named.pop("input"),)
        x, weight = self.input_quantizer(given), self.weight_quantizer(self.weight)
        return cast(Tensor, self.gradient_quantizer(kind_of(self).run(self, x, weight, bias_of(self), *rest, **named)))


class Lookups(nn.Identity):
    """Stands for the quantizer of an input of indices: it keeps the width that the policy names, and does nothing.

    Args:
        bits: The width.
    """

    def __init__(self, bits: int | None) -> None:
        super().__init__()
        self.bits = bits


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
    layer: nn.Module, weights: nn.Module, inputs: nn.Module, gradients: nn.Module | None = None
) -> Quantized:
    """Returns a layer with the same parameters and hooks as `layer`, and the given quantizers.

    Args:
        layer: A layer of any kind; it is not changed.
        weights: Quantizer of the weight.
        inputs: Quantizer of the input; only its width is kept where the input is indices.
        gradients: Quantizer of the output's gradient; by default gradients stay in floating point.
    """
    added: tuple[type[nn.Module], ...] = (Quantized,)
    if isinstance(layer, OwnForward):
        added = (_QuantizedProduct, Quantized)
    elif isinstance(layer, Substituted):
        added = (_QuantizedWeight, Quantized)
    elif isinstance(layer, OutputFirst):
        added = (Quantized, OutputFirst)
    kind = variant(own_class(layer), *added)
    quantized = cast(Quantized, kind.__new__(kind))
    # All attributes are taken over unchanged, which covers every form of convolution; the two registries are copied,
    # because quantizers are added to one of them.
    quantized.__dict__.update(layer.__dict__, **registries_for(layer))
    if not kind_of(layer).reads_values:
        inputs = Lookups(getattr(inputs, "bits", None))
    quantized.weight_quantizer, quantized.input_quantizer = weights, inputs
    quantized.gradient_quantizer = gradients or nn.Identity()
    return quantized
