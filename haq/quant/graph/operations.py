"""One name for each operation, however the network and the tracer spell it.

A ReLU is `nn.ReLU`, `F.relu`, `torch.relu_` or `x.relu()`, and `aten.relu_.default` in an exported graph; here it is
`relu`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import fx, nn

from haq.quant.graph.leaves import module_of

__all__ = ["argument", "constants", "operation", "pads_with_zeros"]

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardtanh: "hardtanh", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.SiLU: "silu", nn.GELU: "gelu", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
    nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.Identity: "identity", nn.Flatten: "flatten",
    nn.Unflatten: "unflatten", nn.AvgPool2d: "avg_pool2d", nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.MaxPool2d: "max_pool2d", nn.Dropout: "dropout", nn.Dropout1d: "dropout", nn.Dropout2d: "dropout",
    nn.Dropout3d: "dropout",
}  # fmt: skip
_SPELLINGS = {
    "iadd": "add", "isub": "sub", "imul": "mul", "truediv": "div", "itruediv": "div", "feature_dropout": "dropout",
    "constant_pad_nd": "pad",
}  # fmt: skip
_SIZES = ("sym_size", "sym_numel")


def operation(node: fx.Node, network: fx.GraphModule) -> str | None:
    """Returns the name of what a node computes, such as `relu`, `relu6`, `add`, `flatten` or `getitem`.

    Variants in place have the same name. An operation without a name here has that of its function or method; a module
    without one has none, and neither has a node that calls nothing.
    """
    if node.op == "call_module":
        module = module_of(node, network)
        return next((name for kind, name in _MODULES.items() if isinstance(module, kind)), None)
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function":
        name = getattr(node.target, "__name__", "").split(".")[0]  # `add.Tensor` is an overload of `add`
    else:
        return None
    name = name if name.endswith("__") else name.removesuffix("_")
    if name == "hardtanh" and (argument(node, 1, "min_val", -1), argument(node, 2, "max_val", 1)) == (0, 6):
        return "relu6"
    return _SPELLINGS.get(name, name)


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Returns an argument of a call, whether it was given by position or by name.

    Args:
        node: The call.
        position: Position of the argument.
        name: Name of the argument.
        default: Value if the argument was not given.
    """
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pads_with_zeros(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a node adds zeros around its input."""
    constant = argument(node, 2, "mode", "constant") == "constant"
    return operation(node, network) == "pad" and constant and not argument(node, 3, "value", None)


def constants(network: fx.GraphModule) -> Set[fx.Node]:
    """Returns the nodes whose values do not depend on those of the input, but at most on its sizes.

    These are parameters, and what is computed from them and from sizes, such as positions of tokens and masks.
    """
    varying: set[fx.Node] = set()
    for node in network.graph.nodes:
        reads = not varying.isdisjoint(node.all_input_nodes) and operation(node, network) not in _SIZES
        if node.op in ("placeholder", "output") or reads:
            varying.add(node)
    return set(network.graph.nodes) - varying
