"""Finds the tensors of a network that are alive at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from haq.errors import ModelError
from haq.hwmodels.tables.memory import Buffer, MemoryPlan, Step
from haq.layers import evaluating, fresh
from haq.layers.running import Sample
from haq.quant.graph import constants, is_layer, module_of, operation, trace_graph
from haq.torch_internals import BatchNorm

__all__ = ["plan_memory", "plan_or_none"]

_VIEWS = {
    "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "detach", "getitem", "pad",
    "slice", "select", "expand",
}  # fmt: skip
"""Operations whose result is the same values, if there are as many of them."""

_ELEMENTWISE = {
    "relu", "relu6", "hardtanh", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu", "elu",
    "clamp", "dropout", "identity", "add", "sub", "mul", "div",
}  # fmt: skip
_PARTS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
"""Operations whose results are parts of the input, not values of their own."""

_ARITHMETIC = {"add", "sub", "mul"}


def plan_memory(model: nn.Module, sample: Sample) -> MemoryPlan:
    """Lists the buffers and steps of one forward pass.

    Every operation writes a buffer of its own, with two exceptions: views share the buffer of their source, and
    elementwise operations (activation functions, normalisation, residual additions) overwrite an input of their size
    that nothing reads afterwards. Parameters, and what is computed from them and from sizes alone, are not counted:
    they are known before the network runs.

    Args:
        model: Any network that can be traced.
        sample: One input, `(1, …)`, or a tuple of positional inputs.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    with evaluating(model):
        graph = trace_graph(model, "planning memory", sample)
        ShapeProp(graph).propagate(*fresh(sample if isinstance(sample, tuple) else (sample,)))
    return _Planner(graph).plan()


def plan_or_none(model: nn.Module, sample: Sample) -> MemoryPlan | None:
    """Returns the plan, or `None` if the network cannot be traced."""
    try:
        return plan_memory(model, sample)
    except ModelError:
        return None


class _Planner:
    """Walks the graph twice: for the owners of buffers, then for their lifetimes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._names = {module: name for name, module in graph.named_modules()}
        known = constants(graph)
        self._nodes = [n for n in graph.graph.nodes if n.op == "output" or (_elements(n) and n not in known)]
        self._order = {node: number for number, node in enumerate(self._nodes)}
        self._owner: dict[fx.Node, fx.Node] = {}

    def plan(self) -> MemoryPlan:
        for node in self._nodes:
            source = self._written_over(node)
            self._owner[node] = self._owner[source] if source is not None else node
        owners = list(dict.fromkeys(self._owner[node] for node in self._nodes if node.op != "output"))
        members = {owner: [node for node, its in self._owner.items() if its is owner] for owner in owners}
        index = {owner: number for number, owner in enumerate(owners)}
        last = {owner: max(self._last_read(node) for node in members[owner]) for owner in owners}
        buffers = tuple(self._buffer(owner, members[owner]) for owner in owners)
        steps = []
        for node in self._nodes:
            if node.op in ("placeholder", "output"):
                continue
            now = self._order[node]
            alive = (owner for owner in owners if self._order[owner] <= now <= last[owner])
            steps.append(Step(self._layer(node), tuple(index[owner] for owner in alive)))
        return MemoryPlan(buffers, tuple(dict.fromkeys(steps)))

    def _written_over(self, node: fx.Node) -> fx.Node | None:
        """Returns the input whose buffer `node` takes over, or `None`."""
        name = operation(node, self._graph)
        view = name in _VIEWS
        if not (view or name in _ELEMENTWISE or isinstance(module_of(node, self._graph), BatchNorm)):
            return None
        for source in node.all_input_nodes:
            if source in self._owner and _elements(source) == _elements(node):
                family = (other for other, its in self._owner.items() if its is self._owner[source])
                if view or max(map(self._last_read, family)) <= self._order[node]:
                    return source
        return None

    def _last_read(self, node: fx.Node) -> int:
        """Returns when a value is read last; what returns several tensors, such as an LSTM, reads when they appear."""
        readers = [user for user in node.users if user in self._order]
        for user in node.users:
            if "tensor_meta" in user.meta and not _elements(user) and operation(user, self._graph) not in _PARTS:
                readers += user.users
        return max((self._order[reader] for reader in readers if reader in self._order), default=self._order[node])

    def _buffer(self, owner: fx.Node, members: list[fx.Node]) -> Buffer:
        users = [user for node in members for user in node.users if self._owner.get(user) is not owner]
        readers = [self._layer(user) for user in users]
        inside = any(operation(user, self._graph) in _ARITHMETIC for node in members for user in node.users)
        return Buffer(
            max(map(_elements, members)), tuple(dict.fromkeys(filter(None, readers))), inside or None in readers
        )

    def _layer(self, node: fx.Node) -> str | None:
        """Returns the name of the layer that `node` calls, or `None`; a module called twice has one name."""
        module = module_of(node, self._graph)
        return self._names[module] if module is not None and is_layer(module) else None


def _elements(node: fx.Node) -> int:
    """Returns the number of values of one sample; 0 if the node is no tensor."""
    found: Any = node.meta.get("tensor_meta")
    return int(torch.Size(found.shape).numel()) if hasattr(found, "shape") else 0
