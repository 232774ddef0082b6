"""Traces a network into a graph of operations, for passes that need to know what feeds what."""

from __future__ import annotations

import operator
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy

from haq.errors import ModelError
from haq.io.prefixes import one_line
from haq.quant.quantizers.base import Quantizer
from haq.torch_internals import BatchNorm

__all__ = ["module_of", "trace_graph"]

_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


class _Tracer(fx.Tracer):
    """Keeps layers, batch norms and quantizers whole, and traces everything else down to functions.

    Conditions on the shape of the input, such as a check of its channels, are evaluated for the sample.
    """

    def __init__(self, sample: Tensor | None) -> None:
        super().__init__()
        self._sample = sample

    def to_bool(self, obj: Proxy) -> bool:
        known = self._known(obj.node)
        return known if isinstance(known, bool) else bool(super().to_bool(obj))

    def _known(self, node: Any) -> Any:
        """Returns the value of an input's shape, a part of it or a comparison of parts; `None` for other nodes."""
        if not isinstance(node, fx.Node):
            return node
        if node.op == "placeholder" and not node.args:
            return self._sample
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
        return isinstance(m, nn.Conv2d | nn.Linear | BatchNorm | Quantizer) or super().is_leaf_module(
            m, module_qualified_name
        )


def trace_graph(model: nn.Module, purpose: str, sample: Tensor | None = None) -> fx.GraphModule:
    """Returns `model` as a `torch.fx` graph that shares its modules.

    Args:
        model: Network in evaluation mode; its forward pass must not depend on the input's values.
        purpose: What needs the graph, for the error message.
        sample: One input; if the forward pass depends on the input's shape, the graph is valid for this shape only.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    try:
        graph: Any = _Tracer(sample).trace(model)
    except Exception as error:  # the model is user code and may raise anything
        raise ModelError(
            f"{purpose} needs the graph of {type(model).__name__}, which cannot be traced: {one_line(error)}; "
            "keep Python control flow on tensor values out of its forward"
        ) from None
    return fx.GraphModule(model, graph)


def module_of(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """Returns the module that a node calls; `None` if it calls a function or method."""
    return network.get_submodule(cast(str, node.target)) if node.op == "call_module" else None
