"""Recurrent networks in ONNX: one Scan node for each layer and direction, however many steps there are.

PyTorch's exporter would repeat the operations of a step for every step, which takes minutes for a hundred of them. So a
mark stands for the loop in the traced graph, and Scan (ONNX operators, opset 21,
https://onnx.ai/onnx/operators/onnx__Scan.html) takes its place. Its body quantizes the hidden state at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from haq.errors import ModelError
from haq.exports.graph_nodes import DOMAIN, Nodes
from haq.exports.grids import InputGrid
from haq.layers import copied, run_sample
from haq.layers.own_forward import own_class
from haq.layers.variants import Variant, become
from haq.torch_internals import children_of

__all__ = ["LOOP", "check_lengths", "put_loops", "scan"]

LOOP = "Loop"
"""Type of the mark."""

Quantize = Callable[[Nodes, InputGrid, str, str], None]
_MODULES = (nn.LSTM, nn.GRU, nn.RNN)


def check_lengths(network: nn.Module, sample: Tensor) -> None:
    """Refuses networks that run packed sequences.

    Raises:
        ModelError: The number of steps depends on the values; the message names the module.
    """
    packed: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, given: packed.append(name) if isinstance(given[0], PackedSequence) else None

    watching = copied(network)
    for name, module in watching.named_modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(note(name))
    run_sample(watching, sample)
    if packed:
        raise ModelError(
            f"module {packed[0]!r} runs packed sequences, so its number of steps depends on the values, and an ONNX "
            "graph has a fixed one; export --format packed, or give the network sequences of one length"
        )


def put_loops(network: nn.Module) -> None:
    """Changes a network, in place, so that marks stand for the loops of `nn.LSTM`, `nn.GRU` and `nn.RNN`.

    Args:
        network: With marks for quantizers; modules with a forward pass of their own keep their loops.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.RNNBase) and "weight_ih_l0" in children_of(module):
            own = own_class(module)
            if any(issubclass(own, cls) and own.forward is cls.forward for cls in _MODULES):
                become(module, _Looped)
                module.path = name


class _Looped(Variant):
    """Mixed into a recurrent network whose weights are layers."""

    path: str

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        """Returns what the module returns, with a mark for the loop of each layer and direction."""
        rnn: Any = self
        if x.dim() != 3:  # a sequence without a batch
            return super().forward(x, hx)
        directions, lstm = 2 if rnn.bidirectional else 1, isinstance(rnn, nn.LSTM)
        x = x if not rnn.batch_first else x.transpose(0, 1)
        sizes = (rnn.proj_size or rnn.hidden_size, rnn.hidden_size)[: 1 + lstm]
        if hx is None:
            start = [x.new_zeros(rnn.num_layers * directions, x.shape[1], size) for size in sizes]
        else:
            start = list(hx) if lstm else [hx]
        ends: list[list[Tensor]] = []
        for layer in range(rnn.num_layers):
            outputs = []
            for reverse in range(directions):
                ys, *end = self._loop(layer, reverse, x, [part[len(ends)] for part in start])
                outputs.append(ys)
                ends.append(end)
            x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        states = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x.transpose(0, 1) if rnn.batch_first else x, states if lstm else states[0]

    def _loop(self, number: int, reverse: int, x: Tensor, start: list[Tensor]) -> list[Tensor]:
        """Returns the outputs `(T, N, H)` of one layer in one direction, and its last state."""
        suffix = f"l{number}_reverse" if reverse else f"l{number}"
        products = self.get_submodule(f"weight_ih_{suffix}")(x.transpose(0, 1)).transpose(0, 1)
        inputs, attributes = [products, *start], dict[str, Any]()
        for what in ("hh", "hr"):
            layer = children_of(self).get(f"weight_{what}_{suffix}")
            if layer is None:
                continue
            inputs.append(_weight(layer).t())
            key = getattr(getattr(layer, "input_quantizer", None), "key", "")
            bias = _bias(layer)
            attributes |= {what: key, f"{what}_bias": int(bias is not None)}
            inputs += [] if bias is None else [bias]
        attributes |= {"mode": cast(Any, self).mode, "reverse": reverse, "key": f"{self.path}.{suffix}"}
        shapes = [(*products.shape[:2], start[0].shape[-1]), *(part.shape for part in start)]
        found = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{LOOP}", inputs, attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes, version=1
        )
        return list(found)


def _bias(layer: Any) -> Tensor | None:
    """Returns a layer's bias, which may be an addition after it."""
    apart = getattr(getattr(layer, "gradient_quantizer", None), "bias", None)
    return cast("Tensor | None", apart if layer.bias is None else layer.bias)


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return cast(Tensor, layer.weight_quantizer(weight)) if hasattr(layer, "weight_quantizer") else weight


def scan(nodes: Nodes, mark: Any, grids: Mapping[str, InputGrid], quantize: Quantize) -> None:
    """Adds the Scan node that replaces a mark.

    Args:
        nodes: Where to add it.
        mark: The mark.
        grids: Key of an input's mark → its grid.
        quantize: Adds the nodes that quantize an input, as `Writer.input`.
    """
    from onnx import TensorProto, helper

    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in mark.attribute}
    read = iter(mark.input)
    products, mode = next(read), given["mode"].decode()
    starts = [next(read) for _ in range(2 if mode == "LSTM" else 1)]
    body = _Body(nodes.key)
    state = [f"{nodes.key}_{what}" for what in ("h", "c")][: len(starts)]
    step = f"{nodes.key}_x"

    def product(what: str, x: str) -> str:
        weight, key = next(read), given[what].decode()
        if key:
            part = Nodes(f"{nodes.key}_{what}")
            quantize(part, grids[key], x, f"{part.key}_quantized")
            body.add(part)
            x = f"{part.key}_quantized"
        y = body("MatMul", x, weight)
        return body("Add", y, next(read)) if given[f"{what}_bias"] else y

    new = _STEPS[mode](body, step, product("hh", state[0]), state)
    if "hr" in given:
        new[0] = product("hr", new[0])
    ends = [body("Identity", value) for value in (*new, new[0])]
    inputs, results = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        for names in ((*state, step), ends)
    )
    graph = helper.make_graph(body.nodes, f"{nodes.key}_step", inputs, results, body.constants)
    outputs = list(mark.output)  # the mark has the sequence first, Scan the states
    nodes.nodes.append(
        helper.make_node(
            "Scan", [*starts, products], [*outputs[1:], outputs[0]], name=f"{nodes.key}/Scan", body=graph,
            num_scan_inputs=1, scan_input_directions=[given["reverse"]], scan_output_directions=[given["reverse"]],
        )
    )  # fmt: skip


class _Body(Nodes):
    """The body of a loop; a call adds an operator and returns the name of its output."""

    def __call__(self, op: str, *inputs: str) -> str:
        return self._add(op, inputs, 1)[0]

    def split(self, x: str, count: int) -> list[str]:
        return self._add("Split", [x], count, axis=-1, num_outputs=count)

    def _add(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        from onnx import helper

        name = f"{self.key}/{len(self.nodes)}"
        outputs = [f"{name}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def add(self, part: Nodes) -> None:
        self.nodes += part.nodes
        self.constants += part.constants


# The equations of `haq.layers.recurrent`


def _lstm(op: _Body, x: str, h: str, state: list[str]) -> list[str]:
    i, f, g, o = op.split(op("Add", x, h), 4)
    cell = op("Add", op("Mul", op("Sigmoid", f), state[1]), op("Mul", op("Sigmoid", i), op("Tanh", g)))
    return [op("Mul", op("Sigmoid", o), op("Tanh", cell)), cell]


def _gru(op: _Body, x: str, h: str, state: list[str]) -> list[str]:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = op.split(x, 3), op.split(h, 3)
    new = op("Tanh", op("Add", op("Mul", op("Sigmoid", op("Add", r_x, r_h)), n_h), n_x))
    kept = op("Mul", op("Sigmoid", op("Add", z_x, z_h)), op("Sub", state[0], new))
    return [op("Add", new, kept)]


_STEPS: dict[str, Callable[[_Body, str, str, list[str]], list[str]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda op, x, h, state: [op("Tanh", op("Add", x, h))],
    "RNN_RELU": lambda op, x, h, state: [op("Relu", op("Add", x, h))],
}
