"""The network as a graph of operations, for passes that must know what feeds what."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy

from haq.errors import ModelError
from haq.quant.quantizers.base import Quantizer
from haq.torch_internals import BatchNorm

__all__ = ["trace_graph"]


_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


class _Tracer(fx.Tracer):
    """Layers, batch norms and quantizers stay whole; everything else is opened up to functions.

    Conditions on the shape of the input, such as a check of its channels, are decided by the sample.
    """

    def __init__(self, sample: Tensor | None) -> None:
        super().__init__()
        self._sample = sample

    def to_bool(self, obj: Proxy) -> bool:
        known = self._known(obj.node)
        return known if isinstance(known, bool) else bool(super().to_bool(obj))

    def _known(self, node: Any) -> Any:
        """What a shape of the input, a part of it or a comparison of parts is; `None` for anything else."""
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
        model: In evaluation mode; its forward pass must not depend on values of the input.
        purpose: What needs the graph; an error says so.
        sample: One input; the graph then holds for inputs of its shape, where the forward pass asks for that.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    try:
        graph: Any = _Tracer(sample).trace(model)
    except Exception as error:  # the model is the user's code
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{purpose} needs the graph of {type(model).__name__}, which cannot be traced: {reason}; "
            "keep Python control flow on tensor values out of its forward"
        ) from None
    return fx.GraphModule(model, graph)
