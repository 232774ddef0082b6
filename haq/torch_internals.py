"""PyTorch's internals that haq uses. No other file names one, so that an update of PyTorch breaks one file at most.

Checked with torch 2.13.0; `pyproject.toml` allows no newer minor version. `tests/haq/test_torch_internals.py` names the
internal that an update breaks. Why each is needed:

- `_BatchNorm`: the base class of batch norms of any dimension has no public name.
- `torch.utils._pytree`: what a network reads and gives may be nested in tuples, lists, dictionaries and classes.
- `torch.utils._python_dispatch`: sees every operation that a network runs, with the tensors that it reads.
  `_should_skip_dynamo`: to keep the compiler out of it, PyTorch imports the compiler, which takes seconds.
- `_parameters`, `_buffers`, `_modules`: the public iterators leave out entries that are `None` or come twice, and
  setting an attribute refuses some values.
- `_non_persistent_buffers_set`: says which buffers a state leaves out without making a state.
- `fake_mode`: makes tensors without values that go with those of a trace.
- `GuardOnDataDependentSymNode` and its like: what a trace raises when code asks for the value of a tensor.
- `_forward_hooks`, `_forward_pre_hooks`, `_load_state_dict_pre_hooks`: PyTorch does not say which hooks a module has.
- `WeightNorm`, `SpectralNorm` and `_tensor_name` of pruning: the older ways of computing a weight are hooks, whose
  classes are not documented.
- `_conv_forward`, `_reversed_padding_repeated_twice`: a convolution with another weight, and its padding on each side.
- `_output_padding`: what a transposed convolution adds to reach the size that its caller asks for.
- `_load_from_state_dict`: `haq.quant.quantizers.uniform` overrides it, to take the shape of what is stored.
- `DisableTorchFunction`: the public class of this kind leaves modes on.
- `_version` of a tensor: counts writes in place.
- `_int_mm`: the only product of 8-bit integers.
- `OptimizedModule`, `_orig_mod`, `_compiled_call_impl`, `_torchdynamo_orig_callable`: what `torch.compile` wraps.
- `_flat_weights`, `_flat_weights_names`, `_flat_weight_refs`: recurrent networks keep references to their weights.
- `multi_head_attention_forward` calls `_in_projection` for queries, keys and values, and `linear` for its output
  projection alone; `activation_relu_or_gelu` and `use_nested_tensor` switch off the fused kernels of transformers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from inspect import signature
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "BatchNorm",
    "DispatchMode",
    "SpectralNorm",
    "WeightNorm",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]

FLAT_WEIGHTS = "_flat_weights"
"""The list in which `nn.LSTM`, `nn.GRU` and `nn.RNN` keep their weights, for the function that they call."""

CONV_FORWARD = "_conv_forward"
"""The method of a convolution that computes with a given weight; a subclass may have its own."""

REGISTRIES = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold its parameters, buffers and children."""


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch annotates none of its methods
    """Sees every operation inside its block in `__torch_dispatch__`; none of them is compiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
"""Class → what holds the network inside. By name: to import `torch._dynamo` takes seconds, and who uses it has it."""


# Modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Returns the registry of the module's own parameters, in which one may be replaced."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Returns the registry of the module's own buffers."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Returns the registry of the module's children, the same one under each of its names."""
    return module._modules


def share_tensors(module: nn.Module, source: nn.Module) -> None:
    """Gives a module the parameters and buffers of another, in registries of its own."""
    module._parameters, module._buffers = dict(source._parameters), dict(source._buffers)


def registries_for(source: nn.Module) -> dict[str, Any]:
    """Returns attributes for a module that shares parameters and children with another, and may get others."""
    return {"_modules": dict(source._modules), "_parameters": dict(source._parameters)}


def unstored_buffers(module: nn.Module) -> Collection[str]:
    """Returns the names of the module's own buffers that a state leaves out."""
    return module._non_persistent_buffers_set


# Hooks


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after the module's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def forget_forward_hooks(module: nn.Module) -> None:
    """Removes what runs before and after the module's forward pass, but not from those that it shares it with."""
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()


def pre_hooks(module: nn.Module) -> list[Any]:
    """Returns the hooks that run before the module's forward pass."""
    return list(module._forward_pre_hooks.values())


def forget_loading_hooks(module: nn.Module) -> None:
    """Removes what runs before a state is loaded, such as what `remove_spectral_norm` does not find."""
    module._load_state_dict_pre_hooks.clear()


def pruned_name(hook: prune.BasePruningMethod) -> str:
    """Returns which parameter of its module a pruning hook computes."""
    return hook._tensor_name


# Convolutions and tensors


def convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the convolution of a layer with another weight and bias."""
    y: Tensor = layer._conv_forward(x, weight, bias)
    return y


def padding_of(layer: Any) -> list[int]:
    """Returns the padding as `F.pad` takes it, `[left, right, top, bottom]`, also of `'same'` and `'valid'`."""
    return list(layer._reversed_padding_repeated_twice)


def output_padding_of(layer: Any, x: Tensor, output_size: list[int] | None = None) -> list[int]:
    """Returns what a transposed convolution adds to the end of its output, which may be asked for by size."""
    rank = len(layer.kernel_size)
    added: list[int] = layer._output_padding(
        x, output_size, layer.stride, layer.padding, layer.kernel_size, rank, layer.dilation
    )
    return added


def writes(values: Tensor) -> int:
    """Returns a number that grows whenever the tensor, or a view of it, is written to."""
    return values._version


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns `a @ b`, `(M, K) @ (K, N)` of int8, in int32.

    Raises:
        AttributeError: This PyTorch does not have it.
        RuntimeError: It is not built for this processor, or not for these sizes.
    """
    return torch._int_mm(a, b)


def unseen() -> Any:
    """Returns a context in which function modes see no call."""
    return torch._C.DisableTorchFunction()


# Traces


def faked(values: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor without values, of the shape of `values`, for the trace that `like` belongs to."""
    result: Tensor = cast(Any, like).fake_mode.from_tensor(values, static_shapes=True)
    return result


def decides_by_values(error: Exception) -> bool:
    """Whether a trace failed because Python code asked for the value of a tensor."""
    return type(error).__name__ in ("GuardOnDataDependentSymNode", "DataDependentOutputException")


# Wrapped and compiled networks


def inside_name(module: nn.Module) -> str | None:
    """Returns the name of the attribute that holds the network in a wrapper, or `None`."""
    return _WRAPPERS.get(f"{type(module).__module__}.{type(module).__qualname__}")


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of the module run code that was compiled, by `module.compile()` or in the place of `forward`."""
    return module._compiled_call_impl is not None or _compiled_forward(module)


def uncompile(module: nn.Module) -> None:
    """Lets calls of the module run its own forward pass again."""
    module._compiled_call_impl = None
    if _compiled_forward(module):  # `net.forward = torch.compile(net.forward)`
        del vars(module)["forward"]


def _compiled_forward(module: nn.Module) -> bool:
    return hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")


# Recurrent networks


def recurrent_names(module: nn.Module) -> dict[str, str]:
    """Returns the names of the weights of a recurrent network or cell, each with the name of its bias if it has one."""
    names = module._flat_weights_names if isinstance(module, nn.RNNBase) else ["weight_ih", "weight_hh"]
    return {name: name.replace("weight", "bias") for name in names if name.startswith("weight")}


def forget_flat_weights(module: nn.Module) -> None:
    """Removes the references that a recurrent network keeps to its weights; it then cannot run its own function."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights, module._flat_weights_names, module._flat_weight_refs = [], [], []


# Attention


_ATTENTION = signature(F.multi_head_attention_forward)


def attention_calling(
    inputs: Sequence[nn.Module] | None, output: nn.Module, samples_first: bool = False
) -> Callable[..., Any]:
    """Returns `F.multi_head_attention_forward` that calls layers instead of using their weights.

    The function is PyTorch's, in a namespace of its own: nothing of PyTorch is changed.

    Args:
        inputs: Layers of queries, keys and values; `None` if it shall use the weights that it is given.
        output: Layer that projects the result.
        samples_first: Whether the layers get `(N, L, E)`; the function itself computes with `(L, N, E)`.
    """
    function = cast(FunctionType, F.multi_head_attention_forward)
    namespace = dict(vars(F))
    calling = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)

    def called_with(layer: nn.Module, x: Tensor, turned: bool) -> Tensor:
        y: Tensor = layer(x.transpose(0, 1)).transpose(0, 1).contiguous() if turned else layer(x)
        return y

    def called(*args: Any, **kwargs: Any) -> Any:
        bound = _ATTENTION.bind(*args, **kwargs)
        query: Tensor = bound.arguments["query"]
        turned = samples_first and query.dim() == 3

        def projected(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            rows = x.reshape(*query.shape[:2], -1) if turned else x
            return called_with(output, rows, turned).flatten(0, -2)

        def in_projection(*given: Tensor) -> tuple[Tensor, ...]:
            assert inputs is not None
            return tuple(called_with(layer, x, turned) for layer, x in zip(inputs, given[:3], strict=True))

        names = {"linear": projected, function.__name__: calling}  # by this name it goes through outer modes
        namespace.update(names if inputs is None else {**names, "_in_projection": in_projection})
        unused = torch.empty(0)  # no weight of a layer goes through outer modes
        bound.arguments.update(out_proj_weight=unused, out_proj_bias=None)
        if inputs is not None:
            weights = dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), unused)
            bound.arguments.update(weights, in_proj_weight=None, in_proj_bias=None, use_separate_proj_weight=True)
        return calling(*bound.args, **bound.kwargs)

    return called


def has_fused_kernel(module: nn.Module) -> bool:
    """Whether a transformer's encoder, or a layer of it, may take a kernel that calls none of its layers."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return bool(getattr(module, "activation_relu_or_gelu", 0))
    return isinstance(module, nn.TransformerEncoder) and bool(getattr(module, "use_nested_tensor", False))


def take_no_fused_kernel(module: nn.Module) -> None:
    """Keeps a transformer's encoder, or a layer of it, from that kernel."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # which activations the fused kernel has: none
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # nested tensors are for the fused kernel alone
