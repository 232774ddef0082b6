"""PyTorch's attention, made to call its output projection, and kept from its fast path.

In evaluation mode `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` take a fused kernel, which reads the weights
of their layers and calls none of them. Without that kernel, too, attention only reads the weight of `out_proj`.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.layers.variants import Variant, become

__all__ = ["CallsProjection", "call_layers", "has_fast_path"]


class CallsProjection(Variant):
    """Added to `nn.MultiheadAttention`, which then calls `out_proj`."""

    out_proj: nn.Linear

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the attention's own forward pass; a mode on the stack keeps it from the fast path."""
        with _Calling(self.out_proj):
            return super().forward(*args, **kwargs)


class _Calling(TorchFunctionMode):
    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self._projection = projection

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            func = _calling(self._projection)
        return func(*args, **(kwargs or {}))


def _calling(projection: nn.Module) -> FunctionType:
    """Returns PyTorch's function in a namespace where `linear`, which it uses for the projection alone, calls that."""
    function = F.multi_head_attention_forward
    namespace = dict(vars(F))

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = projection(x)
        return y

    calling = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    namespace.update({"linear": linear, function.__name__: calling})  # by this name it goes through outer modes
    return calling


def has_fast_path(module: nn.Module) -> bool:
    """Whether the module may read its layers' weights instead of calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return not isinstance(module, CallsProjection)
    if isinstance(module, nn.TransformerEncoderLayer):
        return bool(getattr(module, "activation_relu_or_gelu", 0))
    return isinstance(module, nn.TransformerEncoder) and bool(getattr(module, "use_nested_tensor", False))


def call_layers(module: nn.Module) -> None:
    """Makes such a module call its layers, in place."""
    if isinstance(module, nn.MultiheadAttention):
        become(module, CallsProjection)
    elif isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # which activations the fused kernel has: none
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # nested tensors are for the fused kernel alone
