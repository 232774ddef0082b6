"""Finds the tensors of a network that are alive at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from haq.errors import ModelError
from haq.hwmodels.tables.memory import Buffer, MemoryPlan, Step
from haq.layers import evaluating, fresh
from haq.quant.graph import trace_graph

__all__ = ["plan_memory", "plan_or_none"]

_VIEWS = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "detach", "getitem", "pad"}
_ELEMENTWISE = {
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid",
    "leaky_relu", "elu", "clamp", "dropout", "add", "add_", "iadd", "sub", "mul", "mul_", "truediv",
}  # fmt: skip
_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU,
    nn.ELU, nn.Dropout, nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d,
)  # fmt: skip


def plan_memory(model: nn.Module, sample: Tensor) -> MemoryPlan:
    """Lists the buffers and steps of one forward pass.

    Every operation writes a buffer of its own, with two exceptions: views share the buffer of their source, and
    elementwise operations (activation functions, normalisation, residual additions) overwrite an input of their size
    that nothing reads afterwards.

    Args:
        model: Must be traceable by `torch.fx`.
        sample: One input, `(1, …)`.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    with evaluating(model):
        graph = trace_graph(model, "planning memory", sample)
        ShapeProp(graph).propagate(fresh(sample))
    return _Planner(graph).plan()


def plan_or_none(model: nn.Module, sample: Tensor) -> MemoryPlan | None:
    """Returns the plan, or `None` if the network cannot be traced."""
    try:
        return plan_memory(model, sample)
    except ModelError:
        return None


class _Planner:
    """Walks the graph twice: for the owners of buffers, then for their lifetimes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._modules = dict(graph.named_modules())
        self._nodes = [node for node in graph.graph.nodes if _elements(node) or node.op == "output"]
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
        name = _name(node)
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        view = name in _VIEWS or isinstance(module, nn.Flatten | nn.Unflatten)
        if not (view or name in _ELEMENTWISE or isinstance(module, _ELEMENTWISE_MODULES)):
            return None
        for source in node.all_input_nodes:
            if source in self._owner and _elements(source) == _elements(node):
                family = (other for other, its in self._owner.items() if its is self._owner[source])
                if view or max(map(self._last_read, family)) <= self._order[node]:
                    return source
        return None

    def _last_read(self, node: fx.Node) -> int:
        return max((self._order[user] for user in node.users if user in self._order), default=self._order[node])

    def _buffer(self, owner: fx.Node, members: list[fx.Node]) -> Buffer:
        users = [user for node in members for user in node.users if self._owner.get(user) is not owner]
        readers = [self._layer(user) for user in users]
        inside = any(_name(user) in ("add", "add_", "iadd", "mul", "sub") for node in members for user in node.users)
        return Buffer(
            max(map(_elements, members)), tuple(dict.fromkeys(filter(None, readers))), inside or None in readers
        )

    def _layer(self, node: fx.Node) -> str | None:
        """Returns the name of the layer that `node` calls, or `None`; a module called twice has one name."""
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        return next((name for name, other in self._modules.items() if other is module), None)


def _elements(node: fx.Node) -> int:
    """Returns the number of values of one sample; 0 if the node is no tensor."""
    found: Any = node.meta.get("tensor_meta")
    return int(torch.Size(found.shape).numel()) if hasattr(found, "shape") else 0


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
