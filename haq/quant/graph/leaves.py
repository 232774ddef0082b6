"""Modules that a graph keeps whole: their inside is no part of it, and passes find and change them."""

from __future__ import annotations

from typing import cast

from torch import fx, nn

from haq.layers import quantizable_layers
from haq.layers.kinds import known_kind
from haq.quant.quantizers.base import Quantizer
from haq.torch_internals import BatchNorm

__all__ = ["hidden_layers", "is_layer", "is_leaf", "keeps_form", "module_of"]


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module is a layer that a policy gives widths to."""
    return module is not None and known_kind(module) is not None


def is_leaf(module: nn.Module) -> bool:
    """Whether every graph keeps the module whole: layers, batch norms, quantizers."""
    return is_layer(module) or isinstance(module, BatchNorm | Quantizer)


def keeps_form(module: nn.Module) -> bool:
    """Whether a module returns a tensor of the shape and type of its input."""
    return isinstance(module, BatchNorm | Quantizer | nn.ReLU | nn.ReLU6)


def module_of(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """Returns the module that a node calls; `None` if it calls a function or method."""
    return network.get_submodule(cast(str, node.target)) if node.op == "call_module" else None


def hidden_layers(network: fx.GraphModule) -> list[str]:
    """Returns the names of layers inside modules that the graph keeps whole, such as those of PyTorch's attention."""
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    whole = {name: network.get_submodule(name) for name in sorted(called)}
    return [
        f"{name}.{inside}"
        for name, module in whole.items()
        if not is_layer(module)
        for inside, _ in quantizable_layers(module)
    ]
