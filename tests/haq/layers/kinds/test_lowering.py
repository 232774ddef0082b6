"""Layers of other kinds, computed as convolutions in two dimensions: in floating point, with integers, bit-serially."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.errors import HaqError, HardwareError, ModelError
from haq.hwmodels.kernels.deployment import BitSerialModule, LoweredModule, deploy
from haq.layers import quantizable_layers, reachable, trace
from haq.layers.kinds.lowering import lowered, lowered_spec
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, convert, prepare
from haq.quant.integer import integer_network
from haq.quant.integer.check import compare
from haq.quant.integer.graph import insert_value_grids
from haq.quant.reach import reached

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, 2, padding=2, dilation=2, groups=2), (3, 4, 11)),
    "conv1d same": (nn.Conv1d(4, 6, 3, padding="same"), (3, 4, 11)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), stride=(2, 1)), (3, 4, 7, 6)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 4, 3, padding=2, output_padding=1, groups=2), (3, 4, 7)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), padding=(1, 2), dilation=(1, 3)), (3, 4, 5, 6)),
    "depthwise": (nn.ConvTranspose2d(4, 4, 3, 2, groups=4), (3, 4, 5, 6)),
}


class Audio(nn.Module):
    """Convolutions and transposed ones over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(2, 8, 5, 2, padding=2), nn.BatchNorm1d(8)
        self.deep = nn.Conv1d(8, 8, 3, groups=8, padding=1)
        self.up, self.up_norm = nn.ConvTranspose1d(8, 6, 4, 2, groups=2, bias=False), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.up_norm(self.up(torch.relu(self.deep(x)))))
        y: Tensor = self.head(x.mean(2))
        return y


class Picture(nn.Module):
    """A transposed convolution between two others, and an average over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 6, 3, 2), nn.ConvTranspose2d(6, 5, 3, 2, padding=1, output_padding=1)
        self.out, self.pool, self.head = nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.out(torch.relu(self.up(torch.relu(self.stem(x))))))
        y: Tensor = self.head(self.pool(x).flatten(1))
        return y


NETWORKS = {"audio": (Audio, (8, 2, 33)), "picture": (Picture, (8, 3, 9, 11))}


def quantized(kind: str, bits: LayerBits) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network, x = make(), torch.randn(shape)
    for _ in range(3):
        network(x)  # statistics of its batch norms
    network, layers = reached(network.eval(), x[:1])
    policy = BitPolicy({layer.name: bits for layer in layers})
    widths = {width for width in (bits.w_bits, bits.a_bits) if width}
    return prepare(network, policy, calibration=calibrate(network, [x], widths)).eval(), x


@pytest.mark.parametrize("name", LAYERS)
def test_a_lowered_layer_is_a_convolution_of_what_enters(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    (own,) = (layer for _, layer in quantizable_layers(reachable(nn.Sequential(layer))))
    conv = lowered(own)
    assert conv is not None
    entered = F.pad(conv.enter(x), conv.padding)
    y = F.conv2d(entered, conv.weight(own.weight), own.bias, conv.stride, 0, conv.dilation, own.groups)
    torch.testing.assert_close(conv.leave(y), layer(x), rtol=1e-4, atol=1e-5)
    (spec,) = trace(nn.Sequential(layer), x[:1])
    low = lowered_spec(spec)
    assert low is not None
    assert low.out_size == y.shape[2:]
    assert low.macs == math.prod(y.shape[2:]) * spec.params
    assert low.kind == {1: "conv", 2: "grouped", 4: "depthwise"}[own.groups]
    if name != "conv1d same":  # its padding is inside `enter` of no layer, and equal on both sides
        assert low.in_size == conv.enter(x).shape[2:]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("bits", [LayerBits(8, 8), LayerBits(3, 5), LayerBits(1, 2)], ids=str)
def test_integers_compute_each_layer_within_a_step(kind: str, bits: LayerBits) -> None:
    network, x = quantized(kind, bits)
    reference = insert_value_grids(network, [x])
    found = compare(reference, integer_network(reference), x)
    assert found.largest <= 1
    assert sum("stem" in name or "up" in name for name in found.operations) >= 2
    torch.testing.assert_close(convert(network, [x])(x), network(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", NETWORKS)
def test_bit_serial_kernels_compute_each_layer(kind: str) -> None:
    network, x = quantized(kind, LayerBits(3, 4))
    deployed = deploy(network, x[:1])
    layers = [name for name, module in network.named_modules() if hasattr(module, "weight_quantizer")]
    assert sum(isinstance(module, BitSerialModule) for module in deployed.modules()) == len(layers)
    norms = {"stem": "norm", "up": "up_norm"} if kind == "audio" else {}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in deployed.named_modules():
        if isinstance(module, LoweredModule):
            module.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0], y)}))
    with torch.no_grad():
        deployed(x)
        for name, (given, y) in seen.items():
            expected = network.get_submodule(name)(given)
            expected = network.get_submodule(norms[name])(expected) if name in norms else expected
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-5)
    assert "up" in seen


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv3d(2, 4, 3), torch.randn(2, 2, 4, 4, 4)),
        (nn.ConvTranspose3d(2, 4, 3), torch.randn(2, 2, 4, 4, 4)),
        (nn.Embedding(5, 4), torch.tensor([[0, 4], [1, 1]])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_kinds_are_refused_in_one_line(layer: nn.Module, x: Tensor) -> None:
    network = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2))
    network(x)
    model, specs = reached(network.eval(), x[:1])
    policy = BitPolicy({spec.name: LayerBits(4, 4) for spec in specs})
    prepared = prepare(model, policy, calibration=calibrate(model, [x], [4])).eval()
    kind, errors = type(layer).__name__, list[HaqError]()
    for run, error in ((lambda: deploy(prepared, x[:1]), HardwareError), (lambda: convert(prepared, [x]), ModelError)):
        with pytest.raises(error, match=rf"layer '0' \({kind}\) has no") as caught:
            run()
        errors.append(caught.value)
    assert all("\n" not in str(error) for error in errors)
    assert lowered_spec(specs[0]) is None
