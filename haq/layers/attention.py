"""Makes PyTorch's attention call its output projection, and keeps it off its fast path.

In evaluation mode `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` use a fused kernel, which reads the weights
of their layers without calling the layers. Even without that kernel, attention only reads the weight of `out_proj`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.layers.variants import Variant, become
from haq.torch_internals import attention_calling, has_fused_kernel, take_no_fused_kernel

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
            func = attention_calling(self._projection)
        return func(*args, **(kwargs or {}))


def has_fast_path(module: nn.Module) -> bool:
    """Whether the module may read its layers' weights instead of calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return not isinstance(module, CallsProjection)
    return has_fused_kernel(module)


def call_layers(module: nn.Module) -> None:
    """Changes a module with a fast path, in place, so that it calls its layers."""
    if isinstance(module, nn.MultiheadAttention):
        become(module, CallsProjection)
    else:
        take_no_fused_kernel(module)
