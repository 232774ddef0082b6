"""A network as a graph of operations, for passes that need to know what feeds what."""

from haq.quant.graph.leaves import is_layer, module_of
from haq.quant.graph.operations import argument, constants, operation
from haq.quant.graph.tracing import trace_graph

__all__ = ["argument", "constants", "is_layer", "module_of", "operation", "trace_graph"]
