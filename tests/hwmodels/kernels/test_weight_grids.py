"""One layer, three ways to compute it: fake quantization, integer arithmetic, bit-serial kernels.

Scales are powers of two and sums stay below 2^24, so that float32 is exact and all results are equal to the bit.
"""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from haq.hwmodels.kernels.deployment import deploy
from haq.quant.integer.arithmetic import Grid
from haq.quant.integer.graph import grid_of
from haq.quant.integer.parts import integer_layer
from haq.quant.modules import Quantized, quantized_like
from haq.quant.quantizers.functional import is_binary
from haq.quant.quantizers.uniform import UniformQuantizer

_FINEST = 2.0**-10


def _quantizer(data: st.DataObject, granularity: str, groups: int, least: int = 1) -> UniformQuantizer:
    """Returns a grid of random width, sign, scales from 2^-5 to 2^-2 and zero points, or none."""
    bits, affine = data.draw(st.integers(1, 8)), data.draw(st.booleans())
    signed = data.draw(st.booleans()) if granularity == "tensor" else True
    if not affine and signed:
        bits = max(bits, least)
    scale = 2.0 ** torch.tensor(data.draw(st.lists(st.integers(-5, -2), min_size=groups, max_size=groups)))
    zero = None
    if affine:
        low = -(2 ** (bits - 1)) if signed else 0
        codes = st.integers(low, low + 2**bits - 1)
        zero = torch.tensor(data.draw(st.lists(codes, min_size=groups, max_size=groups)), dtype=torch.int32)
    return UniformQuantizer(bits, scale, signed, zero, granularity, power_of_two=True)


def _layer(data: st.DataObject) -> tuple[nn.Conv2d | nn.Linear, tuple[int, ...]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    kind = data.draw(st.sampled_from(("linear", "conv", "grouped", "depthwise")))
    if kind == "linear":
        return nn.Linear(70, data.draw(st.integers(1, 20))), (3, 70)
    groups = {"conv": 1, "grouped": 2, "depthwise": 18}[kind]
    channels = 1 if kind == "depthwise" else data.draw(st.integers(2, 6))
    filters = 1 if kind == "depthwise" else data.draw(st.integers(1, 10))
    window: dict[str, Any] = {"stride": pair(1, 2), "padding": pair(0, 2), "dilation": pair(1, 2), "groups": groups}
    return nn.Conv2d(channels * groups, filters * groups, pair(1, 3), **window), (2, channels * groups, 7, 6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_all_ways_to_compute_a_layer_agree(data: st.DataObject) -> None:
    plain, shape = _layer(data)
    weights = _quantizer(data, "channel", len(plain.weight))
    inputs = _quantizer(data, "tensor", 1, least=2)  # bit-serial kernels take no activations of −1 and +1
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    layer = quantized_like(plain, weights, inputs)
    layer.weight, layer.bias = (
        nn.Parameter(_spread(quantizer, tensor, generator), requires_grad=False)
        for quantizer, tensor in ((weights, layer.weight), (None, layer.bias))
    )
    assert isinstance(layer, Quantized)
    x = _spread(inputs, torch.empty(shape), generator)

    with torch.no_grad():
        expected = layer(x)
    network = nn.Sequential(layer)
    for backend in (None, "planes"):
        assert torch.equal(deploy(network, x[:1], backend=backend)(x), expected), backend
    exact, grid = Grid(32, True, _FINEST), grid_of(inputs)
    integer = integer_layer("0", layer, [], grid, exact, exact.range)
    assert torch.equal(exact.decode(integer(grid.encode(x))), expected)


def _spread(quantizer: UniformQuantizer | None, like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns values over the whole range of a grid and a little beyond, not on it; without one, multiples of 2^-10."""
    if quantizer is None:
        return torch.randint(-999, 1000, like.shape, generator=generator) * _FINEST
    bits = quantizer.bits
    low, high = (-1, 1) if is_binary(bits, quantizer.signed) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    offset = 0 if quantizer.signed else 2 ** (bits - 1)
    codes = low + offset - 1 + (high - low + 2) * torch.rand(like.shape, generator=generator)
    parts = (quantizer.scale.detach(), quantizer.zero_point if quantizer.zero_point is not None else torch.zeros(1))
    scale, zero = (part.view(-1, *[1] * (like.dim() - 1)) for part in parts)
    return (codes - zero) * scale
