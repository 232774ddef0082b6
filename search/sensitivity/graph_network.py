"""A network as a graph of operations, of which only those that follow a changed layer are run again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haq.errors import ModelError
from haq.layers import quantizable_layers
from haq.layers.kinds import bias_of, kind_of
from haq.layers.kinds.transposed import OutputFirst
from haq.layers.settling import has_own_forward
from haq.layers.variants import Variant
from haq.quant.graph import is_layer, operation, trace_graph
from haq.torch_internals import has_forward_hooks, writes

__all__ = ["GraphNetwork"]

Values = dict[fx.Node, Any]
Fused = tuple[Tensor, Tensor | None]
"""Weight and bias of a layer, with the batch norm that follows it."""


@dataclass(frozen=True)
class _Call:
    """A layer as one node calls it, with its batch norm folded in."""

    name: str
    module: Any
    norm: nn.BatchNorm2d | None

    def fused(self, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Fused:
        norm = self.norm
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                cast(nn.Parameter, weight), bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        weight = weight.detach()
        if channels_last and weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, None if bias is None else bias.detach()

    def run(self, x: Tensor, fused: Fused) -> Tensor:
        return kind_of(self.module).run(self.module, x, *fused)


@dataclass(frozen=True)
class _Step:
    """A node, the input that it may write over, if any, and values that no later node reads."""

    node: fx.Node
    over: fx.Node | None
    dead: tuple[fx.Node, ...]


class GraphNetwork:
    """Runs nodes of the graph, with the batch norm that follows a layer folded into it, also into the changed one.

    A layer's weights are quantized before the batch norm is folded in, as in the network with both.

    Args:
        model: The float network, in evaluation mode.
        layers: Names of those that will be changed.
        sample: A few inputs; the graph holds for inputs of their shape.
        channels_last: Whether images are laid out with the channels last, which is faster.

    Raises:
        ModelError: The network cannot be traced, or a layer is called in a way that the graph does not show.
    """

    parallel = True

    def __init__(self, model: nn.Module, layers: Sequence[str], sample: Tensor, channels_last: bool) -> None:
        names = {module: name for name, module in quantizable_layers(model)}
        graph = trace_graph(model, "running parts of a network", sample, any_batch=True)
        self._module = _without_shared_writes(graph, sample)
        self._channels_last = channels_last and sample.dim() == 4
        self._modules = dict(self._module.named_modules(remove_duplicate=False))
        self._calls: dict[fx.Node, _Call] = {}
        for node in list(self._module.graph.nodes):
            layer = self._leaf(node)
            if layer is not None and is_layer(layer) and names[layer] in layers:
                self._calls[node] = _Call(names[layer], layer, self._take_norm(node))
        self._float = {
            node: call.fused(call.module.weight, bias_of(call.module), self._channels_last)
            for node, call in self._calls.items()
        }
        self._plan(layers)

    def _plan(self, layers: Sequence[str]) -> None:
        nodes = [node for node in self._module.graph.nodes if node.op != "output"]
        (output,) = (node for node in self._module.graph.nodes if node.op == "output")
        if not isinstance(output.args[0], fx.Node):
            raise ModelError("the network returns more than one tensor")
        self._result = output.args[0]
        self._input = next(node for node in nodes if node.op == "placeholder")
        self._kinds = {node: kind for node in nodes if (kind := self._kind(node))}
        self._after: dict[str, list[fx.Node]] = {}
        for node in nodes:
            if node in self._calls:
                self._after.setdefault(self._calls[node].name, [])
        if missing := [name for name in layers if name not in self._after]:
            raise ModelError(f"layer {missing[0]!r} is called in a way that the graph does not show")
        self.order = tuple(self._after)
        read: dict[str, set[fx.Node]] = {}
        for name, after in self._after.items():
            changed: set[fx.Node] = set()
            for node in nodes:
                if (node in self._calls and self._calls[node].name == name) or not changed.isdisjoint(
                    node.all_input_nodes
                ):
                    changed.add(node)
                    after.append(node)
            read[name] = {source for node in after for source in node.all_input_nodes} - changed
        kept = {node for needed in read.values() for node in needed}
        last = {node: name for name in self.order for node in read[name]}
        self._drop = {name: [node for node, its in last.items() if its == name] for name in self.order}
        self._whole = self._steps(nodes, kept)
        self._parts = {name: self._steps(after, ()) for name, after in self._after.items()}

    def gives(self, expected: Tensor, x: Tensor) -> bool:
        """Whether the output for `x` is the expected one, but for rounding."""
        try:
            result = self.start(x)[0]
        except Exception:  # the model is the user's code; a view may not go with the layout
            return False
        atol = 1e-4 * float(expected.abs().max())
        return result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-3, atol=atol)

    def share(self, layer: str) -> float:
        """See `haq.search.sensitivity.recompute.Network`."""
        return len(self._after[layer]) / len(self._whole)

    def weights(self, layer: str, weight: Tensor, bias: Tensor | None) -> Any:
        """See `haq.search.sensitivity.recompute.Network`."""
        calls = ((node, call) for node, call in self._calls.items() if call.name == layer)
        return {node: call.fused(weight, bias, self._channels_last) for node, call in calls}

    def start(self, x: Tensor) -> tuple[Tensor, Any]:
        """See `haq.search.sensitivity.recompute.Network`."""
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        values: Values = {self._input: x}
        return self._run(self._whole, values, self._float), values

    def changed(self, state: Any, layer: str, weights: Any = None, quantizer: nn.Module | None = None) -> Tensor:
        """See `haq.search.sensitivity.recompute.Network`."""
        fused = self._float if weights is None else {**self._float, **weights}
        return self._run(self._parts[layer], dict(state), fused, layer, quantizer)

    def leave(self, state: Any, layer: str) -> None:
        """See `haq.search.sensitivity.recompute.Network`."""
        for node in self._drop[layer]:
            state.pop(node, None)

    def _run(
        self,
        steps: Sequence[_Step],
        values: Values,
        fused: Mapping[fx.Node, Fused],
        layer: str | None = None,
        quantizer: nn.Module | None = None,
    ) -> Tensor:
        for step in steps:
            node = step.node
            if (call := self._calls.get(node)) is not None:
                x = values[node.all_input_nodes[0]]
                if quantizer is not None and call.name == layer:
                    x = quantizer(x)
                values[node] = call.run(x, fused[node])
            elif (kind := self._kinds.get(node)) is not None:
                values[node] = kind(step.over, values)
            elif node is not self._input:
                values[node] = self._value(node, values)
            for dead in step.dead:
                del values[dead]
        result: Tensor = values[self._result]
        return result

    def _value(self, node: fx.Node, values: Values) -> Any:
        if node.op == "placeholder":
            return node.args[0]  # the default of an argument that is not given
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._module)
        written = node.meta.get("written", ())

        def value(source: fx.Node) -> Any:
            return values[source].clone() if source in written else values[source]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function = self._modules[str(node.target)] if node.op == "call_module" else node.target
        return cast(Callable[..., Any], function)(*args, **kwargs)

    # Planning

    def _leaf(self, node: fx.Node) -> nn.Module | None:
        """The plain layer, norm or activation that a node calls with one input; none with its own code or hooks."""
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if module is None or not _is_plain(module) or has_forward_hooks(module):
            return None
        return module if len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node) else None

    def _take_norm(self, node: fx.Node) -> nn.BatchNorm2d | None:
        """Removes the batch norm that is the only reader of a convolution's output, and returns it."""
        user = next(iter(node.users)) if len(node.users) == 1 else None
        norm = self._leaf(user) if user is not None else None
        if user is None or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            return None
        user.replace_all_uses_with(node)
        self._module.graph.erase_node(user)
        return norm

    def _kind(self, node: fx.Node) -> Callable[[fx.Node | None, Values], Any] | None:
        """How to run a node that may write over its input; other nodes have none."""
        sources = node.all_input_nodes
        plain = node.op != "call_module" or self._leaf(node) is not None
        name = operation(node, self._module) if plain else None
        if name in _UNARY and len(sources) == 1:
            anew, over_input = _UNARY[name]
            return lambda over, values: (anew if over is None else over_input)(values[sources[0]])
        if name == "add" and len(node.args) == 2 and len(sources) == 2 and not node.kwargs:
            first, second = sources
            return lambda over, values: _sum(values[first], values[second], over is first, over is second)
        return None

    def _steps(self, nodes: Sequence[fx.Node], kept: Collection[fx.Node]) -> tuple[_Step, ...]:
        inside, steps, seen = set(nodes) - set(kept), [], {self._result}
        for node in reversed(nodes):
            read = [source for source in (*node.all_input_nodes, node) if source in inside and source not in seen]
            seen.update(read)
            # Outputs of layers and of such steps are tensors of their own; others may be views of values that are kept
            over = [s for s in read if s in self._calls or s in self._kinds] if node in self._kinds else []
            steps.append(_Step(node, next((s for s in over if s is not node and len(s.users) == 1), None), tuple(read)))
        return tuple(reversed(steps))


_UNARY: dict[str | None, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, torch.relu_),
    "relu6": (F.relu6, lambda x: F.hardtanh_(x, 0.0, 6.0)),
}
_PLAIN = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6)


def _is_plain(module: nn.Module) -> bool:
    if is_layer(module):
        ours = isinstance(module, Variant) and not isinstance(module, OutputFirst)
        return not ours and not has_own_forward(module)
    return type(module) in _PLAIN


def _sum(a: Tensor, b: Tensor, over_a: bool, over_b: bool) -> Tensor:
    if not (over_a or over_b) or a.shape != b.shape or a.dtype != b.dtype:
        return a + b
    return a.add_(b) if over_a else b.add_(a)


class _Writes(fx.Interpreter):
    """Runs the graph and notes which nodes write into a tensor that they read."""

    def run_node(self, n: fx.Node) -> Any:
        before = {node: writes(value) for node, value in self.env.items() if isinstance(value, Tensor)}
        result = super().run_node(n)
        written = {node for node, version in before.items() if writes(self.env[node]) != version}
        for node in written:
            if node not in n.all_input_nodes or result is not self.env[node]:
                raise ModelError(f"{n.name} writes into a tensor that others see")
        n.meta["written"] = written
        return result


def _without_shared_writes(graph: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """Lets no node read a tensor after it was written over: later readers take the writer's result.

    Raises:
        ModelError: A view was written through, or the graph does not run.
    """
    try:
        _Writes(graph).run(sample.clone())
    except ModelError:
        raise
    except Exception as error:  # the model is the user's code
        raise ModelError(f"its graph cannot be run: {' '.join(str(error).split())[:200]}") from None
    holder: dict[fx.Node, fx.Node] = {}  # of the tensor that a node made: whoever wrote into it last
    for node in graph.graph.nodes:
        node.meta["written"] = {holder.get(source, source) for source in node.meta["written"]}
        for source in node.meta["written"]:
            source.replace_all_uses_with(node, partial(operator.lt, node))
            holder |= {maker: node for maker, last in (*holder.items(), (source, source)) if last is source}
    return graph
