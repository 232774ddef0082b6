"""The network as a graph of operations, for passes that must know what feeds what."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.errors import ModelError
from haq.quant.quantizer import Quantizer

__all__ = ["trace_graph"]


class _Tracer(fx.Tracer):
    """Layers, batch norms and quantizers stay whole; everything else is opened up to functions."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm | Quantizer) or super().is_leaf_module(
            m, module_qualified_name
        )


def trace_graph(model: nn.Module, purpose: str) -> fx.GraphModule:
    """Returns `model` as a `torch.fx` graph that shares its modules.

    Args:
        model: In evaluation mode; its forward pass must not depend on values of the input.
        purpose: What needs the graph; an error says so.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    try:
        graph: Any = _Tracer().trace(model)
    except Exception as error:  # the model is the user's code
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{purpose} needs the graph of {type(model).__name__}, which cannot be traced: {reason}; "
            "keep Python control flow on tensor values out of its forward"
        ) from None
    return fx.GraphModule(model, graph)
