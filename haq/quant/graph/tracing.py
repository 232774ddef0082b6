"""Traces a network into a graph, in the way that works for it."""

from __future__ import annotations

from torch import fx, nn

from haq.errors import ModelError
from haq.io.prefixes import one_line
from haq.layers.running import Sample
from haq.quant.graph.exported import exported_graph
from haq.quant.graph.leaves import hidden_layers
from haq.quant.graph.symbolic import symbolic_graph
from haq.torch_internals import decides_by_values

__all__ = ["trace_graph"]


def trace_graph(
    model: nn.Module, purpose: str, sample: Sample | None = None, any_batch: bool = False
) -> fx.GraphModule:
    """Returns `model` as a `torch.fx` graph that shares its modules.

    `torch.fx` goes first: it takes milliseconds, and its graph holds for inputs of any shape. Where it cannot follow
    the forward pass, or keeps a module whole that has layers inside, `torch.export` runs the network on a stand-in for
    the sample. Its graph is compared with the network; use `operation` to read both kinds of graphs.

    Args:
        model: Network in evaluation mode; its forward pass must not depend on the input's values.
        purpose: What needs the graph, for the error message.
        sample: One input, or a tuple of positional inputs; the graph may be valid for this shape only. Without it,
            there is only the graph of `torch.fx`.
        any_batch: Whether the graph must also hold for other numbers of samples along the first axis.

    Raises:
        ModelError: The forward pass cannot be traced, or the graph computes something else.
    """
    try:
        graph = symbolic_graph(model, sample)
        if sample is None or not hidden_layers(graph):
            return graph
    except Exception as error:  # the model is user code and may raise anything
        if sample is None:
            raise _refusal(model, purpose, error) from None
    try:
        return exported_graph(model, sample, any_batch)
    except Exception as error:
        raise _refusal(model, purpose, error) from None


def _refusal(model: nn.Module, purpose: str, error: Exception) -> ModelError:
    reason = "it decides by the values of a tensor" if decides_by_values(error) else one_line(error)
    return ModelError(
        f"{purpose} needs the graph of {type(model).__name__}, which cannot be traced: {reason}; "
        "keep Python control flow on tensor values out of its forward"
    )
