"""A quantized network as an ONNX graph with marks for quantizers, which a format then replaces with its own nodes.

PyTorch's exporter traces the network with `haq::Mark` nodes where weights and inputs are quantized. It sees no
quantization, so it cannot fold, share or approximate any of it. The nodes that replace the marks are built here with
`onnx.helper` from the quantizers' own codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from haq import __version__
from haq.errors import ConfigError, ModelError
from haq.exports.graph_nodes import DOMAIN, Nodes
from haq.exports.grids import InputGrid, input_grid, weight_codes
from haq.exports.packing import coded_layers
from haq.exports.recurrence import LOOP, check_lengths, put_loops, scan
from haq.exports.run_network import quiet, require
from haq.layers import copied, replace_modules
from haq.layers.kinds import bias_of, kind_of
from haq.layers.own_forward import Substituted, own_class
from haq.quant.modules import Quantized, quantized_like
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["Writer"]

_OPSET = 21  # the first opset with 4-bit integers


class _Mark(nn.Module):
    """Stands for a quantizer in the traced graph."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        mark = f"{DOMAIN}::Mark"
        return torch.onnx.ops.symbolic(mark, (x,), {"key": self.key}, dtype=x.dtype, shape=x.shape, version=1)


class _AddBias(nn.Module):
    """A layer's bias as an addition after the layer."""

    def __init__(self, layer: Quantized, bias: Tensor) -> None:
        super().__init__()
        self._kind, self.bias = kind_of(layer), bias

    def forward(self, y: Tensor) -> Tensor:
        return y + self._kind.along_channels(self.bias, y)


class Writer(ABC):
    """Exports a network with the nodes of one format.

    Attributes:
        extra: Name of haq's extra that installs the packages of the format.
        domains: Operator sets beside ONNX's own, name → version.
        batch: Name of the batch axis; `None` fixes it at one.
        bias_apart: Whether the bias of a layer with quantized weights is an addition after it.
        loops: Whether a recurrent network is a loop; otherwise it is written step by step.
    """

    extra: str
    domains: dict[str, int]
    batch: str | None
    bias_apart = False
    loops = False

    @abstractmethod
    def weight(self, nodes: Nodes, stored: QuantizedTensor, output: str) -> None:
        """Adds nodes that compute a layer's weights.

        Args:
            nodes: Where to add them.
            stored: Codes of the weights.
            output: Name of their output.
        """

    @abstractmethod
    def input(self, nodes: Nodes, grid: InputGrid, x: str, output: str) -> None:
        """Adds nodes that quantize a layer's input.

        Args:
            nodes: Where to add them.
            grid: Grid of the input.
            x: Name of the input.
            output: Name of their output.
        """

    def write(self, network: nn.Module, sample: Tensor, scheme: str) -> bytes:
        """Returns the ONNX file of a prepared network.

        Args:
            network: In evaluation mode.
            sample: One input.
            scheme: Name of the scheme, for messages.

        Raises:
            ConfigError: The format cannot express a quantizer, or a package is missing.
            ModelError: PyTorch cannot export the network.
        """
        onnx = require("onnx", self.extra)
        require("onnxscript", self.extra)
        if not hasattr(torch.onnx, "ops"):
            raise ConfigError(f"--format {self.extra} needs torch 2.8 or newer, not {torch.__version__}; upgrade torch")
        check_lengths(network, sample)
        weights, inputs = {}, {}
        places: dict[nn.Module, nn.Module] = {}
        marked = copied(network).eval().requires_grad_(False)
        for name, layer in list(coded_layers(marked)):
            w_key, a_key = f"{name}.weight", f"{name}.input"
            stored, grid = weight_codes(name, layer, scheme), input_grid(name, layer, scheme)
            w_mark, a_mark = (
                nn.Identity() if what is None else _Mark(key) for what, key in ((stored, w_key), (grid, a_key))
            )
            if stored is not None:
                weights[w_key] = stored
            if grid is not None:
                inputs[a_key] = grid
            new = quantized_like(layer, w_mark, a_mark)
            bias, optional = bias_of(layer), kind_of(layer).folds_norm and not isinstance(layer, Substituted)
            if self.bias_apart and bias is not None and w_key in weights and optional:
                new.bias, new.gradient_quantizer = None, _AddBias(layer, bias.detach())
            places[layer] = new
        marked = replace_modules(marked, places)
        if self.loops:
            put_loops(marked)
        graph = self._traced(marked, sample)
        marks = [node for node in graph.graph.node if node.domain == DOMAIN]
        uses: Counter[str] = Counter()
        for mark in marks:
            key = next(attribute.s.decode() for attribute in mark.attribute if attribute.name == "key")
            uses[key] += 1  # a layer that is called twice has two marks
            if key in weights and uses[key] > 1:  # its weight is in the file once
                _rename(graph.graph, mark.output[0], f"{key}_quantized")
                graph.graph.node.remove(mark)
                continue
            nodes = Nodes(key if uses[key] == 1 else f"{key}_{uses[key]}")
            if mark.op_type == LOOP:
                scan(nodes, mark, inputs, self.input)
                _replace(graph.graph, mark, nodes)
                continue
            output = f"{nodes.key}_quantized"
            _rename(graph.graph, mark.output[0], output)
            if key in weights:
                self.weight(nodes, weights[key], output)
            else:
                self.input(nodes, inputs[key], mark.input[0], output)
            _replace(graph.graph, mark, nodes)
        self._finish(graph)
        content: bytes = onnx.shape_inference.infer_shapes(graph).SerializeToString()
        return content

    def _traced(self, marked: nn.Module, sample: Tensor) -> Any:
        """Runs PyTorch's exporter."""
        example, dims = sample[:1], None
        if self.batch is not None:  # two samples, because the exporter would take a batch of one for a constant
            example, dims = torch.cat([sample[:1]] * 2), ({0: torch.export.Dim(self.batch)},)
        try:
            with quiet():
                program = torch.onnx.export(
                    marked, (example,), dynamo=True, dynamic_shapes=dims, opset_version=_OPSET, verbose=False,
                    input_names=["input"], output_names=["output"], external_data=False,
                )  # fmt: skip
        except Exception as error:  # the model is the user's code, and the exporter raises exceptions of many types
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"PyTorch cannot export {type(marked).__name__} to ONNX: {reason}") from None
        assert program is not None
        model = program.model_proto
        if self.batch is not None and not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            raise ModelError(
                f"PyTorch cannot export {own_class(marked).__name__} to ONNX for any number of samples, because its "
                "code makes it a constant; write x.shape[0] instead of len(x) or int(…)"
            )
        return model

    def _finish(self, model: Any) -> None:
        """Removes unused constants and the exporter's notes about the machine; sets versions."""
        from onnx import helper

        graph = model.graph
        used = _read(graph) | {value.name for value in graph.output}
        for unused in [constant for constant in graph.initializer if constant.name not in used]:
            graph.initializer.remove(unused)
        for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
            del noted.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
        del model.functions[:]
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(*pair) for pair in {"": _OPSET, **self.domains}.items())
        model.producer_name, model.producer_version = "haq", __version__


def _read(graph: Any) -> set[str]:
    """Returns what the nodes of a graph read, those in the bodies of loops included."""
    bodies = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return {name for node in graph.node for name in node.input}.union(*map(_read, bodies))


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for value in (*graph.value_info, *graph.output):
        if value.name == old:
            value.name = new


def _replace(graph: Any, old: Any, nodes: Nodes) -> None:
    place = list(graph.node).index(old)
    graph.node.remove(old)
    for offset, node in enumerate(nodes.nodes):
        graph.node.insert(place + offset, node)
    graph.initializer.extend(nodes.constants)
