"""Cuts a network into a chain of blocks that each map one tensor to another, so that they can be tuned in turn."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from haq.quant.graph import module_of, trace_graph

__all__ = ["chain_of_blocks", "is_relu"]

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, "relu", "relu_")


def is_relu(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a node is a ReLU or ReLU6, as a module, function or method."""
    if node.op == "call_module":
        return isinstance(module_of(node, network), nn.ReLU | nn.ReLU6)
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def chain_of_blocks(model: nn.Module, purpose: str) -> list[fx.GraphModule]:
    """Cuts `model` wherever a single tensor is alive, and returns the pieces; their composition is `model`.

    A piece holds at least one convolution or linear layer and the ReLU after it. So in a plain network every layer is a
    block, and the parallel paths of a residual block stay together (BRECQ, Li et al. 2021, arXiv:2102.05426, section
    3.2). The pieces share the modules of `model`.

    Args:
        model: Network in evaluation mode that maps one tensor to one tensor.
        purpose: What needs the blocks, for the error message.

    Raises:
        ModelError: The forward pass cannot be traced.
    """
    network = trace_graph(model, purpose)
    segments: list[list[fx.Node]] = [[]]
    waiting: list[fx.Node] = []  # operations without a layer belong to the next layer, but a ReLU to the one before
    for segment in _segments(network):
        has_layer = any(_is_layer(node, network) for node in segment)
        if has_layer:
            segments.append(waiting + segment)
            waiting = []
        elif not waiting and segments[-1] and all(_follows(node, network) for node in segment):
            segments[-1] += segment
        else:
            waiting += segment
    segments[-1] += waiting
    return [_piece(network, segment) for segment in segments if segment]


def _follows(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether an operation belongs to the layer before it; a folded batch norm is an identity."""
    return isinstance(module_of(node, network), nn.Identity) or is_relu(node, network)


def _is_layer(node: fx.Node, network: fx.GraphModule) -> bool:
    return isinstance(module_of(node, network), nn.Conv2d | nn.Linear)


def _segments(network: fx.GraphModule) -> list[list[fx.Node]]:
    """Splits the operations between input and output after every node whose value is the only one alive."""
    order = {node: position for position, node in enumerate(network.graph.nodes)}
    segments: list[list[fx.Node]] = []
    current: list[fx.Node] = []
    last_read = -1  # position of the last reader of all nodes before the current one
    for node in network.graph.nodes:
        if node.op == "output":
            break
        if node.op not in ("placeholder", "get_attr"):
            current.append(node)
        if node.op != "get_attr" and last_read <= order[node] and current:
            segments.append(current)
            current = []
        if node.op != "get_attr":  # every piece has access to parameters
            last_read = max([last_read, *(order[user] for user in node.users)])
    return [*segments, current] if current else segments


def _piece(network: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    entry = graph.placeholder("x")

    def copy_of(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if node.op == "get_attr":
            return graph.get_attr(cast(str, node.target))
        return entry

    for node in nodes:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[nodes[-1]])
    return fx.GraphModule(network, graph)
