import copy
from collections.abc import Callable, Iterator
from fractions import Fraction
from time import perf_counter_ns
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from haq.errors import ConfigError, DataError, ModelError
from haq.layers import quantizable_layers, replace_module
from haq.models.mobilenet import InvertedResidual
from haq.models.resnet import SmallResNet
from haq.quant.integer import IntegerNetwork, convert, insert_value_grids, integer_network
from haq.quant.integer.arithmetic import Grid, Rescale, fixed_point, matmul
from haq.quant.integer.check import Difference, compare
from haq.quant.integer.layers import IntegerConv2d, IntegerLinear, LayerCodes
from haq.quant.integer.pooling import Window
from haq.quant.modules import quantized_like
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes.dorefa import DoReFaWeights
from haq.quant.schemes.lsq import LSQQuantizer

Widths = tuple[int, int]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Uses one thread: tensors this small gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomised(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics; some channels are flipped in sign, some are dead."""
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.5, 2.0)
                norm.weight.uniform_(-0.5, 1.5)
                norm.bias.uniform_(-0.3, 0.3)
                norm.weight[:3] = torch.tensor([0.0, 1e-9, -1e-30])
    return model.eval()


def prepared(model: nn.Module, images: Tensor, widths: Callable[[int], Widths], **options: Any) -> nn.Module:
    """Quantizes every layer; `options` are passed to `uniform`, those for weights with the prefix `w_`."""
    model, seen = copy.deepcopy(model).eval(), {}
    layers = [layer for _, layer in quantizable_layers(model)]

    def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen[layer] = args[0].flatten(1)

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    w_options = {"signed": True} | {key[2:]: value for key, value in options.items() if key.startswith("w_")}
    a_options = {key: value for key, value in options.items() if not key.startswith("w_")}
    for index, layer in enumerate(layers):
        w_bits, a_bits = widths(index)
        weights = uniform(layer.weight, w_bits, **w_options)
        inputs = uniform(seen[layer], a_bits, granularity="tensor", **a_options)
        model = replace_module(model, layer, quantized_like(layer, weights, inputs))
    return model


def difference(model: nn.Module, images: Tensor, value_bits: int = 16) -> Difference:
    reference = insert_value_grids(model, [images], value_bits)
    return compare(reference, integer_network(reference), images)


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    return randomised(SmallResNet((6, 12), (1, 2), (1, 2), 10, 1, enlarge=2))


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    blocks = [InvertedResidual(8, 8, 1, 6), InvertedResidual(8, 12, 2, 6), InvertedResidual(12, 12, 1, 1)]
    stem = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    return randomised(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)))


IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
DIGITS = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


# Arithmetic


@given(st.floats(2.0**-30, 2.0**30), st.sampled_from((-1, 1)))
def test_multiplier_and_shift_stand_for_the_factor(magnitude: float, sign: int) -> None:
    mantissa, shift = (int(part) for part in fixed_point(torch.tensor([sign * magnitude], dtype=torch.float64)))
    assert abs(Fraction(mantissa, 2**shift) / Fraction(sign * magnitude) - 1) <= Fraction(1, 2**30)
    assert 2**30 <= abs(mantissa) < 2**31
    assert 0 <= shift <= 62


def test_factors_that_no_shift_reaches() -> None:
    mantissa, shift = fixed_point(torch.tensor([0.0, 1e-40, 1e40], dtype=torch.float64))
    assert mantissa.tolist() == [0, 0, 2**31 - 1]
    assert shift.max() <= 62


@given(st.integers(-(2**30), 2**30), st.floats(2.0**-25, 2.0**8), st.sampled_from((-1, 1)), st.booleans())
def test_rescaling_rounds_once_to_the_nearest_code_and_ties_up(total: int, size: float, sign: int, down: bool) -> None:
    grid = Grid(16, True, 1.0, 5, "floor" if down else "nearest")
    rescale = Rescale(torch.tensor([[sign * size]], dtype=torch.float64), grid)
    half = Fraction(0) if down else Fraction(1, 2)
    product = total * Fraction(int(rescale.mantissa), 2 ** int(rescale.shift))
    expected = min(max((product + half).__floor__() + 5, -(2**15)), 2**15 - 1)
    assert rescale(torch.tensor([total], dtype=torch.int32)).tolist() == [expected]


def test_ties_go_up_and_clips_hold() -> None:
    rescale = Rescale(torch.tensor([[0.5]], dtype=torch.float64), Grid(8, True, 1.0), (-1, 6))
    codes = rescale(torch.tensor([-99, -3, -1, 0, 1, 3, 99], dtype=torch.int32))
    assert codes.tolist() == [-1, -1, 0, 0, 1, 2, 6]
    assert codes.dtype == torch.int8
    binary = Rescale(torch.tensor([[-0.5]], dtype=torch.float64), Grid(1, True, 1.0))
    assert binary(torch.tensor([-3, 0, 3], dtype=torch.int32)).tolist() == [1, 1, -1]


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("length", [1, 2, 27, 65])
@pytest.mark.parametrize("channels", [1, 2, 17])
def test_int8_products_are_exact(rows: int, length: int, channels: int) -> None:
    x = torch.randint(-128, 128, (rows, length), dtype=torch.int8)
    weight = torch.randint(-128, 128, (channels, length), dtype=torch.int8)
    assert torch.equal(matmul(x, weight, torch.int32).long(), x.long() @ weight.long().t())


def test_a_product_takes_no_longer_than_that_of_wider_integers() -> None:
    x, weight = torch.ones(512, 256, dtype=torch.int8), torch.ones(64, 256, dtype=torch.int8)
    times: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(10):
        for narrow, spent in times.items():
            start = perf_counter_ns()
            matmul(x, weight, torch.int32) if narrow else x.to(torch.int32) @ weight.to(torch.int32).t()
            spent.append(perf_counter_ns() - start)
    assert min(times[True]) < 3 * min(times[False])


def test_codes_of_eight_bits_less_their_zero_points_are_stored_in_eight() -> None:
    codes = torch.tensor([[-128, 127], [0, 5]])
    for zeros in ([[-128], [127]], [[3], [0]]):
        grid = Grid(8, False, 1.0)
        parts = LayerCodes((codes - torch.tensor(zeros)).int(), torch.ones(2), torch.zeros(2), grid, grid, grid.range)
        assert IntegerLinear(parts).weight.dtype == torch.int8
    parts = LayerCodes(torch.tensor([[-255, 255]]), torch.ones(1), torch.zeros(1), grid, grid, grid.range)
    assert IntegerLinear(parts).weight.dtype != torch.int8, "no grid of 8 bits"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_integer_convolution_equals_the_naive_one(data: st.DataObject) -> None:
    def pair(most: int) -> tuple[int, int]:
        return data.draw(st.integers(1, most)), data.draw(st.integers(1, most))

    groups, inputs, outputs = data.draw(st.sampled_from(((1, 3, 5), (1, 1, 4), (2, 4, 6), (4, 4, 4), (4, 4, 8))))
    bits, signed, affine = data.draw(st.integers(1, 8)), data.draw(st.booleans()), data.draw(st.booleans())
    w_low, w_high = data.draw(st.sampled_from(((-1, 1), (-8, 7), (-128, 127), (-200, 55), (-255, 255))))
    kernel, stride, dilation, padding = pair(3), pair(2), pair(2), pair(2)
    grid = Grid(bits, signed, 1.0)
    low, high = grid.range
    zero = data.draw(st.integers(low, high)) if affine and not grid.binary else None
    grid = Grid(bits, signed, 1.0, zero)

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(low, high + 1, (2, inputs, 7, 6), generator=generator).to(grid.dtype)
    weight = torch.randint(w_low, w_high + 1, (outputs, inputs // groups, *kernel), generator=generator)
    bias = torch.randint(-9, 9, (outputs,), generator=generator).double()
    weight = weight.to(torch.int8 if w_low >= -128 and w_high <= 127 else torch.int32)
    result = Grid(32, True, 1.0)  # as wide as the sums, so that nothing is rounded or clipped
    codes = LayerCodes(weight, torch.ones(outputs).double(), bias, grid, result, (-(2**31), 2**31 - 1))
    sides = (padding[1], padding[1], padding[0], padding[0])
    layer = IntegerConv2d(codes, Window(kernel, stride, dilation, sides), groups)
    naive = F.conv2d(x.double() - grid.zero, weight.double(), bias, stride, padding, dilation, groups)
    assert torch.equal(layer(x).double(), naive)


# Networks


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_operation_is_within_a_step(digits: nn.Module, mobile: nn.Module, bits: int) -> None:
    assert difference(prepared(digits, DIGITS, lambda _: (bits, bits)), DIGITS).largest <= 1
    assert difference(prepared(mobile, IMAGES, lambda _: (bits, bits)), IMAGES).largest <= 1


def test_mixed_widths(digits: nn.Module, mobile: nn.Module) -> None:
    def widths(index: int) -> Widths:
        return index * 3 % 8 + 1, index * 5 % 8 + 1

    assert difference(prepared(digits, DIGITS, widths), DIGITS).largest <= 1
    assert difference(prepared(mobile, IMAGES, widths), IMAGES).largest <= 1


@pytest.mark.parametrize("bits", range(1, 9))
def test_asymmetric_weights_beside_symmetric_ones(digits: nn.Module, mobile: nn.Module, bits: int) -> None:
    for model, images in ((digits, DIGITS), (mobile, IMAGES)):
        mixed = prepared(model, images, lambda _: (bits, 8))
        for place, (_, layer) in enumerate(quantizable_layers(mixed)):
            if place % 2:
                layer.weight_quantizer = uniform(layer.weight, bits, symmetric=False)
        assert difference(mixed, images).largest <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": False},
        {"symmetric": False, "w_symmetric": False},
        {"w_granularity": "tensor", "w_power_of_two": True, "power_of_two": True},
        {"rounding": "floor"},
    ],
    ids=("zero points", "zero points of weights too", "powers of two, per tensor", "rounded down"),
)
@pytest.mark.parametrize("bits", [2, 8])
def test_every_kind_of_uniform_grid(mobile: nn.Module, options: dict[str, Any], bits: int) -> None:
    assert difference(prepared(mobile, IMAGES, lambda _: (bits, bits), **options), IMAGES).largest <= 1


def test_schemes_whose_codes_have_scales() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    for bits in (2, 4, 8):
        for weights in (LSQQuantizer(layer.weight, bits), DoReFaWeights(layer.weight, bits, granularity="tensor")):
            inputs = LSQQuantizer(IMAGES, bits, granularity="tensor")
            assert difference(nn.Sequential(quantized_like(layer, weights, inputs)), IMAGES).largest <= 1


def test_sixteen_bit_activations_are_summed_in_64_bits() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(64, 4, 5), nn.Flatten(), nn.Linear(16, 3)), torch.randn(2, 64, 6, 6)
    reference = insert_value_grids(prepared(model, images, lambda _: (8, 16)), [images])
    network = integer_network(reference)
    assert network.body.get_submodule("0").sum_dtype == torch.int64
    assert network.body.get_submodule("2").sum_dtype == torch.int32, "16 products of 24 bits fit"
    result = compare(reference, network, images)
    assert result.largest <= 1
    assert result.logits <= 4


def test_eight_bit_values_between_layers(digits: nn.Module) -> None:
    model = prepared(digits, DIGITS, lambda _: (8, 8))
    assert difference(model, DIGITS, value_bits=8).largest <= 1
    network = convert(model, [DIGITS], value_bits=8)
    assert {codes.grid.bits for codes in network.codes.values()} == {8}


class Everything(nn.Module):
    """Has every supported operation, written in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.twice, self.even = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, (1, 3), groups=2)
        self.pool, self.average, self.act = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.Hardtanh(-0.4, 0.7)
        self.drop, self.flat, self.mid = nn.Dropout(), nn.Flatten(), nn.Linear(32, 16)
        self.leave = nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0) * 0.5
        x = self.act(self.norm(self.enter(x)))
        a = self.twice(self.pool(x)).relu()
        b = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
        c = torch.add(a, b)
        c += F.max_pool2d(F.relu6(b), 3, stride=1, padding=1)
        c = torch.cat([c[:, 4:], F.pad(F.hardtanh(a)[:, :4, 1:, 1:], (1, 0, 1, 0))], dim=1)
        d = self.even(F.pad(self.twice(c), (1, 1))).clamp(min=-0.5)
        d = self.drop(self.average(d))
        e = F.adaptive_avg_pool2d(d, 1) + d.mean((-2, -1), keepdim=True)
        y = torch.relu(self.mid((d + e).view(d.size(0), -1)[:, :32]))
        y = y.reshape(y.shape[0], -1).contiguous()
        logits: Tensor = self.leave(self.flat(y))
        return logits


@pytest.fixture(scope="module")
def everything() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Everything())


@pytest.mark.parametrize("widths", [(8, 8), (3, 2), (1, 1), (8, 16)])
@pytest.mark.parametrize("value_bits", [8, 16, 20])
def test_every_operation_that_is_known(everything: nn.Module, widths: Widths, value_bits: int) -> None:
    images = IMAGES[:, :, :8, :8]
    result = difference(prepared(everything, images, lambda _: widths), images, value_bits)
    assert result.largest <= 1
    assert len(result.operations) > 20


class _Types(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen += [(str(func), r.dtype) for r in (result, *args) if isinstance(r, Tensor)]
        return result


class _Watch(fx.Interpreter):
    """Collects the types of all tensors that operations on codes read or produce, including those inside modules."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network.body)
        self.watched = {name for name in network.codes if not name.endswith("quantize")}
        self.seen: list[tuple[str, torch.dtype]] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.watched:
            return super().run_node(n)
        self.watched.remove(n.name)
        with _Types() as types:
            result = super().run_node(n)
        self.seen += types.seen
        return result


@pytest.mark.parametrize("widths", [(8, 8), (1, 1), (8, 16)])
def test_no_floating_point_between_image_and_logits(
    digits: nn.Module, mobile: nn.Module, everything: nn.Module, widths: Widths
) -> None:
    for model, images in ((digits, DIGITS), (mobile, IMAGES), (everything, IMAGES[:, :, :8, :8])):
        network = convert(prepared(model, images, lambda _: widths), [images])
        watch = _Watch(network)
        logits = watch.run(images)
        assert logits.dtype == torch.float32
        assert not watch.watched, "every operation ran"
        assert len(watch.seen) > 100
        assert not [(name, kind) for name, kind in watch.seen if kind.is_floating_point]


def test_integer_logits_follow_the_float_network(mobile: nn.Module) -> None:
    network = convert(prepared(mobile, IMAGES, lambda _: (8, 8)), [IMAGES])
    with torch.no_grad():
        expected = mobile(IMAGES)
    assert (network(IMAGES) - expected).abs().max() < 0.05 * expected.abs().max()


def test_state_is_integers_and_two_scales(mobile: nn.Module) -> None:
    model = prepared(mobile, IMAGES, lambda _: (4, 4))
    before = model(IMAGES)
    network = convert(model, [IMAGES])
    assert torch.equal(model(IMAGES), before), "the prepared network is untouched"
    floats = [name for name, values in network.state_dict().items() if values.is_floating_point()]
    assert len(floats) == 2
    assert all(name.endswith("quantize.scale") for name in floats)
    twin = copy.deepcopy(network)
    for values in network.state_dict().values():
        values.zero_()
    assert not torch.equal(network(IMAGES), twin(IMAGES))
    network.load_state_dict(twin.state_dict())
    assert torch.equal(network(IMAGES), twin(IMAGES))


# Errors


class Levels(Quantizer):
    """Has a codebook, not a scale."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        return x

    def encode(self, x: Tensor) -> QuantizedTensor:
        levels = torch.tensor([[-1.0, 0.0, 0.25, 1.0]])
        return QuantizedTensor(torch.zeros_like(x, dtype=torch.int32), 2, "tensor", codebook=levels)


class Bend(nn.Module):
    """A layer, followed by an operation from the test."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last, self.then = nn.Conv2d(3, 4, 3), nn.Linear(10, 2), then
        self.offset, self.norm = nn.Parameter(torch.ones(1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.then is None:
            y = self.norm(torch.relu(self.layer(x)))
        elif self.then is torch.add:
            y = self.layer(x) + self.offset
        else:
            y = self.then(self.layer(x))
        logits: Tensor = self.last(y)
        return logits


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (torch.sigmoid, "operation 'sigmoid' .sigmoid. cannot be computed with integers"),
        (lambda y: y * 2.0, "operation 'mul' .mul. cannot"),
        (lambda y: y + 1.0, "adds 1.0; integers add two tensors"),
        (lambda y: y.mean(1, keepdim=True), "is over dimensions 1; integers average over .2, 3."),
        (lambda y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False), "windows of different sizes"),
        (
            lambda y: F.pad(y[..., 1:-1, 1:-1], (1, 1, 1, 1), mode="reflect"),
            "'reflect' with None; integers pad with constant zeros",
        ),
        (torch.add, "reads the parameter 'offset', which has no widths"),
        (None, "batch norm 'norm' must have running statistics and follow a layer"),
    ],
)
def test_operations_without_an_integer_counterpart(then: Any, message: str) -> None:
    model = Bend(then)
    model.layer = quantized_like(model.layer, uniform(model.layer.weight, 8), uniform(IMAGES, 8, granularity="tensor"))
    model.last = quantized_like(model.last, uniform(model.last.weight, 8), uniform(IMAGES, 8, granularity="tensor"))
    with pytest.raises(ModelError, match=message):
        convert(model, [IMAGES])


def test_layers_that_integers_cannot_compute() -> None:
    grid = uniform(IMAGES, 8, granularity="tensor")
    layer = nn.Conv2d(3, 4, 3)
    weights = uniform(layer.weight, 8)
    for model, message in (
        (layer, "layer '0' has weights in floating point; give it w_bits and a_bits"),
        (quantized_like(layer, weights, nn.Identity()), "layer '0' has inputs in floating point"),
        (
            quantized_like(layer, Levels(4, "tensor", True), grid),
            "has weights on the grid of a Levels; integer",
        ),
        (quantized_like(layer, weights, Levels(2, "tensor", True)), "layer '0' has inputs on the grid of a Levels"),
        (quantized_like(layer, weights, uniform(IMAGES, 8)), "inputs on the grid of a UniformQuantizer per channel;"),
        (quantized_like(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), weights, grid), "pads with 'circular'"),
        (nn.ReLU(), "no quantized layer"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(nn.Sequential(model), [IMAGES])


def test_wrong_calls(mobile: nn.Module) -> None:
    model = prepared(mobile, IMAGES, lambda _: (8, 8))
    with pytest.raises(ConfigError, match="value_bits=4: .* 8 to 20 bits"):
        convert(model, [IMAGES], value_bits=4)
    with pytest.raises(DataError, match="convert needs batches"):
        convert(model, [])
    with pytest.raises(ModelError, match=r"average of \(5, 6\) values, but .* converted for \(6, 6\)"):
        convert(model, [IMAGES])(IMAGES[:, :, :10])
