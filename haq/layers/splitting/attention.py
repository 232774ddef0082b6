"""Makes PyTorch's attention call a layer for each of its weights, and keeps it off its fast path.

In evaluation mode `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` use a fused kernel, which reads the weights
of their layers without calling the layers. Even without that kernel, attention multiplies by the weights of queries,
keys and values itself, which are often one parameter, and only reads the weight of `out_proj`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.layers.splitting.base import Split, linear, mentions
from haq.layers.variants import become
from haq.torch_internals import attention_calling, has_fused_kernel, parameters_of, take_no_fused_kernel

__all__ = ["CallsProjections", "call_layers", "has_fast_path"]

_INPUTS = ("q_proj", "k_proj", "v_proj")


class CallsProjections(Split):
    """Mixed into `nn.MultiheadAttention` so that it calls `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    If a subclass uses the first three weights in its own code, they stay as they are, and only `out_proj` is called.
    """

    out_proj: nn.Linear

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the attention's own forward pass; an active function mode also keeps it off the fast path."""
        inputs = tuple(self.get_submodule(name) for name in _INPUTS) if self.moved else None
        with _Calling(inputs, self.out_proj, bool(getattr(self, "batch_first", False))):
            return super().forward(*args, **kwargs)


class _Calling(TorchFunctionMode):
    def __init__(self, inputs: tuple[nn.Module, ...] | None, output: nn.Module, samples_first: bool) -> None:
        super().__init__()
        self._layers = inputs, output, samples_first

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            func = attention_calling(*self._layers)
        return func(*args, **(kwargs or {}))


def has_fast_path(module: nn.Module) -> bool:
    """Whether the module may read its layers' weights instead of calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return not isinstance(module, CallsProjections)
    return has_fused_kernel(module)


def call_layers(module: nn.Module) -> None:
    """Changes a module with a fast path, in place, so that it calls its layers."""
    if isinstance(module, nn.MultiheadAttention):
        moved = _split(module)
        become(module, CallsProjections)
        cast(CallsProjections, module).moved = moved
    else:
        take_no_fused_kernel(module)


def _split(attention: nn.MultiheadAttention) -> dict[str, tuple[str, ...]]:
    """Moves the weights of queries, keys and values into layers; returns where each parameter went."""
    weights, bias = tuple(f"{name}_weight" for name in _INPUTS), "in_proj_bias"
    if mentions(type(attention), (*weights, "in_proj_weight", bias)):
        return {}
    parameters = parameters_of(attention)
    packed, biases = parameters["in_proj_weight"], parameters[bias]
    parts = [cast(nn.Parameter, parameters[name]) for name in weights] if packed is None else _thirds(packed)
    moved = {
        **({name: (f"{child}.weight",) for name, child in zip(weights, _INPUTS, strict=True)}),
        **({} if packed is None else {"in_proj_weight": tuple(f"{child}.weight" for child in _INPUTS)}),
        **({} if biases is None else {bias: tuple(f"{child}.bias" for child in _INPUTS)}),
    }
    for child, weight, third in zip(_INPUTS, parts, [None] * 3 if biases is None else _thirds(biases), strict=True):
        attention.add_module(child, linear(weight, third, attention.training))
    parameters.update(dict.fromkeys((*weights, "in_proj_weight", bias)))
    return moved


def _thirds(values: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part.detach().clone(), values.requires_grad) for part in values.chunk(3)]
