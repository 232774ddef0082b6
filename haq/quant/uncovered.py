"""Finds what a network reads that none of its layers covers, by running it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from haq.layers import LayerSpec, quantizable_layers, run_sample
from haq.layers.own_forward import StaysFloat
from haq.layers.rest import Left, Rest
from haq.layers.running import Sample, same_randomness
from haq.quant.folding import batch_norms_after, fold_batch_norm
from haq.torch_internals import BatchNorm, DispatchMode, buffers_of, parameters_of, tree_leaves, unstored_buffers

__all__ = ["rest_of"]

Place = tuple[int, int]
"""Address and number of values of a tensor."""


def rest_of(network: nn.Module, sample: Sample, layers: Sequence[LayerSpec]) -> Rest:
    """Returns what a forward pass reads beside the weights and biases of `layers`.

    Every operation of the pass is seen, whichever module calls it. A parameter or buffer is read if an operation gets
    its memory or a view of it. Memory that several parts share counts once.

    A batch norm counts as a slope and a shift for each channel, which is what it comes to. One that a layer absorbs
    does not count, because its shift is the layer's bias.

    Args:
        network: From `haq.quant.reach.reached`.
        sample: One input.
        layers: Those of the policy; other layers stay in floating point.
    """
    known = dict(quantizable_layers(network))
    given: dict[nn.Module, LayerSpec] = {known[layer.name]: layer for layer in layers}
    watching = _Watching()
    with same_randomness(), sdpa_kernel(SDPBackend.MATH), watching:  # fused attention would hide its products
        run_sample(network, sample)
    absorbed = _absorbed(network, sample, given)
    owners = {_place(tensor): layer.name for module, layer in given.items() for tensor in _own(module).values()}

    parts: list[Left] = []
    left: dict[Place, Tensor] = {}
    for name, module in network.named_modules():
        if module not in absorbed:
            tensors = {
                key: tensor
                for key, tensor in _stored(module).items()
                if _storage(tensor) in watching.read
                and _place(tensor) not in left
                and not (module in given and key in _LAYERS_OWN)
            }
            left.update((_place(tensor), tensor) for tensor in tensors.values())
            parts += _parts(name, module, tensors, owners, _reason(module, known.values(), given))
    outside = {_storage(tensor) for place, tensor in left.items() if place not in owners}
    return Rest(
        tuple(parts),
        covered=sum({_place(known[layer.name].weight): layer.params for layer in layers}.values()),
        macs=max(0, watching.macs - sum(layer.macs for layer in layers)),
        multiplied=sum(count for storage, count in watching.multiplied.items() if storage in outside),
    )


_LAYERS_OWN = ("weight", "bias")
"""What a layer is priced for."""


def _absorbed(network: nn.Module, sample: Sample, given: Collection[nn.Module]) -> set[nn.Module]:
    """Returns the batch norms that can be folded into these layers."""
    if not any(isinstance(module, BatchNorm) for module in network.modules()):
        return set()
    inputs = cast(Any, sample)  # a tuple of inputs is run as well as a tensor
    pairs = [(layer, norm) for layer, norm in batch_norms_after(network, inputs) if layer in given]
    if not pairs:
        return set()
    folded = fold_batch_norm(network, inputs)
    kept = {name for name, module in folded.named_modules() if isinstance(module, BatchNorm)}
    names = {module: name for name, module in network.named_modules()}
    return {norm for _, norm in pairs if names[norm] not in kept}


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key in _LAYERS_OWN if isinstance(tensor := getattr(layer, key, None), Tensor)}


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """Returns the module's own parameters, and the buffers that a state holds."""
    left_out = unstored_buffers(module)
    buffers = {key: tensor for key, tensor in buffers_of(module).items() if key not in left_out}
    return {key: tensor for key, tensor in {**parameters_of(module), **buffers}.items() if tensor is not None}


def _storage(tensor: Tensor) -> int:
    """Returns the address of the memory that a tensor shares with its views; none of a sparse tensor's."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _place(tensor: Tensor) -> Place:
    """Returns what tied weights have in common, but not two tensors that lie in one long one."""
    return (tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)), tensor.numel()


def _reason(module: nn.Module, known: Collection[nn.Module], given: Mapping[nn.Module, LayerSpec]) -> str:
    kind = type(module).__name__
    if module in given:
        return "it is not the layer's weight"
    if module in known:
        return "the policy leaves this layer out"
    if isinstance(module, StaysFloat):
        return "other code reads its weight too"
    if isinstance(module, BatchNorm):
        return "no quantized layer absorbs it"
    if next(module.children(), None) is not None:
        return "it belongs to no layer"
    return f"no kind of layer covers {kind}"


def _parts(
    name: str, module: nn.Module, tensors: Mapping[str, Tensor], owners: Mapping[Place, str], reason: str
) -> Iterator[Left]:
    """Yields one part for a module without children, or one for each of its tensors.

    Args:
        name: Of the module.
        module: The module.
        tensors: Its own tensors that are read and not counted yet.
        owners: Memory of layers → name of the layer.
        reason: Why it stays.
    """
    if not tensors:
        return
    if isinstance(module, BatchNorm) and module.running_mean is not None:
        learned, width = sum(p.numel() for p in module.parameters()), module.running_mean.element_size()
        yield Left(name, _kind(module), learned, learned * width, 2 * module.num_features * width, reason)
    elif next(module.children(), None) is None:
        yield _left(name, _kind(module), tensors.values(), owners, reason)
    else:
        for key, tensor in tensors.items():
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            yield _left(f"{name}.{key}".lstrip("."), kind, [tensor], owners, reason)


def _left(name: str, kind: str, tensors: Iterable[Tensor], owners: Mapping[Place, str], reason: str) -> Left:
    tensors = list(tensors)
    learned = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    shared = {owners[_place(tensor)]: tensor for tensor in tensors if _place(tensor) in owners}
    if shared:
        reason += f", and layer {min(shared)} has codes of its own for the same weight"
    weights, size, both = (sum(map(_bytes, chosen)) for chosen in (learned, tensors, shared.values()))
    return Left(name, kind, sum(tensor.numel() for tensor in learned), weights, size, reason, both)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Watching(DispatchMode):
    """Sees every operation of a forward pass.

    Attributes:
        read: Memory that an operation read.
        macs: Multiply-accumulates of all products.
        multiplied: Memory of the operands of products → how many values the operand has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, None] = {}
        self.macs = 0
        self.multiplied: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        storages = {_storage(leaf): leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.read.update(dict.fromkeys(storages))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.macs += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        elif (count := _PRODUCTS.get(packet.__name__)) is not None:
            self.macs += count(*args)
        else:
            return out
        for storage, values in storages.items():
            self.multiplied[storage] = max(values, self.multiplied.get(storage, 0))
        return out


def _recurrent(x: Tensor, of_input: Tensor, of_state: Tensor, *others: Any) -> int:
    return x.numel() // x.shape[-1] * (of_input.numel() + of_state.numel())


def _bilinear(first: Tensor, weight: Tensor, second: Tensor, *others: Any) -> int:
    return first.shape[0] * weight.numel()


_PRODUCTS: dict[str, Callable[..., int]] = {"mkldnn_rnn_layer": _recurrent, "_trilinear": _bilinear}
"""Products that PyTorch's own count does not know, by the name of the operation: multiply-accumulates."""
