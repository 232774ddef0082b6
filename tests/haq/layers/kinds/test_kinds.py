"""Every kind of layer: its description, its product, its quantized form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import LayerSpec, quantizable_layers, reachable, trace
from haq.layers.kinds import LayerKind, bias_of, kind_of, known_kind
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, prepare
from haq.quant.reach import reached
from haq.quant.uncovered import rest_of
from haq.registry import LAYERS

PRODUCTS = {
    "conv1d": (nn.Conv1d(6, 8, 3, 2, padding=1, groups=2), (4, 6, 9)),
    "conv1d same": (nn.Conv1d(6, 8, 4, padding="same", dilation=2), (4, 6, 9)),
    "conv1d circular": (nn.Conv1d(6, 8, 3, padding=2, padding_mode="circular"), (4, 6, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), (2, 1), padding=(1, 0)), (4, 3, 7, 6)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 0), groups=2), (4, 2, 5, 6, 4)),
    "transposed1d": (nn.ConvTranspose1d(6, 4, 5, 3, padding=1, output_padding=2, groups=2, dilation=2), (4, 6, 7)),
    "transposed2d": (nn.ConvTranspose2d(3, 4, (3, 2), (2, 1), padding=(2, 0)), (4, 3, 5, 6)),
    "transposed3d": (nn.ConvTranspose3d(2, 4, 2, 2, bias=False), (4, 2, 3, 2, 4)),
    "linear": (nn.Linear(5, 7), (4, 3, 5)),
}
TABLES = {
    "embedding": (nn.Embedding(11, 6, padding_idx=0), (4, 7)),
    "bag": (nn.EmbeddingBag(11, 6, mode="max"), (4, 7)),
}


def input_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape) if kind_of(layer).reads_values else torch.randint(0, 11, shape)


@pytest.fixture(params=[*PRODUCTS, *TABLES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A layer and a batch of inputs."""
    layer, shape = {**PRODUCTS, **TABLES}[request.param]
    return layer, input_of(layer, shape)


def network_of(layer: nn.Module, x: Tensor) -> tuple[nn.Module, Any]:
    """Returns a network of this layer alone, and the layer in its reachable form."""
    network = reachable(nn.Sequential(layer), x[:1])
    return network, dict(quantizable_layers(network))["0"]


def test_the_reachable_layer_computes_the_same(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    network, own = network_of(layer, x)
    assert torch.equal(network(x), layer(x))
    assert torch.equal(kind_of(own).run(own, x, own.weight, bias_of(own)), layer(x))
    assert torch.equal(reachable(network)(x), layer(x))


@pytest.mark.parametrize("name", PRODUCTS)
def test_weight_times_columns_is_the_output(name: str) -> None:
    layer, shape = PRODUCTS[name]
    x = input_of(layer, shape)
    _, own = network_of(layer, x)
    kind = kind_of(own)
    windows, y = kind.windows(own, x), layer(x)
    weight = own.weight.reshape(windows.shape[1], -1, windows.shape[2])
    product = weight @ windows  # (N, groups, M / groups, P)
    bias = 0.0 if layer.bias is None else kind.along_channels(layer.bias, y)
    torch.testing.assert_close(product, kind.results(own, y - bias), rtol=1e-4, atol=1e-5)
    assert kind.count(own, x) == windows.shape[0] * windows.shape[3]
    torch.testing.assert_close(kind.channel_mean(y), kind.results(own, y).mean((0, 3)).flatten())


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_description_counts_every_product(name: str) -> None:
    layer, shape = PRODUCTS[name]
    x = input_of(layer, shape)[:1]
    (spec,) = trace(nn.Sequential(layer), x)
    y = layer(x)
    assert (spec.name, spec.params) == ("0", layer.weight.numel())
    assert spec.values_written == y.numel()
    assert spec.reduction * spec.out_channels == spec.params
    steps = x.numel() // layer.in_channels if spec.kind == "transposed" else y.numel() // spec.out_channels
    assert (spec.positions, spec.macs, spec.calls) == (steps, steps * spec.params, 1)
    assert LayerSpec.from_dict(spec.to_dict()) == spec


def test_a_table_reads_rows(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    if kind_of(layer).reads_values:
        return
    (spec,) = trace(nn.Sequential(layer), x[:1])
    assert (spec.kind, spec.rows, spec.out_channels, spec.params, spec.macs) == ("embedding", 11, 6, 66, 0)
    assert (spec.positions, spec.values_read, spec.weights_read(1), spec.weights_read(100)) == (7, 0, 42, 66)
    assert spec.values_written == layer(x[:1]).numel()


def test_a_table_that_is_read_twice_adds_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head((self.table(x) + self.table(x[:, :1])).mean(1))
            return y

    table, _ = trace(Twice(), torch.zeros(1, 5, dtype=torch.int64))
    assert (table.positions, table.values_written) == (6, 36)


def test_quantized_layers_stay_close_and_quantize(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    network, _ = reached(nn.Sequential(layer), x[:1])
    found = calibrate(network, [x], [2, 8])
    eight = prepare(network, BitPolicy({"0": LayerBits(8, 8)}), calibration=found).eval()
    two = prepare(network, BitPolicy({"0": LayerBits(2, 8)}), calibration=found).eval()
    exact = layer(x)
    near, far = (float(((y(x) - exact).square().mean() / exact.square().mean()).detach()) for y in (eight, two))
    assert near < 1e-3 < far
    values = dict(quantizable_layers(two))["0"].weight_quantizer(dict(quantizable_layers(two))["0"].weight)
    assert all(len(row.unique()) <= 4 for row in values.flatten(1))


def test_a_batch_norm_folds_into_every_product() -> None:
    from haq.quant.folding import fold_batch_norm

    for layer, norm, shape in (
        (nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), (3, 6, 8)),
        (nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4), (3, 6, 5, 5)),
        (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), (3, 2, 5, 5, 5)),
    ):
        network = nn.Sequential(layer, norm)
        network(torch.randn(shape))
        network.eval()
        folded = fold_batch_norm(network, torch.randn(shape))
        assert isinstance(folded[1], nn.Identity)  # type: ignore[index]
        x = torch.randn(shape)
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_table_with_max_norm_is_no_layer() -> None:
    assert known_kind(nn.Embedding(4, 3, max_norm=1.0)) is None
    assert known_kind(nn.ReLU()) is None
    with pytest.raises(ModelError, match="ReLU is no layer that can be quantized; known kinds: convolution"):
        kind_of(nn.ReLU())
    assert bias_of(nn.Embedding(4, 3)) is None


def test_own_forward_passes_of_every_kind_keep_their_code() -> None:
    class Scaled(nn.Embedding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.sqrt(6)

    class Causal(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (2, 0)))

    class Cut(nn.ConvTranspose1d):
        def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
            return super().forward(x)[..., 1:]

    network = nn.Sequential(
        Scaled(11, 6), nn.Flatten(2), Causal(7, 5, 3), Cut(5, 4, 3, 2), nn.Flatten(), nn.Linear(48, 3)
    )
    x = torch.randint(0, 11, (4, 7))
    found, specs = reached(network, x[:1])
    assert [spec.kind for spec in specs] == ["embedding", "conv", "transposed", "linear"]
    assert torch.equal(found(x), network(x))
    policy = BitPolicy({spec.name: LayerBits(8, 8) for spec in specs})
    quantized = prepare(found, policy, calibration=calibrate(found, [x], [8])).eval()
    torch.testing.assert_close(quantized(x), network(x), rtol=0.1, atol=0.05)
    assert not torch.equal(quantized(x), network(x))


def test_a_kind_of_ones_own_is_quantized() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    class GainKind(LayerKind):
        types = (Gain,)

        def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
            size = layer.weight.numel()
            one = (1, 1)
            return LayerSpec(name, "gain", size, size, one, one, (0, 0), one, size, one, one, size, size, 0)

        def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
            return x * weight

    LAYERS.register("gain", GainKind())
    LAYERS.register("gain", type("Other", (LayerKind,), {"types": (nn.Tanh,)})())  # a file that is run again
    try:
        assert isinstance(known_kind(Gain()), GainKind)
        network, specs = reached(nn.Sequential(Gain(), nn.Linear(6, 2)), torch.randn(1, 6))
        assert [spec.kind for spec in specs] == ["gain", "linear"]
        x = torch.randn(8, 6)
        quantized = prepare(
            network, BitPolicy({"0": LayerBits(2, 8)}), calibration=calibrate(network, [x], [2, 8])
        ).eval()
        assert 0 < float((quantized(x) - network(x)).abs().max()) < 1
    finally:
        LAYERS._added.clear()
        LAYERS.replaced.clear()
        LAYERS.changes += 1


def test_a_table_that_a_head_multiplies_by_stays_in_floating_point() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.mix(self.table(x)).mean(1), self.table.weight)

    model, x = Tied(), torch.randint(0, 11, (4, 7))
    network, layers = reached(model, x[:1])
    assert [layer.name for layer in layers] == ["mix"]
    assert torch.equal(network(x), model(x))
    again, _ = reached(network, x[:1])
    assert torch.equal(again(x), model(x))
    (left,) = rest_of(network, x[:1], layers).parts
    assert (left.name, left.weights, left.reason) == ("table", 66, "other code reads its weight too")
