"""Graphs from `torch.fx`, which follows a stand-in for the input through the forward pass.

It takes milliseconds and holds for inputs of any shape, but knows no values: code that asks for more than the sizes of
the input cannot be followed.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy

from haq.layers.running import Sample
from haq.quant.graph.leaves import is_leaf

__all__ = ["symbolic_graph"]

_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


class _Tracer(fx.Tracer):
    """Keeps layers, batch norms and quantizers whole, and traces everything else down to functions.

    Conditions on the shape of the input, such as a check of its channels, are evaluated for the sample.
    """

    def __init__(self, sample: Sample | None) -> None:
        super().__init__()
        self._inputs = sample if isinstance(sample, tuple) else (sample,)
        self._known_inputs: dict[fx.Node, Any] = {}

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind == "placeholder" and len(self._known_inputs) < len(self._inputs):
            self._known_inputs[node] = self._inputs[len(self._known_inputs)]
        return node

    def to_bool(self, obj: Proxy) -> bool:
        known = self._known(obj.node)
        return known if isinstance(known, bool) else bool(super().to_bool(obj))

    def _known(self, node: Any) -> Any:
        """Returns the value of an input's shape, a part of it or a comparison of parts; `None` for other nodes."""
        if not isinstance(node, fx.Node):
            return node
        if node.op == "placeholder":
            return self._known_inputs.get(node)
        if node.op != "call_function":
            return None
        known = [self._known(argument) for argument in node.args]
        if node.target is getattr:
            return getattr(known[0], known[1]) if known[1] == "shape" and isinstance(known[0], Tensor) else None
        if node.target is operator.getitem:
            return known[0][known[1]] if isinstance(known[0], tuple) else None
        plain = node.target in _COMPARISONS and all(isinstance(value, int | tuple) for value in known)
        return node.target(*known) if plain else None  # type: ignore[operator]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


def symbolic_graph(model: nn.Module, sample: Sample | None) -> fx.GraphModule:
    """Returns `model` as a graph that shares its modules.

    Args:
        model: Network in evaluation mode.
        sample: One input; if the forward pass depends on the input's shape, the graph is valid for this shape only.

    Raises:
        Exception: Whatever the forward pass raises when it gets a stand-in for its input.
    """
    graph: Any = _Tracer(sample).trace(model)
    return fx.GraphModule(model, graph)
