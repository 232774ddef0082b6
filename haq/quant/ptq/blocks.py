"""Cuts a network into a chain of blocks that each map one tensor to another, so that they can be tuned in turn."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.layers import fresh
from haq.quant.graph import constants, is_layer, module_of, operation, trace_graph

__all__ = ["chain_of_blocks"]

_TOLERANCE = 1e-3  # as a share of the largest output


def chain_of_blocks(model: nn.Module, purpose: str, sample: Tensor) -> list[fx.GraphModule]:
    """Cuts `model` wherever a single tensor is alive, and returns the pieces; their composition is `model`.

    A piece holds at least one convolution or linear layer and the ReLU after it. So in a plain network every layer is a
    block, and the parallel paths of a residual block stay together (BRECQ, Li et al. 2021, arXiv:2102.05426, section
    3.2). The pieces share the modules of `model`.

    Args:
        model: Network in evaluation mode that maps one tensor to one tensor.
        purpose: What needs the blocks, for the error message.
        sample: Some inputs, `(N, …)`. The blocks hold for any number of them.

    Raises:
        ModelError: The forward pass cannot be traced, or a block needs more than the output of the one before it.
    """
    network = trace_graph(model, purpose, sample, any_batch=True)
    blocks = _cut(network)
    with torch.no_grad():
        expected = network(fresh(sample))
        found = fresh(sample)
        for block in blocks:
            found = block(found)
    if not isinstance(expected, Tensor) or not _agree(expected, found):
        raise ModelError(f"{purpose} needs a network of one input and one output, which {type(model).__name__} is not")
    return blocks


def _agree(expected: Tensor, found: Tensor) -> bool:
    atol = _TOLERANCE * float(expected.abs().max())
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=_TOLERANCE, atol=atol)


def _cut(network: fx.GraphModule) -> list[fx.GraphModule]:
    known = constants(network)
    segments: list[list[fx.Node]] = [[]]
    waiting: list[fx.Node] = []  # operations without a layer belong to the next layer, but a ReLU to the one before
    for segment in _segments(network, known):
        has_layer = any(_is_layer(node, network) for node in segment)
        if has_layer:
            segments.append(waiting + segment)
            waiting = []
        elif not waiting and segments[-1] and all(_follows(node, network) for node in segment):
            segments[-1] += segment
        else:
            waiting += segment
    segments[-1] += waiting
    return [_piece(network, segment, known) for segment in segments if segment]


def _follows(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether an operation belongs to the layer before it; a folded batch norm is an identity."""
    return operation(node, network) in ("identity", "relu", "relu6")


def _is_layer(node: fx.Node, network: fx.GraphModule) -> bool:
    return is_layer(module_of(node, network))


def _segments(network: fx.GraphModule, known: Set[fx.Node]) -> list[list[fx.Node]]:
    """Splits the operations between input and output after every node whose value is the only one alive."""
    order = {node: position for position, node in enumerate(network.graph.nodes)}
    segments: list[list[fx.Node]] = []
    current: list[fx.Node] = []
    last_read = -1  # position of the last reader of all nodes before the current one
    for node in network.graph.nodes:
        if node.op == "output":
            break
        if node in known:  # every piece computes them itself
            continue
        if node.op != "placeholder":
            current.append(node)
        if last_read <= order[node] and current:
            segments.append(current)
            current = []
        last_read = max([last_read, *(order[user] for user in node.users if user not in known)])
    return [*segments, current] if current else segments


def _piece(network: fx.GraphModule, nodes: list[fx.Node], known: Set[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    entry = graph.placeholder("x")

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies and node in known:
            copies[node] = graph.node_copy(node, copy_of)
        return copies.get(node, entry)  # sizes of the network's input are those of the piece's input

    for node in nodes:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[nodes[-1]])
    return fx.GraphModule(network, graph)
