"""Makes PyTorch's attention call its output projection, and keeps it off its fast path.

In evaluation mode `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` use a fused kernel, which reads the weights
of their layers without calling the layers. Even without that kernel, attention only reads the weight of `out_proj`.
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
    """Mixed into `nn.MultiheadAttention` so that it calls `out_proj`."""

    out_proj: nn.Linear

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the attention's own forward pass; an active function mode also keeps it off the fast path."""
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
    """Returns PyTorch's function in a namespace whose `linear`, used only for the projection, calls the projection."""
    function = F.multi_head_attention_forward
    namespace = dict(vars(F))

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = projection(x)
        return y

    calling = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    namespace.update({"linear": linear, function.__name__: calling})  # it calls itself by name for outer modes
    return calling


def has_fast_path(module: nn.Module) -> bool:
    """Whether the module may read its layers' weights instead of calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return not isinstance(module, CallsProjection)
    if isinstance(module, nn.TransformerEncoderLayer):
        return bool(getattr(module, "activation_relu_or_gelu", 0))
    return isinstance(module, nn.TransformerEncoder) and bool(getattr(module, "use_nested_tensor", False))


def call_layers(module: nn.Module) -> None:
    """Changes a module with a fast path, in place, so that it calls its layers."""
    if isinstance(module, nn.MultiheadAttention):
        become(module, CallsProjection)
    elif isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # 0 means that the fused kernel does not have the activation
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # only the fused kernel uses nested tensors
