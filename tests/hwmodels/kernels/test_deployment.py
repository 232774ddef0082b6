from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from haq.errors import HaqError, HardwareError
from haq.hwmodels.kernels.deployment import BitSerialModule, deploy, random_module
from haq.layers import LayerSpec, quantizable_layers, trace
from haq.policy import BitPolicy, LayerBits
from haq.quant import convert
from haq.quant.calibration import Calibration, calibrate
from haq.quant.modules import Quantized
from haq.quant.preparation import prepare
from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes import Scheme, get_scheme, list_schemes

IMAGES = 16


NORMS = {"stem": "stem_bn", "depthwise": "depthwise_bn", "head": "head_bn"}
SIGNED = ("stem", "same", "tokens")  # their inputs have negative values


class Net(nn.Module):
    """Every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), padding=(2, 1), dilation=2, groups=2, bias=False)
        self.depthwise, self.depthwise_bn = nn.Conv2d(12, 12, 3, (2, 1), 1, groups=12), nn.BatchNorm2d(12, affine=False)
        self.pointwise = nn.Conv2d(12, 6, 1)
        self.same = nn.Conv2d(6, 8, 3, padding="same", dilation=(1, 2))
        self.tokens = nn.Linear(8, 16)
        self.head, self.head_bn = nn.Linear(16, 10, bias=False), nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu(self.depthwise_bn(self.depthwise(torch.relu(self.grouped(y)))))
        y = self.same(self.pointwise(y))
        y = y.reshape(len(y), self.same.out_channels, -1).transpose(1, 2)  # (N, T, C)
        return self.head_bn(self.head(torch.relu(self.tokens(y)).mean(1)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers are so small that threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 9, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(images: Tensor) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        net(images)  # running statistics
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    assert (net.stem_bn.weight < 0).any()
    return net.eval()


@pytest.fixture(scope="module")
def quantizers(model: Net, images: Tensor) -> Callable[[str, str], Calibration]:
    made: dict[tuple[str, str], Calibration] = {}

    def calibrated(scheme: str, granularity: str) -> Calibration:
        key = scheme, granularity
        if key not in made:
            made[key] = calibrate(model, [images], range(1, 9), get_scheme(scheme, granularity=granularity))
        return made[key]

    return calibrated


def mixed(seed: int) -> BitPolicy:
    """Random widths of 1 to 8 bits; of 2 and more for activations with a sign."""
    rng = np.random.default_rng(seed)
    names = ("stem", "grouped", "depthwise", "pointwise", "same", "tokens", "head")
    widths = {name: (rng.integers(1, 9), rng.integers(2 if name in SIGNED else 1, 9)) for name in names}
    return BitPolicy({name: LayerBits(int(w), int(a)) for name, (w, a) in widths.items()})


def assert_layers_agree(quantized: nn.Module, deployed: nn.Module, x: Tensor) -> None:
    """Each layer gives the output of the fake-quantized layer and its batch norm for the same input.

    A rounding error before a layer may move a value across the middle between two codes, so that whole networks agree
    less closely.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in deployed.named_modules():
        if isinstance(module, BitSerialModule):
            module.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0], y)}))
    with torch.no_grad():
        deployed(x)
        for name, (inputs, outputs) in seen.items():
            layer = quantized.get_submodule(name)
            assert isinstance(layer, Quantized)
            expected = layer(inputs)
            if name in NORMS:
                expected = quantized.get_submodule(NORMS[name])(expected)
            assert outputs.shape == expected.shape, name
            assert outputs.dtype == torch.float32
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()), msg=name)
    assert seen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scheme", ["linear", "lsq"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_deployed_network_computes_what_the_quantized_one_does(
    model: Net,
    images: Tensor,
    quantizers: Callable[[str, str], Calibration],
    scheme: str,
    granularity: str,
    seed: int,
) -> None:
    quantized = prepare(model, mixed(seed), scheme, quantizers(scheme, granularity)).eval()
    deployed = deploy(quantized, images[:1])
    assert sum(isinstance(module, BitSerialModule) for module in deployed.modules()) == 7
    assert not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in deployed.modules())
    assert_layers_agree(quantized, deployed, images)
    with torch.no_grad():
        expected, found = quantized(images), deployed(images)
    # A flipped code moves the outputs of its image alone
    close = (found - expected).abs().amax(1) <= 1e-4 * expected.abs().max()
    assert close.sum() >= IMAGES - 1
    assert (found.argmax(1) == expected.argmax(1)).sum() >= IMAGES - 1


@pytest.mark.parametrize("scheme", ["power-of-two", "ristretto", "wrpn"])
def test_other_schemes_of_uniform_grids(model: Net, images: Tensor, scheme: str) -> None:
    policy = BitPolicy.uniform([layer.name for layer in trace(model, images[:1])], 4)
    quantized = prepare(model, policy, scheme, calibrate(model, [images], (4,), scheme)).eval()
    assert_layers_agree(quantized, deploy(quantized, images[:1]), images)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("backend", [None, "planes"])
def test_symmetric_and_asymmetric_weights_side_by_side(
    model: Net,
    images: Tensor,
    quantizers: Callable[[str, str], Calibration],
    granularity: str,
    backend: str | None,
    seed: int,
) -> None:
    quantized = prepare(model, mixed(seed), "linear", quantizers("linear", "channel")).eval()
    for place, (_, layer) in enumerate(quantizable_layers(quantized)):
        if place % 2 == seed % 2:
            assert isinstance(layer, Quantized)
            bits = layer.weight_quantizer.bits
            weights = layer.weight + layer.weight.std() * torch.linspace(-2, 2, len(layer.weight)).view(
                -1, *[1] * (layer.weight.dim() - 1)
            )  # zero points at both ends and between
            layer.weight = nn.Parameter(weights)
            layer.weight_quantizer = uniform(weights, bits, granularity=granularity, symmetric=False, signed=True)
    assert_layers_agree(quantized, deploy(quantized, images[:1], backend=backend), images)


def test_the_kernels_have_the_widths_of_the_policy_and_the_backend_asked_for(model: Net, images: Tensor) -> None:
    policy = mixed(0)
    deployed = deploy(prepare(model, policy), images[:1], backend="plain")
    for name, bits in policy.items():
        module = deployed.get_submodule(name)
        assert isinstance(module, BitSerialModule)
        assert (module.kernel.w_bits, module.kernel.a_bits) == (bits.w_bits, bits.a_bits)
        assert (module.kernel.backend, module.kernel.name) == ("plain", name)


def test_layers_outside_the_policy_stay_in_float(
    model: Net, images: Tensor, quantizers: Callable[[str, str], Calibration]
) -> None:
    policy = BitPolicy({"grouped": LayerBits(3, 5), "head": LayerBits(8, 8)})
    quantized = prepare(model, policy, "linear", quantizers("linear", "channel")).eval()
    deployed = deploy(quantized, images[:1])
    kinds = {name: type(module) for name, module in deployed.named_children()}
    assert kinds["stem"] is nn.Conv2d
    assert kinds["stem_bn"] is nn.BatchNorm2d
    assert kinds["grouped"] is kinds["head"] is BitSerialModule
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), quantized(images), rtol=1e-4, atol=1e-4)


def test_the_quantized_network_is_not_changed(model: Net, images: Tensor) -> None:
    quantized = prepare(model, mixed(1)).train()
    before = {name: values.clone() for name, values in quantized.state_dict().items() if isinstance(values, Tensor)}
    deployed = deploy(quantized, images[:1])
    assert quantized.training
    assert not deployed.training
    assert all(torch.equal(quantized.state_dict()[name], values) for name, values in before.items())
    assert not any(module._forward_hooks for module in deployed.modules())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


def test_time_is_counted(model: Net, images: Tensor) -> None:
    deployed = deploy(prepare(model, mixed(2)), images[:1])
    modules = [module for module in deployed.modules() if isinstance(module, BitSerialModule)]
    deployed(images)
    first = [module.elapsed_ns for module in modules]
    deployed(images)
    assert all(later > earlier > 0 for later, earlier in zip([m.elapsed_ns for m in modules], first, strict=True))


# Forms of networks


def agree(model: nn.Module, x: Tensor, names: tuple[str, ...]) -> nn.Module:
    """Deploys at 5 bits, compares whole outputs, and returns the deployed network."""
    model.eval()
    calibration = calibrate(model, [x], (5,))
    quantized = prepare(model, BitPolicy.uniform(names, 5), "linear", calibration)
    deployed = deploy(quantized, x[:1])
    with torch.no_grad():
        expected = quantized(x)
        torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return deployed


def test_a_linear_layer_on_a_map_with_channels_last() -> None:
    """As in ConvNeXt and Swin: `(N, H, W, C)` has as many dimensions as the input of a convolution."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).permute(0, 2, 3, 1))

    torch.manual_seed(0)
    agree(Last(), torch.randn(2, 3, 5, 6), ("conv", "linear"))


@pytest.mark.parametrize("reader", ["the layer's own output", "another batch norm"])
def test_a_batch_norm_stays_where_its_input_has_another_reader(reader: str, caplog: pytest.LogCaptureFixture) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + (y if reader == "the layer's own output" else self.other(y))

    torch.manual_seed(0)
    x = torch.rand(4, 3, 6, 6)
    model = Both()
    for _ in range(20):
        model(3 * x + 1)
    assert isinstance(agree(model, x, ("conv",)).get_submodule("norm"), nn.BatchNorm2d)
    assert "batch norms stay in PyTorch" in caplog.text


def test_a_batch_norm_behind_a_layer_that_is_called_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.norm.running_mean = torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(torch.relu(self.conv(x))))

    torch.manual_seed(0)
    agree(Twice(), torch.rand(2, 3, 6, 6), ("conv",))


def test_a_layer_under_two_names() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    deployed = agree(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(4, 6), ("0",))
    assert deployed.get_submodule("0") is deployed.get_submodule("2")


def test_a_network_of_one_layer() -> None:
    torch.manual_seed(0)
    assert isinstance(agree(nn.Linear(70, 3), torch.randn(4, 70), ("",)), BitSerialModule)


# Refusals


@pytest.mark.parametrize(
    ("scheme", "bits", "message"),
    [
        (get_scheme("kmeans"), LayerBits(4, 4), "the weights of layer '1' are quantized by KMeansQuantizer.*use a"),
        (get_scheme("pact"), LayerBits(4, 4), "layer '1' are quantized by .*; use a scheme of uniform grids"),
        (
            get_scheme("linear", granularity="group:4"),
            LayerBits(4, 4),
            "layer '1' have .*granularity=group:4; .*=channel",
        ),
        (get_scheme("asymmetric", granularity="row"), LayerBits(4, 4), "layer '1' have .*granularity=row; .*=channel"),
        (get_scheme("linear"), LayerBits(16, 8), "layer '1': w_bits=16; bit-serial kernels take 1 to 8"),
        (get_scheme("linear"), LayerBits(8, 16), "layer '1': a_bits=16; bit-serial kernels take 1 to 8"),
        (get_scheme("linear"), LayerBits(8, None), "the inputs of layer '1' are in floating point; give them 1 to 8"),
        (get_scheme("linear"), LayerBits(None, 8), "the weights of layer '1' are in floating point; give them 1 to 8"),
        (get_scheme("linear", rounding="floor"), LayerBits(8, 8), "layer '1' .*rounded down.*take .*to nearest"),
        (get_scheme("linear"), LayerBits(8, 1), "layer '1' has codes -1 and \\+1.*signed activations of 2 bits"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused(scheme: Scheme, bits: LayerBits, message: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 1)), torch.randn(8, 4, 3, 3)
    policy = BitPolicy({"1": bits}, scheme.name)
    widths = {width for width in (bits.w_bits, bits.a_bits) if width is not None}
    quantized = prepare(model, policy, scheme, calibrate(model, [x], widths, scheme))
    with pytest.raises(HardwareError, match=message) as error:
        deploy(quantized, x[:1])
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 2, padding="same")],
    ids=["reflect", "one side more"],
)
def test_other_padding_is_refused(conv: nn.Conv2d) -> None:
    model, x = nn.Sequential(conv), torch.rand(1, 4, 5, 5)
    with pytest.raises(HardwareError, match="layer '0' pads with .*; bit-serial kernels pad with zeros, equally") as e:
        deploy(prepare(model, BitPolicy.uniform(["0"], 4)), x)
    assert "\n" not in str(e.value)


def test_a_float_network_is_refused(model: Net, images: Tensor) -> None:
    with pytest.raises(HardwareError, match="no quantized layer to run; prepare it with a policy first"):
        deploy(model, images[:1])


# Random layers


@pytest.mark.parametrize("bits", [LayerBits(1, 1), LayerBits(1, 8), LayerBits(3, 2), LayerBits(8, 8)])
def test_random_layers_have_the_shapes_of_the_real_ones(model: Net, images: Tensor, bits: LayerBits) -> None:
    for spec in trace(model, images[:1]):
        linear = spec.kind == "linear"
        size = (2, spec.in_size[0], spec.in_channels) if linear else (2, spec.in_channels, *spec.in_size)
        x = torch.rand(size)
        y = random_module(spec, bits, seed=3)(x)
        shape = (2, spec.out_size[0], spec.out_channels) if linear else (2, spec.out_channels, *spec.out_size)
        assert y.shape == shape
        assert torch.equal(random_module(spec, bits, seed=3)(x), y)
        assert not torch.equal(random_module(spec, bits, seed=4)(x), y)


def test_random_layers_use_every_code(make_layer: Callable[..., LayerSpec]) -> None:
    spec = make_layer(c_in=1, c_out=1000, kernel=1, size=1)
    for w_bits in range(1, 9):
        y = random_module(spec, LayerBits(w_bits, 1))(torch.ones(1, 1, 1, 1)).flatten() - 1  # the bias
        low, high = (-1, 1) if w_bits == 1 else (-(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1)
        assert (y.min(), y.max()) == (low, high)
        assert len(y.unique()) >= 0.9 * 2**w_bits


@pytest.mark.parametrize("bits", [LayerBits(16, 8), LayerBits(8, 16), LayerBits(8, None), LayerBits(None, 8)])
def test_random_layers_of_other_widths_are_refused(make_layer: Callable[..., LayerSpec], bits: LayerBits) -> None:
    with pytest.raises(HardwareError, match="layer 'conv' at .*: bit-serial kernels take widths of 1 to 8 bits"):
        random_module(make_layer(), bits)


@pytest.mark.parametrize("name", list_schemes())
def test_schemes_name_the_kernels_that_run_them(name: str) -> None:
    """`haq schemes` lists them; what it says of bit-serial and integer kernels is tried here."""
    scheme = get_scheme(name)
    w_bits = 4 if 4 in scheme.widths else scheme.widths[0]
    a_bits = scheme.activation_width(w_bits)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    x = torch.randn(4, 3, 8, 8)
    calibration = calibrate(net, [x], {width for width in (w_bits, a_bits) if width is not None}, scheme)
    policy = BitPolicy(dict.fromkeys(("0", "4"), LayerBits(w_bits, a_bits)), name)
    quantized = prepare(net, policy, calibration=calibration).eval()
    runs = {"bit-serial": lambda: deploy(quantized, x[:1]), "integer": lambda: convert(quantized, [x])}
    for kernel, make in runs.items():
        if kernel in scheme.kernels:
            torch.testing.assert_close(make()(x), quantized(x), atol=1e-2, rtol=1e-2)
        else:
            with pytest.raises(HaqError):
                make()
