"""Whole layers: calibration rounds weights to the quantizers' grids and brings outputs closer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import quantizable_layers
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, get_scheme, list_schemes, prepare
from haq.quant.calibration import Calibration, LayerQuantizers
from haq.quant.compensation import Rounded, round_layer
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes import Scheme
from haq.threads import one_thread

NOT_PROJECTIONS = {"abcnet", "dorefa", "pact", "qil", "twn"}
"""Schemes whose quantizers change values that are on their grid; they keep rounding to the nearest level."""

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "strided": nn.Conv2d(4, 6, (3, 1), stride=2, dilation=2),
    "same": nn.Conv2d(4, 6, 2, padding="same"),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "pointwise": nn.Conv2d(4, 1, 1),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int = 16) -> Tensor:
    """Returns smooth images, whose neighbouring pixels are correlated, with positive values as after a ReLU."""
    return F.interpolate(random(count, 4, 4, 4), (10, 10), mode="bilinear").abs()


def rows(count: int = 300, columns: int = 20) -> Tensor:
    return random(count, 6) @ random(6, columns, seed=1) + 0.2 * random(count, columns, seed=2) + 0.5


def error(layer: nn.Conv2d | nn.Linear, rounded: Rounded, x: Tensor) -> float:
    """Returns the squared error of the outputs."""
    calibration = {"0": LayerQuantizers({8: rounded}, {})}
    one = prepare(nn.Sequential(layer), BitPolicy({"0": LayerBits(8, None)}), calibration=calibration).eval()
    with torch.no_grad():
        return float((one(x) - layer(x)).double().square().mean())


def calibrated(
    layer: nn.Conv2d | nn.Linear, x: Tensor, bits: list[int], scheme: str | Scheme = "linear", compensated: bool = True
) -> dict[int, Rounded]:
    return dict(calibrate(nn.Sequential(layer), [x], bits, scheme, compensated=compensated)["0"].weights)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_of_convolutions_come_closer(name: str) -> None:
    layer, x = CONVOLUTIONS[name], pictures()
    ours, nearest = calibrated(layer, x, [2, 3, 4, 8]), calibrated(layer, x, [2, 3, 4, 8], compensated=False)
    for bits in (2, 3, 4, 8):
        assert error(layer, ours[bits], x) <= error(layer, nearest[bits], x), bits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", ["linear", "asymmetric", "power-of-two", "kmeans", "lsq", "hybrid"])
def test_outputs_of_linear_layers_come_closer(scheme: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 8, bias=bias), rows()
    ours, nearest = (calibrated(layer, x, [1, 2, 3, 5], scheme, way) for way in (True, False))
    for bits in (1, 2, 3, 5):
        assert error(layer, ours[bits], x) < 0.9 * error(layer, nearest[bits], x), bits


@pytest.mark.parametrize("name", list_schemes())
def test_every_scheme_gets_weights_on_its_grid(name: str) -> None:
    scheme, x = get_scheme(name), rows()
    torch.manual_seed(0)
    layer = nn.Linear(20, 6)
    for bits, rounded in calibrated(layer, x, [bits for bits in scheme.widths if bits <= 8], scheme).items():
        assert (rounded.codes is None) == (name in NOT_PROJECTIONS), bits
        weight = rounded.weight(layer.weight.detach())
        if rounded.codes is None:
            assert weight is not None
            assert torch.equal(weight, layer.weight)
            continue
        torch.testing.assert_close(rounded.quantizer(weight), weight, rtol=1e-5, atol=0)
        assert max(len(row.unique()) for row in weight) <= 2**bits, "levels of a channel"
        assert rounded.codes.codes.element_size() == 1


@pytest.mark.parametrize("granularity", ["tensor", "channel", "row", "column", "group:4"])
@pytest.mark.parametrize("scheme", ["linear", "asymmetric", "power-of-two", "kmeans"])
def test_every_granularity_keeps_its_grid(scheme: str, granularity: str) -> None:
    layer, x = CONVOLUTIONS["grouped"], pictures()
    chosen = get_scheme(scheme, granularity=granularity)
    ours, nearest = calibrated(layer, x, [1, 3], chosen), calibrated(layer, x, [1, 3], chosen, compensated=False)
    for bits, rounded in ours.items():
        assert rounded.codes is not None
        weight = rounded.weight(layer.weight.detach())
        assert torch.equal(rounded.quantizer(weight), weight)
        assert error(layer, rounded, x) <= 1.1 * error(layer, nearest[bits], x), (
            "codebooks of three weights are as good"
        )


def test_the_mean_error_is_taken_off_the_bias() -> None:
    for layer, x in ((CONVOLUTIONS["plain"], pictures()), (nn.Linear(20, 8), rows())):
        for bits in (1, 2, 4):
            network = nn.Sequential(layer)
            one = prepare(network, BitPolicy({"0": LayerBits(bits, None)}), calibration=calibrate(network, [x], [bits]))
            with torch.no_grad():
                error = (one.eval()(x) - layer(x)).transpose(0, 1 if x.dim() == 4 else -1).flatten(1)
            assert float(error.mean(1).abs().max()) < 1e-4 * max(1.0, float(x.abs().max()))
            assert float(error.abs().max()) > 1e-3


def test_only_convolutions_get_a_bias() -> None:
    conv, linear = nn.Conv2d(4, 3, 3, bias=False), nn.Linear(20, 3, bias=False)
    for layer, x, has_bias in ((conv, pictures(), True), (linear, rows(), False)):
        network = nn.Sequential(layer)
        calibration = calibrate(network, [x], [3])
        one = prepare(network, BitPolicy({"0": LayerBits(3, None)}), calibration=calibration)
        assert (one.get_submodule("0").bias is not None) == has_bias
        assert layer.bias is None, "the float network is not changed"


def test_zero_points_come_where_they_pay() -> None:
    """Weights on one side of 0 get zero points, weights on both sides do not."""
    layer, x = nn.Linear(20, 8), rows()
    with torch.no_grad():
        layer.weight.copy_(random(8, 20).abs() + 1)
    one_sided = calibrated(layer, x, [1, 2])
    for bits, rounded in one_sided.items():
        assert isinstance(rounded.quantizer, UniformQuantizer)
        assert rounded.quantizer.zero_point is not None, bits
    assert set(one_sided[1].codes.codes.unique().tolist()) <= {-1, 0}  # type: ignore[union-attr]
    with torch.no_grad():
        layer.weight.copy_(random(8, 20))
    for bits, rounded in calibrated(layer, x, [8]).items():
        assert isinstance(rounded.quantizer, UniformQuantizer)
        assert rounded.quantizer.zero_point is None, bits
    for rounded in calibrated(layer, x, [1, 3], "hybrid").values():
        assert isinstance(rounded.quantizer, UniformQuantizer)
        assert rounded.quantizer.zero_point is None, "only where the scheme lets it"


UNUSUAL: dict[str, tuple[Tensor, Tensor]] = {
    "fewer columns than samples": (random(4, 3), rows(50, 3)),
    "fewer samples than columns": (random(4, 40), rows(8, 40)),
    "one sample": (random(4, 20), rows(1)),
    "one channel": (random(1, 20), rows()),
    "one weight": (random(1, 1), rows(30, 1)),
    "equal inputs": (random(4, 20), rows().expand(2, -1, -1).transpose(0, 1).reshape(600, 20)),
    "two columns that are the same": (random(4, 20), torch.cat([rows(300, 10)] * 2, 1)),
    "columns of zeros": (random(4, 20), torch.cat([rows(300, 10), torch.zeros(300, 10)], 1)),
    "all inputs 0": (random(4, 20), torch.zeros(50, 20)),
    "all inputs the same": (random(4, 20), torch.full((50, 20), 3.7)),
    "constant inputs of different size": (random(4, 20), torch.arange(20.0).expand(50, -1) * 100),
    "equal weights": (torch.full((4, 20), 0.7), rows()),
    "weights of 0": (torch.zeros(4, 20), rows()),
    "a channel of zeros": (torch.cat([torch.zeros(1, 20), random(3, 20)]), rows()),
    "positive weights": (random(4, 20).abs(), rows()),
    "huge inputs": (random(4, 20), rows() * 1e4),
    "tiny inputs": (random(4, 20), rows() * 1e-6),
    "huge weights": (random(4, 20) * 1e4, rows()),
    "tiny weights": (random(4, 20) * 1e-6, rows()),
    "an outlier": (torch.cat([random(4, 19), torch.full((4, 1), 1000.0)], 1), rows()),
    "inputs far from 0": (random(4, 20), rows() + 1000),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_layers_are_finite_on_the_grid_and_hardly_worse_than_the_nearest(name: str) -> None:
    weight, x = UNUSUAL[name]
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.weight = nn.Parameter(weight)
    for scheme, widths in (("linear", [1, 2, 8]), ("asymmetric", [1, 3]), ("kmeans", [2])):
        ours, nearest = (calibrated(layer, x, widths, scheme, way) for way in (True, False))
        for bits, rounded in ours.items():
            held = rounded.weight(layer.weight.detach())
            bias = rounded.bias(layer)
            assert bool(torch.isfinite(held).all())
            assert bias is None or bool(torch.isfinite(bias).all())
            assert rounded.codes is None or torch.equal(rounded.quantizer(held), held)
            slack = 1e-6 * float(layer(x).detach().square().mean())
            assert error(layer, rounded, x) <= 1.001 * error(layer, nearest[bits], x) + slack, (scheme, bits)


def test_inputs_that_are_always_0_leave_their_weights_at_the_nearest_levels() -> None:
    x = torch.cat([rows(300, 10), torch.zeros(300, 10)], 1)
    layer = nn.Linear(20, 4)
    rounded = calibrated(layer, x, [3], "kmeans")[3]
    held, exact = rounded.weight(layer.weight.detach())[:, 10:], layer.weight.detach()[:, 10:]
    levels = rounded.weight(layer.weight.detach()).unique()
    assert torch.equal(held, levels[(exact[..., None] - levels).abs().argmin(-1)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_keeps_its_type(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.Flatten(), nn.Linear(6 * 64, 5)).to(dtype).eval()
    x = pictures().to(dtype)
    calibration = calibrate(network, [x], [1, 3, 8])
    for bits in (1, 3, 8):
        one = prepare(network, BitPolicy.uniform(["0", "2"], bits), calibration=calibration).eval()
        assert {p.dtype for _, layer in quantizable_layers(one) for p in (layer.weight, layer.bias)} == {dtype}
        for _, layer in quantizable_layers(one):
            weight = layer.weight.detach()
            assert torch.equal(layer.weight_quantizer(weight), weight), "on its grid"  # type: ignore[operator]
        with torch.no_grad():
            assert one(x).dtype == dtype
            assert bits < 8 or (one(x) - network(x)).abs().max() < 0.05 * network(x).abs().max()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.relu(self.conv(x)))
        return y


def test_a_layer_that_is_called_twice_is_rounded_for_both_calls() -> None:
    torch.manual_seed(0)
    network, x = Twice().eval(), pictures()
    policy = BitPolicy({"conv": LayerBits(3, None)})
    ours, nearest = (
        prepare(network, policy, calibration=calibrate(network, [x], [3], compensated=way)).eval()
        for way in (True, False)
    )
    with torch.no_grad():
        exact = network(x)
        assert (ours(x) - exact).norm() < (nearest(x) - exact).norm()


def test_without_moments_weights_are_rounded_to_the_nearest() -> None:
    layer = nn.Linear(20, 4)
    quantizers = {bits: get_scheme("linear").weight_quantizer(layer.weight.detach(), bits) for bits in (1, 3)}
    for bits, rounded in round_layer(layer, quantizers, None).items():
        assert (rounded.codes, rounded.shift) == (None, None)
        assert rounded.quantizer is quantizers[bits]
        assert torch.equal(rounded.weight(layer.weight), layer.weight)


def held(calibration: Calibration, network: nn.Module) -> list[Tensor]:
    layers = dict(quantizable_layers(network))
    return [
        rounded.weight(layers[name].weight.detach())
        for name, quantizers in calibration.items()
        for rounded in quantizers.weights.values()
    ]


def test_it_is_the_same_every_time_and_on_any_number_of_threads() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5)).eval()
    first = held(calibrate(network, [pictures()], [1, 2, 4]), network)
    with one_thread():
        alone = held(calibrate(network, [pictures()], [1, 2, 4]), network)
    again = held(calibrate(network, [pictures()], [1, 2, 4]), network)
    for one, other, third in zip(first, alone, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert torch.equal(one, third)
