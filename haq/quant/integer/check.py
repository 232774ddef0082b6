"""Compares an integer network with the fake-quantized reference that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.layers import copied, fresh
from haq.quant.integer.network import IntegerNetwork
from haq.quant.modules import Quantized
from haq.torch_internals import BatchNorm

__all__ = ["Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """Differences from the reference, in steps of the grid of the tensor concerned.

    Attributes:
        operations: Name → largest difference of a code in the operation's result. Each operation reads the reference's
            codes, so errors do not accumulate.
        logits: Largest difference of a logit when the whole network runs on the images.
    """

    operations: Mapping[str, int]
    logits: float

    @property
    def largest(self) -> int:
        """Largest difference of any operation."""
        return max(self.operations.values())


def compare(reference: fx.GraphModule, network: IntegerNetwork, x: Tensor) -> Difference:
    """Returns the differences on some images.

    The layers of the reference are computed in float64, because float32 sums are off by several steps of a 16-bit grid.

    Args:
        reference: Reference from `insert_value_grids`.
        network: Integer network that `integer_network` made of it.
        x: Images, `(N, C, H, W)`.
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
        if isinstance(module, Quantized | BatchNorm):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.double(), requires_grad=False))
            for name, values in module.named_buffers(recurse=False):
                setattr(module, name, values.double())
    return network


class _Values(fx.Interpreter):
    """Stores the value of every node by name."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.kept[n.name] = super().run_node(n)
        return self.kept[n.name]


class _Check(fx.Interpreter):
    """Runs every operation on the reference's codes, and records the difference of the results in steps."""

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
