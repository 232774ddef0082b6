"""Weights that a module of the user's holds as parameters and multiplies with itself, as in `F.linear(x, self.w)`.

What is found when a sample runs becomes a layer under the parameter's name. The user's code goes on reading `self.w`:
while the network runs, the parameter is in its place, and its product calls the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from haq.layers.kinds.transposed import OutputFirst, inputs_first
from haq.layers.reads import computes, operands, storage
from haq.layers.running import Sample, put_in_place, run_sample
from haq.layers.settling import is_settled, settle
from haq.layers.splitting.base import Split
from haq.layers.splitting.products import Product, layer_of, product_of, turns
from haq.layers.variants import become
from haq.torch_internals import children_of, parameters_of, unseen

__all__ = ["BareWeight", "CallsBare", "find_bare", "hold_bare"]

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Classes of PyTorch that have no weights of their own: parameters of their subclasses are the user's."""


@dataclass(frozen=True)
class BareWeight:
    """A parameter of which every use is the same product.

    Attributes:
        owner: Path of the module that holds it.
        name: Its name in that module.
        product: The product; `turned` is relative to the parameter.
    """

    owner: str
    name: str
    product: Product


class CallsBare(Split):
    """Mixed into a network with bare weights that became layers."""

    bare: tuple[BareWeight, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network's own forward pass, with parameters where its code reads them."""
        layers: dict[BareWeight, Any] = {}
        seen: dict[BareWeight, Any] = {}
        with ExitStack() as stack:
            for weight in self.bare:
                owner = self.get_submodule(weight.owner)
                layers[weight] = children_of(owner)[weight.name]
                seen[weight] = _as_given(layers[weight], weight.product)
                stack.enter_context(put_in_place(owner, weight.name, seen[weight]))
            stack.enter_context(_Calling(seen, layers))
            return super().forward(*args, **kwargs)


def _as_given(layer: Any, product: Product) -> Tensor:
    """Returns a layer's weight in the form of the parameter that it was made from."""
    if isinstance(layer, OutputFirst):
        with unseen():  # by modes that watch who reads the layer's weight
            return inputs_first(layer.weight, int(vars(layer)["groups"]))
    held: Tensor = layer.weight
    return held.t() if product.turned else held


class _Following(TorchFunctionMode):
    """Follows tensors, and what is only their transpose, to the products that use them as a weight."""

    def __init__(self, tensors: Mapping[Any, Tensor]) -> None:
        super().__init__()
        self._known = {id(values): (key, False) for key, values in tensors.items()}
        self._alive = list(tensors.values())  # an id may be used again

    def used(self, args: Any, kwargs: Any, func: Any) -> tuple[Any, Product, dict[str, Any]] | None:
        """Returns whose weight a call uses, the product with `turned` relative to the tensor, and its arguments."""
        found = product_of(func, args, kwargs)
        known = self._known.get(id(found[1]["weight"])) if found is not None else None
        if found is None or known is None:
            return None
        product, named = found
        return known[0], replace(product, turned=product.turned != known[1]), named

    def follow(self, func: Any, args: Any, result: Any) -> bool:
        """Notes the transpose of a tensor; returns whether the call was only that."""
        known = self._known.get(id(args[0])) if args else None
        if known is None or not turns(func, args[0], result):
            return False
        self._known[id(result)] = known[0], not known[1]
        self._alive.append(result)
        return True


class _Calling(_Following):
    def __init__(self, seen: Mapping[BareWeight, Tensor], layers: Mapping[BareWeight, nn.Module]) -> None:
        super().__init__(seen)
        self._layers = layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        use = self.used(args, kwargs or {}, func)
        if use is not None and use[1] == use[0].product:
            weight, product, named = use
            y, bias = self._layers[weight](named["input"]), named.get("bias")
            return y if bias is None else y + product.spread(bias)
        result = func(*args, **(kwargs or {}))
        self.follow(func, args, result)
        return result


class _Finding(_Following):
    """Records every function that computes with one of these parameters: the product, or `None` for anything else."""

    def __init__(self, parameters: Mapping[Any, nn.Parameter], network: nn.Module) -> None:
        super().__init__(parameters)
        self._names = {storage(parameter): key for key, parameter in parameters.items()}
        self._all = {storage(parameter) for parameter in network.parameters()}
        self.uses: dict[Any, set[Product | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        use = self.used(args, kwargs or {}, func)
        result = func(*args, **(kwargs or {}))
        if self.follow(func, args, result):
            return result
        for operand in operands(func, args, kwargs or {}):
            key = self._names.get(storage(operand))
            if key is not None and computes(func, operand, result):
                product = use[1] if use is not None and operand is use[2]["weight"] else None
                if use is not None and storage(use[2]["input"]) in self._all:
                    product = None  # a product of two parameters makes a weight
                self.uses.setdefault(key, set()).add(product)
        return result


def find_bare(network: nn.Module, sample: Sample) -> tuple[BareWeight, ...]:
    """Runs the network on a sample, and returns its bare weights.

    A parameter that is used in two ways, or in one that no layer has, is not among them; it stays as it is.

    Args:
        network: Its modules with weights of their own are layers already.
        sample: One input, as for `trace`.

    Raises:
        ModelError: The network fails on the sample.
    """
    places: dict[int, list[tuple[str, str, nn.Parameter, bool]]] = {}
    for path, module in network.named_modules():
        for name, parameter in parameters_of(module).items():
            if parameter is not None:
                places.setdefault(storage(parameter), []).append((path, name, parameter, _is_users(module)))
    candidates = {
        (path, name): parameter
        for ((path, name, parameter, users), *others) in places.values()
        if users and not others and parameter.dim() > 1 and parameter.is_floating_point()
    }
    if not candidates:
        return ()
    finding = _Finding(candidates, network)
    with finding:
        run_sample(network, sample)
    found = ((key, next(iter(uses))) for key, uses in finding.uses.items() if len(uses) == 1)
    return tuple(BareWeight(owner, name, product) for (owner, name), product in found if product is not None)


def _is_users(module: nn.Module) -> bool:
    bases = (base for base in type(module).__mro__ if issubclass(base, nn.Module))
    return all(base in _CONTAINERS or not base.__module__.startswith(("torch.nn.", "torch.ao.")) for base in bases)


def hold_bare(network: nn.Module, found: Iterable[BareWeight]) -> None:
    """Changes a network, in place, so that its bare weights are layers.

    Args:
        network: Network whose parameters may be moved.
        found: From `find_bare`.
    """
    found = tuple(found)
    owners = {weight.owner: network.get_submodule(weight.owner) for weight in found}
    for path, owner in owners.items():
        own = [weight for weight in found if weight.owner == path]
        for weight in own:
            parameter = parameters_of(owner).pop(weight.name)
            assert parameter is not None
            layer = layer_of(weight.product, parameter).train(owner.training)
            if not is_settled(layer):
                settle(weight.name, layer)
            owner.add_module(weight.name, layer)
        if owner is not network:
            become(owner, Split)
        owner.moved = {weight.name: (f"{weight.name}.weight",) for weight in own}  # type: ignore[assignment]
        owner.turned = tuple(weight.name for weight in own if weight.product.turned)  # type: ignore[assignment]
    become(network, CallsBare)
    network.bare = found  # type: ignore[assignment]
