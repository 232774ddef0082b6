"""Graphs from `torch.export`, which runs the forward pass on tensors without values.

So code may ask for sizes, types and devices, and decide by them, as the networks of `transformers` do. The graph
consists of PyTorch's own operators (`aten`), and of calls of the modules that are kept whole.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.layers import evaluating, fresh
from haq.layers.copying import sharing
from haq.layers.running import Sample, same_randomness
from haq.quant.graph.leaves import is_leaf
from haq.quant.graph.whole_modules import WholeModules
from haq.torch_internals import tree_leaves, tree_map

__all__ = ["exported_graph"]

_SAME = 1e-4
"""Allowed difference, as a share of the largest output."""


def exported_graph(model: nn.Module, sample: Sample, any_batch: bool = False) -> fx.GraphModule:
    """Returns `model` as a graph that shares its modules, parameters and buffers.

    Inputs and outputs may be nested in tuples, lists and dictionaries. The graph is of the network in evaluation mode.

    Args:
        model: Any network.
        sample: One input, or a tuple of positional inputs.
        any_batch: Whether the graph must also hold for other numbers of samples along the first axis. All tensors of
            the sample whose first axis is as long as that of the first tensor are taken to have this axis.

    Raises:
        ModelError: The graph computes something else than the network.
        Exception: Whatever the forward pass raises when it gets tensors without values.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    if any_batch and _rows(inputs) == 1:
        inputs = _with_rows(inputs, 2)  # a size of 1 would be taken for a constant
    with evaluating(model):
        graph = _export(model, inputs, any_batch)
        counts = (_rows(inputs), _rows(inputs) + 1, 1) if any_batch else (_rows(inputs),)
        for count in dict.fromkeys(counts):
            _check(graph, model, _with_rows(inputs, count), count)
    return graph


def _export(model: nn.Module, inputs: tuple[Any, ...], any_batch: bool) -> fx.GraphModule:
    from torch.export import Dim, export  # not above: few networks need it, and it takes a second

    rows = _rows(inputs)
    sizes = tree_map(lambda value: {0: Dim.AUTO} if any_batch and _is_batch(value, rows) else None, inputs)
    copy = sharing(model)  # a forward pass may keep tensors in its modules
    whole = WholeModules(copy, _kept_whole)
    with whole.recorded(), same_randomness(), _silent():
        program = export(copy, fresh(inputs), strict=False, dynamic_shapes=sizes)
        found = program.module(check_guards=False)
    graph: Any = found.graph
    names = whole.restore(graph)
    for node in list(graph.nodes):
        node.meta.clear()  # tensors of the trace
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    if _is_plain(program.call_spec, inputs):
        (results,) = graph.output_node().args
        graph.output_node().args = tuple(results)
        graph.set_codegen(fx.graph.CodeGen())
    parts: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    for target in {str(node.target) for node in graph.find_nodes(op="get_attr")}:
        parts[target] = operator.attrgetter(target)(found)
    network = fx.GraphModule(parts, graph, type(model).__name__)
    network.training = False  # not `eval()`: the modules are the network's
    return network


def _kept_whole(module: nn.Module) -> bool:
    """Beside the usual leaves, the activations that passes replace or look for."""
    return is_leaf(module) or type(module) in (nn.ReLU, nn.ReLU6)


def _is_plain(call: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether the network maps tensors to one tensor, so that the graph needs no code to nest them."""
    return all(isinstance(value, Tensor) for value in inputs) and call.out_spec.is_leaf()


def _check(graph: fx.GraphModule, model: nn.Module, inputs: tuple[Any, ...], count: int) -> None:
    """Compares the graph with the network.

    Raises:
        ModelError: They differ, or the graph does not run.
    """
    with same_randomness():
        expected = tree_leaves(model(*fresh(inputs)))
    try:
        with same_randomness():
            found = tree_leaves(graph(*fresh(inputs)))
    except Exception as error:
        raise ModelError(f"its graph does not run on a batch of {count}: {error}") from None
    if len(expected) != len(found) or not all(map(_agree, expected, found)):
        raise ModelError(f"its graph gives other outputs on a batch of {count}")


def _agree(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    atol = _SAME * float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    return torch.allclose(expected, found, rtol=_SAME, atol=atol, equal_nan=True)


def _rows(inputs: tuple[Any, ...]) -> int:
    """Returns the number of samples, the length of the first axis of the first tensor that has one."""
    tensors = (value for value in tree_leaves(inputs) if isinstance(value, Tensor) and value.dim())
    return next((len(value) for value in tensors), 1)


def _is_batch(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


def _with_rows(inputs: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Returns inputs with another number of samples; samples are repeated if there are too few."""
    rows = _rows(inputs)
    chosen = torch.arange(count) % rows
    if count == rows:
        return inputs
    result: tuple[Any, ...] = tree_map(lambda value: value[chosen] if _is_batch(value, rows) else value, inputs)
    return result


@contextmanager
def _silent() -> Iterator[None]:
    """Shows nothing of what PyTorch and the network warn of, log and print as errors inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
