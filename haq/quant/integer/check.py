"""How far an integer network is from the fake-quantized reference that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.layers import copied, fresh
from haq.quant.integer.network import IntegerNetwork
from haq.torch_internals import BatchNorm

__all__ = ["Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """Differences of codes, in steps of the scale of the tensor that they belong to.

    Attributes:
        operations: Name → the most that any code of its result differs by when it reads the reference's codes, so that
            errors do not accumulate.
        logits: The most that a logit differs by when the whole network reads the images.
    """

    operations: Mapping[str, int]
    logits: float

    @property
    def largest(self) -> int:
        """The most of any operation."""
        return max(self.operations.values())


def compare(reference: fx.GraphModule, network: IntegerNetwork, x: Tensor) -> Difference:
    """Returns the differences on some images.

    The reference computes its layers in float64 here: float32 sums are off by several steps of a 16-bit grid.

    Args:
        reference: From `insert_value_grids`.
        network: Its `integer_network`.
        x: `(N, C, H, W)`.
    """
    with torch.no_grad():
        values = _Values(_in_float64(reference))
        expected = values.run(fresh(x).double())
        check = _Check(network, values.kept)
        check.run(fresh(x))
        step = network.body.get_submodule("dequantize").get_buffer("scale")
        return Difference(check.steps, float((network(fresh(x)) - expected).abs().max() / step))


def _in_float64(network: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy whose layers and batch norms are float64; quantizers stay float32, as they are in `forward`."""
    network = copied(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | BatchNorm):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.double(), requires_grad=False))
            for name, values in module.named_buffers(recurse=False):
                setattr(module, name, values.double())
    return network


class _Values(fx.Interpreter):
    """Keeps the value of every node by name."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.kept[n.name] = super().run_node(n)
        return self.kept[n.name]


class _Check(fx.Interpreter):
    """Runs every operation on the reference's codes and counts the steps between the results."""

    def __init__(self, network: IntegerNetwork, values: Mapping[str, Any]) -> None:
        super().__init__(network.body)
        self.codes, self.values = network.codes, values
        self.steps: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self.codes:
            return result
        grid = self.codes[n.name].grid
        expected = grid.encode(self.values[self.codes[n.name].source])
        self.steps[n.name] = grid.steps(result, expected)
        return expected
