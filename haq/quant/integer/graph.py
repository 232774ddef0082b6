"""Analyses the graph of a fake-quantized network for integer arithmetic: the kind and the grid of each operation.

Values between layers need grids. If all readers of a value are quantized layers with the same input grid, the value is
produced on that grid. Other values (residual streams, averages, logits) get their own symmetric grid, a *value grid*,
from the smallest and largest value over a few batches (Jacob et al. 2018, arXiv:1712.05877, section 3.1).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from haq.errors import ConfigError, DataError, ModelError
from haq.layers import copied, fresh
from haq.layers.kinds import known_kind
from haq.layers.kinds.lowering import lowered
from haq.layers.own_forward import OwnForward, Substituted, own_class
from haq.quant.graph import argument, trace_graph
from haq.quant.integer.arithmetic import Grid
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.functional import Rounding, symmetric_scale
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes.lsq import LSQQuantizer
from haq.torch_internals import BatchNorm

__all__ = ["RANGE", "ValueGraph", "grid_of", "insert_value_grids"]

Kind = Literal["outside", "query", "layer", "norm", "clamp", "add", "average", "max", "pad", "shape", "cat", "grid"]

RANGE = "haq_range"
"""Key in `Node.meta`: shape, smallest and largest value of a tensor over the calibration batches."""

_INFINITY = float("inf")
_SUPPORTED = "convolutions, linear layers, batch norms, ReLU, ReLU6, hardtanh, additions, pooling, cat and reshaping"

_KINDS: dict[Any, Kind] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu6, F.hardtanh, torch.clamp), "clamp"),
    **dict.fromkeys(("relu", "relu_", "clamp", "clamp_", nn.ReLU, nn.ReLU6, nn.Hardtanh), "clamp"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"), "average"),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), "average"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, nn.MaxPool2d), "max"),
    **dict.fromkeys((F.pad, nn.ZeroPad2d), "pad"),
    **dict.fromkeys((operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose), "shape"),
    **dict.fromkeys((torch.squeeze, torch.unsqueeze, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d), "shape"),
    **dict.fromkeys((F.dropout, "flatten", "view", "reshape", "permute", "transpose"), "shape"),
    **dict.fromkeys(("squeeze", "unsqueeze", "contiguous"), "shape"),
    **dict.fromkeys((torch.cat, torch.concat), "cat"),
    **dict.fromkeys(("size", "dim"), "query"),
}
_BOUNDS: dict[Any, tuple[tuple[str, float], tuple[str, float]]] = {
    F.hardtanh: (("min_val", -1.0), ("max_val", 1.0)),
    **dict.fromkeys((torch.clamp, "clamp", "clamp_"), (("min", -_INFINITY), ("max", _INFINITY))),
}
_GRIDS = (UniformQuantizer, LSQQuantizer)
_PRODUCERS = ("layer", "add", "average", "cat", "clamp")


class ValueGraph:
    """A traced network, with the kind of every node.

    Args:
        network: Graph from `trace_graph`, with ranges recorded in its nodes.

    Raises:
        ModelError: An operation has no integer counterpart, or a layer has no uniform quantizers.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.modules: dict[str, nn.Module] = dict(network.named_modules())
        self._kinds: dict[fx.Node, Kind] = {}
        self.inside: set[fx.Node] = set()
        for node in network.graph.nodes:
            self._kinds[node] = self._classify(node)
            if self._kinds[node] != "outside" and RANGE in node.meta:
                self.inside.add(node)
                self._check_constants(node)
        if not any(kind == "layer" for kind in self._kinds.values()):
            raise ModelError("the network has no quantized layer to convert; prepare it with a policy first")

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls."""
        return self.modules[cast(str, node.target)] if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> Kind:
        """Returns the kind of a node; `outside` is before the first quantization, `query` does not give a tensor."""
        return self._kinds[node]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that read the value as integers, including the output."""
        return [user for user in node.users if user in self.inside or user.op == "output"]

    def chain(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that are computed together: an operation, its batch norm and a clamp."""
        chain = [node]
        for follower in ("norm", "clamp"):
            readers = self.readers(chain[-1])
            if len(readers) == 1 and self._kinds[readers[0]] == follower and self._kinds[node] != "cat":
                chain.append(readers[0])
        return chain

    def input_grid(self, layer: fx.Node) -> Grid:
        """Returns the grid of a layer's input quantizer."""
        return grid_of(cast(UniformQuantizer, cast(Quantized, self.module(layer)).input_quantizer))

    def value_grid(self, end: fx.Node) -> Grid | None:
        """Returns the grid of a computed value, or `None` if it still needs a value grid."""
        readers = self.readers(end)
        if len(readers) == 1 and self._kinds[readers[0]] == "grid":
            return grid_of(cast(UniformQuantizer, self.module(readers[0])))
        grids = set(self._reader_grids(end))
        return grids.pop() if len(grids) == 1 else None

    def _reader_grids(self, node: fx.Node) -> Iterable[Grid | None]:
        for reader in self.readers(node):
            kind = self._kinds[reader]
            if kind == "layer":
                yield self.input_grid(reader)
            elif kind in ("max", "pad", "shape"):
                yield from self._reader_grids(reader)
            else:
                yield None

    def starts(self) -> Iterable[fx.Node]:
        """Yields the nodes whose results need a grid: operations that compute, and values that enter from outside."""
        fused: set[fx.Node] = set()
        for node in self.network.graph.nodes:
            kind = self._kinds[node]
            if (kind in _PRODUCERS and node not in fused) or (kind == "outside" and self.readers(node)):
                yield node
                fused.update(self.chain(node))

    def clip(self, nodes: Iterable[fx.Node], grid: Grid) -> tuple[int, int]:
        """Returns the smallest and largest code after the clamps among `nodes`."""
        low, high = grid.range
        for node in nodes:
            if self._kinds[node] == "clamp":
                least, most = self._bounds(node)
                low, high = max(low, grid.code(least)), min(high, grid.code(most))
        return low, high

    def _bounds(self, node: fx.Node) -> tuple[float, float]:
        module = self.module(node)
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return module.min_val, module.max_val
        if node.target not in _BOUNDS:
            return 0.0, (6.0 if node.target is F.relu6 else _INFINITY)
        given = [argument(node, place, *bound) for place, bound in enumerate(_BOUNDS[node.target], 1)]
        low, high = (
            usual if bound is None else bound for bound, usual in zip(given, (-_INFINITY, _INFINITY), strict=True)
        )
        return float(low), float(high)

    def _classify(self, node: fx.Node) -> Kind:
        inputs = [self._kinds[source] for source in node.all_input_nodes]
        if node.op == "output" or (RANGE not in node.meta and not set(inputs) - {"query", "outside"}):
            return "query"
        module = self.module(node)
        if module is not None and known_kind(module) is not None:
            self._check_layer(str(node.target), module)
            return "layer"
        if isinstance(module, UniformQuantizer):
            return "grid"
        if node.op == "placeholder" or (inputs and set(inputs) <= {"outside", "query"}):
            return "outside"
        if node.op == "get_attr":
            return "outside"
        if isinstance(module, BatchNorm):
            return self._check_norm(node, module)
        target = type(module) if module is not None else node.target
        kind: Kind | None = "query" if _asks_shape(node) else _KINDS.get(target)
        if kind is None or (kind != "query" and RANGE not in node.meta):
            name = target.__name__ if callable(target) else target
            raise ModelError(
                f"operation {name!r} ({node.name}) cannot be computed with integers; convert knows {_SUPPORTED}"
            )
        return kind

    def _check_constants(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                raise ModelError(
                    f"operation {node.name!r} reads the parameter {source.target!r}, which has no widths; "
                    "make it part of a convolution or linear layer"
                )

    def _check_norm(self, node: fx.Node, norm: BatchNorm) -> Kind:
        source = node.all_input_nodes[0]
        if self._kinds[source] != "layer" or len(source.users) > 1 or norm.running_mean is None:
            raise ModelError(
                f"batch norm {node.target!r} must have running statistics and follow a layer that nothing else reads; "
                "move it behind such a layer, or drop it"
            )
        return "norm"

    def _check_layer(self, name: str, layer: nn.Module) -> None:
        if isinstance(layer, OwnForward | Substituted):
            raise ModelError(
                f"layer {name!r} ({type(layer).__name__}) has its own forward pass, which convert does not know; "
                "make it a plain Conv2d or Linear"
            )
        if not isinstance(layer, nn.Linear) and lowered(layer) is None:
            if (mode := getattr(layer, "padding_mode", "zeros")) != "zeros":
                raise ModelError(f"layer {name!r} pads with {mode!r}; integer convolution pads with zeros only")
            raise ModelError(
                f"layer {name!r} ({own_class(layer).__name__}) has no integer form; convert knows linear layers and "
                "convolutions in one and two dimensions, also transposed"
            )
        for side in ("weight", "input"):
            quantizer = getattr(layer, f"{side}_quantizer", nn.Identity())
            if isinstance(quantizer, nn.Identity):
                raise ModelError(
                    f"layer {name!r} has {side}s in floating point; give it w_bits and a_bits in the policy"
                )
            if side == "input":  # integer arithmetic computes these codes, so their grid must be known
                uniform = any(type(quantizer).encode is kind.encode for kind in _GRIDS if isinstance(quantizer, kind))
                allowed: tuple[str, ...] = ("tensor",)
            else:
                weight = cast(Quantized, layer).weight
                uniform = isinstance(quantizer, Quantizer) and quantizer.encode(weight).scale is not None
                allowed = ("tensor", "channel")
            if not uniform or quantizer.granularity not in allowed:
                per = f" per {quantizer.granularity}" if uniform else ""
                raise ModelError(
                    f"layer {name!r} has {side}s on the grid of a {type(quantizer).__name__}{per}; "
                    f"integer arithmetic needs a uniform one per {' or '.join(allowed)}"
                )


def insert_value_grids(model: nn.Module, batches: Iterable[Tensor], value_bits: int = 16) -> fx.GraphModule:
    """Returns the fake-quantized reference of the integer network: `model` with value grids between its layers.

    Args:
        model: Prepared network whose layers all have uniform quantizers. Batch norms may be folded or follow their
            layers.
        batches: Images for finding the ranges of values, each `(N, C, H, W)`.
        value_bits: Width of the value grids, 8 to 20. Above 16 their codes take 32 bits of memory, but the network
            stays closer to `model` if coarse input grids amplify small errors.

    Raises:
        ConfigError: `value_bits` is not from 8 to 20; the reference computes in float32, which resolves no more.
        DataError: There are no batches.
        ModelError: The network cannot be traced, or has an operation or layer that integers cannot compute.
    """
    if not 8 <= value_bits <= 20:
        raise ConfigError(f"value_bits={value_bits}: values between layers take 8 to 20 bits; 16 is usual")
    network = trace_graph(copied(model).cpu().eval(), "convert")
    recorder = _Recorder(network)
    with torch.no_grad():
        for batch in batches:
            recorder.run(fresh(batch).cpu())
    if not recorder.batches:
        raise DataError("convert needs batches to find the ranges of values; give at least one")
    values = ValueGraph(network)
    for start in list(values.starts()):
        end = values.chain(start)[-1]
        if values.value_grid(end) is None:
            _insert(values, end, value_bits)
    network.recompile()
    return network


def _insert(values: ValueGraph, end: fx.Node, bits: int) -> None:
    _, low, high = end.meta[RANGE]
    signed = low < 0
    scale = symmetric_scale(torch.tensor([low]), torch.tensor([high]), bits, signed)
    name = f"{end.name}_grid"
    values.network.add_submodule(name, UniformQuantizer(bits, scale, signed, learned=False))
    readers = values.readers(end)
    with values.network.graph.inserting_after(end):
        grid = values.network.graph.call_module(name, (end,))
    grid.meta[RANGE] = end.meta[RANGE]
    for reader in readers:
        reader.replace_input_with(end, grid)


def grid_of(quantizer: UniformQuantizer | LSQQuantizer) -> Grid:
    """Returns the grid of a uniform quantizer with one scale."""
    scale, zero = float(quantizer.scale.detach()), getattr(quantizer, "zero_point", None)
    rounding: Rounding = getattr(quantizer, "rounding", "nearest")
    return Grid(quantizer.bits, quantizer.signed, scale, None if zero is None else int(zero), rounding)


def _asks_shape(node: fx.Node) -> bool:
    return RANGE not in node.meta and node.target is getattr and node.args[1] in ("shape", "ndim")


class _Recorder(fx.Interpreter):
    """Runs the network and records the range of every tensor in its nodes."""

    batches = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.numel() and n.op != "output":
            low, high = (float(bound) for bound in result.detach().aminmax())
            _, least, most = n.meta.get(RANGE, (None, low, high))
            n.meta[RANGE] = tuple(result.shape), min(low, least), max(high, most)
        return result
