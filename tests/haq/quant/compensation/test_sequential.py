"""Rounding layer by layer on the outputs of earlier layers, for a network trained on digits and for unusual ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import get_data
from haq.layers import quantizable_layers, run_sample
from haq.layers.running import same_randomness
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, prepare
from haq.quant.compensation import compensate_in_sequence, compensate_together, sequential
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.reach import reached

from ...networks import REACHED


class Digits(nn.Module):
    """Has batch norms, a depthwise convolution, a shortcut and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.pointwise = nn.Sequential(nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu_(x + self.pointwise(self.depthwise(x)))
        y: Tensor = self.head(F.max_pool2d(x, 2).flatten(1))
        return y


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Returns the network, calibration images, and other images."""
    data, model = get_data("digits", 1000, seed=0), Digits()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(2):
        for x, y in data.train.batches(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval(), data.train.batch(range(256))[0], data.val.batch(range(256))[0]


def prepared(model: nn.Module, x: Tensor, bits: LayerBits, scheme: str = "linear") -> nn.Module:
    widths = {width for width in (bits.w_bits, bits.a_bits) if width is not None}
    policy = BitPolicy({name: bits for name, _ in quantizable_layers(model)}, scheme)
    return prepare(model, policy, calibration=calibrate(model, [x], widths, scheme)).eval()


def on_grids(model: nn.Module) -> bool:
    return all(
        torch.allclose(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-6, atol=0)
        for layer in model.modules()
        if isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, Quantizer)
    )


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one(x) - other(x)).norm())


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [
        (LayerBits(2, None), "linear"),
        (LayerBits(3, 4), "linear"),
        (LayerBits(3, 3), "asymmetric"),
        (LayerBits(3, 4), "kmeans"),
    ],
)
def test_answers_on_other_images_come_closer(
    trained: tuple[nn.Module, Tensor, Tensor], bits: LayerBits, scheme: str
) -> None:
    model, shown, others = trained
    quantized, reports = prepared(model, shown, bits, scheme), list[tuple[int, int]]()
    before, state = distance(quantized, model, others), {k: v.clone() for k, v in model.state_dict().items()}
    assert compensate_in_sequence(quantized, model, shown.split(64), lambda *part: reports.append(part))
    assert distance(quantized, model, others) < 0.97 * before
    assert on_grids(quantized)
    assert reports == [(number, 4) for number in range(1, 5)]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), (
        "the float one is as it was"
    )


def test_it_is_the_same_every_time_and_shares_nothing_with_the_float_network(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, shown, _ = trained
    one, other = (prepared(model, shown, LayerBits(2, 4)) for _ in range(2))
    for quantized in (one, other):
        assert compensate_in_sequence(quantized, model, [shown])
    for (key, value), (_, same) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert not isinstance(value, Tensor) or torch.equal(value, same), key
    places = {parameter.data_ptr() for parameter in model.parameters()}
    assert not places & {parameter.data_ptr() for parameter in one.parameters()}


@pytest.mark.parametrize("short_of_memory", [False, True])
def test_networks_together_come_out_as_alone(
    trained: tuple[nn.Module, Tensor, Tensor], short_of_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shown, others = trained
    names = [name for name, _ in quantizable_layers(model)]
    calibration = calibrate(model, [shown], [2, 3, 4])
    policies = [
        BitPolicy.uniform(names, 2),
        BitPolicy({name: LayerBits(3, 4) for name in names[1:]}),
        BitPolicy({names[1]: LayerBits(None, 4), names[2]: LayerBits(3, None)}),
    ]
    alone, together = ([prepare(model, policy, calibration=calibration).eval() for policy in policies] for _ in "12")
    for one in alone:
        assert compensate_in_sequence(one, model, [shown])
    if short_of_memory:
        counted = sequential._calls(model, dict(quantizable_layers(model)), shown[:2], 4)
        assert counted is not None
        monkeypatch.setattr(sequential, "_BYTES", counted[1] * 0.9 * len(shown))
    reports = list[tuple[int, int]]()
    assert compensate_together(together, model, [shown], lambda *part: reports.append(part))
    assert reports[-1][0] == reports[-1][1] == (6 if short_of_memory else 4)
    with torch.no_grad():
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other(others), one(others), rtol=1e-3, atol=1e-3)


def test_eight_bits_stay_as_close_as_they_are(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, shown, others = trained
    quantized = prepared(model, shown, LayerBits(8, 8))
    before = distance(quantized, model, others)
    compensate_in_sequence(quantized, model, [shown])
    assert distance(quantized, model, others) < 1.1 * before


class TimeFirst(nn.Module):
    """Has its samples along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.mix(x.flatten(1, 2).transpose(0, 1))).mean(0))
        return y


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.again(torch.relu(self.stem(x)))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Deciding(Twice):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > -1e9 else -x)


class Sequences(nn.Module):
    """Reads `(N, T, C)`."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x[:, 0]))).mean(1)
        return y


def images(count: int = 96) -> Tensor:
    coarse = torch.randn(count, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (8, 8), mode="bilinear")


@pytest.mark.parametrize("make", [Twice, Deciding, Sequences])
def test_odd_networks_come_closer(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), images()
    quantized = prepared(model, x, LayerBits(3, 6))
    before, kept = distance(quantized, model, x), {k: v.clone() for k, v in quantized.named_parameters()}
    assert compensate_in_sequence(quantized, model, [x])
    assert distance(quantized, model, x) < before
    assert on_grids(quantized)
    for name, value in quantized.named_parameters():
        assert not name.startswith("again") or torch.equal(value, kept[name]), "a layer called twice keeps its rounding"
    if make is Sequences:
        assert quantized.get_submodule("up").bias is None


def test_a_network_with_its_samples_along_another_axis_is_left_alone() -> None:
    torch.manual_seed(0)
    model = TimeFirst().eval()
    quantized = prepared(model, images(), LayerBits(2, 6))
    kept = {key: value for key, value in quantized.state_dict().items() if isinstance(value, Tensor)}
    assert not compensate_in_sequence(quantized, model, [images()])
    assert all(torch.equal(quantized.state_dict()[key], value) for key, value in kept.items())


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.mix(self.embedding(tokens))))
        return y


def test_a_weight_that_another_module_holds_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(9, (40, 7))
    quantized = prepared(model, tokens, LayerBits(2, None))
    assert compensate_in_sequence(quantized, model, [tokens])
    assert quantized.get_submodule("head").weight is quantized.get_submodule("embedding").weight
    assert torch.equal(quantized.get_submodule("embedding").weight, model.embedding.weight)  # type: ignore[arg-type]
    mix = quantized.get_submodule("mix")
    assert torch.equal(mix.weight_quantizer(mix.weight), mix.weight)  # type: ignore[operator]


def test_layers_left_in_floating_point_stay_so() -> None:
    torch.manual_seed(0)
    model, x = Twice().eval(), images()
    policy = BitPolicy({"stem": LayerBits(None, 4), "head": LayerBits(2, None)})
    quantized = prepare(model, policy, calibration=calibrate(model, [x], [2, 4])).eval()
    assert compensate_in_sequence(quantized, model, [x])
    stem, float_stem = quantized.get_submodule("stem"), model.get_submodule("stem")
    assert torch.equal(stem.weight, float_stem.weight)  # type: ignore[arg-type]
    assert torch.equal(stem.bias, float_stem.bias)  # type: ignore[arg-type]
    assert on_grids(quantized)


def test_one_image_is_enough() -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    quantized = prepared(model, images(1), LayerBits(3, 8))
    assert compensate_in_sequence(quantized, model, [images(1)])
    assert all(bool(torch.isfinite(parameter).all()) for parameter in quantized.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REACHED)
def test_eight_bits_give_what_the_float_network_gives(name: str) -> None:
    """Layers may be held and called in any way, including their own forward pass with other arguments."""
    model = REACHED[name]().eval()
    dtype = next(model.parameters()).dtype
    x = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)  # two parts
    network, layers = reached(model, x[:1])
    policy = BitPolicy.uniform([layer.name for layer in layers], 8)
    quantized = prepare(network, policy, calibration=calibrate(network, [x], [8])).eval()
    compensate_in_sequence(quantized, network, [x])
    with same_randomness():
        expected = run_sample(network, x)
    with same_randomness():
        found = run_sample(quantized, x)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
