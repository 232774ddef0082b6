"""A network as a graph of operations, for passes that need to know what feeds what."""

from haq.quant.graph.leaves import is_layer, module_of
from haq.quant.graph.operations import argument, constants, operation, pads_with_zeros
from haq.quant.graph.tracing import trace_graph

__all__ = ["argument", "constants", "is_layer", "module_of", "operation", "pads_with_zeros", "trace_graph"]
