"""Integer-only inference: a network computes only with integers between the image and the logits.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv:1712.05877. Deviations, each described in its module: spare bits in the bias and 64-bit sums for 16-bit
activations (`layers`), ties that round up and signed factors (`arithmetic`), batch norms in the factors
(`parts`), and 16-bit values between layers (`graph`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from haq.errors import ModelError
from haq.quant.graph import argument
from haq.quant.integer.arithmetic import Grid
from haq.quant.integer.graph import ValueGraph, insert_value_grids
from haq.quant.integer.layers import Dequantize, Quantize, WeightedSum
from haq.quant.integer.parts import average_window, integer_layer, max_window, pad_widths, terms_of
from haq.quant.integer.pooling import Average, MaxPool
from haq.quant.modules import Quantized
from haq.torch_internals import BatchNorm

__all__ = ["Codes", "IntegerNetwork", "convert", "insert_value_grids", "integer_network"]


@dataclass(frozen=True)
class Codes:
    """Meaning of a tensor of codes: its grid, and the name of the reference's node with the same values."""

    grid: Grid
    source: str


class IntegerNetwork(nn.Module):
    """A network that computes only with integers between the first quantization and the last dequantization.

    Attributes:
        body: The graph, including operations before the first quantization, such as resizing the image.
        codes: Node name in `body` → meaning of its codes.
    """

    def __init__(self, body: fx.GraphModule, codes: Mapping[str, Codes]) -> None:
        super().__init__()
        self.body, self.codes = body.eval(), dict(codes)

    def forward(self, x: Tensor) -> Tensor:
        """Float images `(N, C, H, W)` → float logits `(N, classes)`."""
        with torch.no_grad():
            return cast(Tensor, self.body(x))


def convert(model: nn.Module, batches: Iterable[Tensor], value_bits: int = 16) -> IntegerNetwork:
    """Returns a network that does the computations of the fake-quantized `model` with integers.

    `model` is not changed. The network runs on the CPU. Feature maps that are averaged over all positions must have the
    same size as in `batches`.

    Args:
        model: Prepared network whose layers all have uniform quantizers of 1 to 8 bits (activations up to 16). Batch
            norms may be folded or follow their layers.
        batches: Images for finding the ranges of values between layers, each `(N, C, H, W)`.
        value_bits: Width of those values, 8 to 20.

    Raises:
        ConfigError: `value_bits` is not from 8 to 20.
        DataError: There are no batches.
        ModelError: The network cannot be traced, or has an operation or layer that integers cannot compute.
    """
    return integer_network(insert_value_grids(model, batches, value_bits))


def integer_network(reference: fx.GraphModule) -> IntegerNetwork:
    """Returns the integer network for a reference from `insert_value_grids`.

    Raises:
        ModelError: The reference has an operation that integers cannot compute.
    """
    with torch.no_grad():
        return _Conversion(reference).run()


class _Conversion:
    """Builds the integer graph node by node."""

    def __init__(self, reference: fx.GraphModule) -> None:
        self.values = ValueGraph(reference)
        self.graph, self.modules = fx.Graph(), dict[str, Any]()
        self.copied: dict[fx.Node, fx.Node] = {}  # node of the reference → its copy, a float tensor or a shape
        self.encoded: dict[fx.Node, fx.Node] = {}  # node of the reference → its codes
        self.regridded: dict[tuple[fx.Node, Grid], fx.Node] = {}
        self.codes: dict[fx.Node, Codes] = {}

    def run(self) -> IntegerNetwork:
        starts = set(self.values.starts())
        for node in self.values.network.graph.nodes:
            kind = self.values.kind(node)
            if node.op == "output":
                self._leave(node)
            elif kind in ("outside", "query"):
                self._copy(node)
                if node in starts:
                    self._enter(node)
            elif kind == "grid":
                self.encoded[node] = self.encoded[node.all_input_nodes[0]]
            elif node in starts:
                self._compute(node)
            elif node not in self.encoded:  # a batch norm or clamp is part of the operation before it
                self._move(node)
        body = fx.GraphModule(self.modules, self.graph, "IntegerGraph")
        return IntegerNetwork(body, {node.name: codes for node, codes in self.codes.items()})

    def _copy(self, node: fx.Node) -> None:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            self.modules[target] = attrgetter(target)(self.values.network)
        self.copied[node] = self.graph.node_copy(node, self._lookup)

    def _lookup(self, source: fx.Node) -> fx.Node:
        return self.encoded[source] if source in self.values.inside else self.copied[source]

    def _call(self, name: str, module: nn.Module, inputs: tuple[fx.Node, ...], codes: Codes) -> fx.Node:
        while name in self.modules:  # a module may be called in several places, each with its own grids
            name += "_again"
        self.modules[name] = module
        node = self.graph.call_module(name, inputs)
        self.codes[node] = codes
        return node

    def _enter(self, node: fx.Node) -> None:
        grid = self._grid(node)
        module, codes = Quantize(grid), Codes(grid, node.name)
        self.encoded[node] = self._call(f"{node.name}_quantize", module, (self.copied[node],), codes)

    def _leave(self, output: fx.Node) -> None:
        result = output.args[0]
        if not isinstance(result, fx.Node) or result not in self.values.inside:
            raise ModelError("the network must return one tensor that its layers compute; return only the logits")
        grid = self.codes[self.encoded[result]].grid
        self.modules["dequantize"] = Dequantize(grid)
        self.graph.output(self.graph.call_module("dequantize", (self.encoded[result],)))

    def _grid(self, end: fx.Node) -> Grid:
        grid = self.values.value_grid(end)
        assert grid is not None, f"{end.name} has no grid"
        return grid

    def _on(self, grid: Grid, source: fx.Node) -> fx.Node:
        """Returns the codes of `source` on a grid."""
        codes = self.codes[self.encoded[source]]
        if codes.grid == grid:
            return self.encoded[source]
        if (source, grid) not in self.regridded:
            module, inputs = WeightedSum((codes.grid,), grid), (self.encoded[source],)
            self.regridded[source, grid] = self._call(f"{source.name}_regrid", module, inputs, Codes(grid, source.name))
        return self.regridded[source, grid]

    def _compute(self, node: fx.Node) -> None:
        """Adds an operation with the batch norm and clamp that follow it."""
        kind, chain, module = self.values.kind(node), self.values.chain(node), self.values.module(node)
        grid = self._grid(chain[-1])
        clip, codes = self.values.clip(chain, grid), Codes(grid, chain[-1].name)
        sources = [source for source in node.all_input_nodes if self.values.kind(source) != "query"]
        if kind == "layer":
            layer, inputs = cast(Quantized, module), self.values.input_grid(node)
            norms = [cast(BatchNorm, self.values.module(part)) for part in chain if self.values.kind(part) == "norm"]
            integers = integer_layer(str(node.target), layer, norms, inputs, grid, clip)
            made = self._call(str(node.target), integers, (self._on(inputs, sources[0]),), codes)
        elif kind == "cat":
            parts = [self._on(grid, part) for part in argument(node, 0, "tensors", ())]
            made = self.graph.call_function(torch.cat, (parts, argument(node, 1, "dim", 0)))
            self.codes[made] = codes
        elif kind == "average":
            window, size, keepdim = average_window(node, module)
            pool = Average(window, size, keepdim, self.codes[self.encoded[sources[0]]].grid, grid, clip)
            made = self._call(node.name, pool, (self.encoded[sources[0]],), codes)
        else:
            terms = [self.encoded[term] for term in (terms_of(node) if kind == "add" else sources)]
            total = WeightedSum(tuple(self.codes[term].grid for term in terms), grid, clip)
            made = self._call(node.name, total, tuple(terms), codes)
        self.encoded.update(dict.fromkeys(chain, made))

    def _move(self, node: fx.Node) -> None:
        """Adds an operation that only moves or compares codes."""
        kind, module = self.values.kind(node), self.values.module(node)
        source = self.encoded[next(source for source in node.all_input_nodes if self.values.kind(source) != "query")]
        codes = Codes(self.codes[source].grid, node.name)
        if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or node.target in (F.dropout, "contiguous"):
            self.encoded[node] = source
            return
        if kind == "max":
            made = self._call(node.name, MaxPool(max_window(node, module), codes.grid), (source,), codes)
        elif kind == "pad":
            widths = fx.map_arg(pad_widths(node, module), self._lookup)
            made = self.graph.call_function(F.pad, (source, widths), {"value": codes.grid.code(0.0)})
        else:
            if module is not None:
                self.modules[str(node.target)] = module
            made = self.graph.node_copy(node, self._lookup)
            if node.target == "view":  # does not work on channels-last results
                made.target = "reshape"
        self.codes[made] = codes
        self.encoded[node] = made
