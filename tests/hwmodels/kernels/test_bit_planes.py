import copy
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from haq.cli.main import cli
from haq.errors import HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.kernels.bit_planes import PlaneLayer
from haq.hwmodels.kernels.bitserial import BitSerialLayer
from haq.hwmodels.kernels.bitserial.definition import define
from haq.hwmodels.kernels.deployment import BitSerialModule, deploy
from haq.hwmodels.measuring import Plan, measure
from haq.layers import trace
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.preparation import prepare

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
WIDTHS = [(1, 1), (1, 8), (8, 1), (2, 2), (3, 5), (4, 4), (5, 2), (6, 7), (7, 3), (8, 8)]

# weights, input, and how the window moves: below, at and above what matrix units take at once
SHAPES = [
    ((5, 130), (3, 130), {}),
    ((16, 32), (17, 32), {}),
    ((1, 1), (1, 1), {}),
    ((18, 19, 3, 2), (2, 7, 6, 19), {"stride": (2, 1), "padding": (1, 2)}),
    ((3, 70, 3, 3), (1, 5, 5, 70), {"padding": (1, 1), "dilation": (2, 1)}),
    ((2, 5, 1, 3), (2, 3, 9, 5), {"dilation": (1, 3), "stride": (1, 2)}),
    ((16, 16, 1, 1), (2, 4, 4, 16), {}),
    ((8, 3, 3, 3), (1, 6, 5, 6), {"groups": 2, "padding": (1, 1)}),
    ((6, 1, 3, 3), (1, 4, 4, 3), {"groups": 3}),
    ((19, 1, 3, 3), (2, 6, 5, 19), {"groups": 19, "padding": (1, 1), "stride": (1, 2)}),
]


def plane_layer(*arguments: Any, device: str = "cpu", **options: Any) -> PlaneLayer:
    return PlaneLayer(*define(*arguments, **options)).to(device)


def accumulated(layer: PlaneLayer, codes: np.ndarray, device: str = "cpu") -> np.ndarray:
    sums = layer.accumulate(torch.from_numpy(codes).to(device))
    assert sums.dtype == torch.int32
    assert sums.device.type == device
    return sums.cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("w_bits", "a_bits"), WIDTHS)
def test_accumulators_are_exact(generator, random_weights, reference, w_bits, a_bits, device):
    for signed in (True, False):
        for weight_shape, shape, window in SHAPES:
            weights = random_weights(generator, weight_shape, w_bits, signed)
            codes = generator.integers(0, 2**a_bits, shape).astype(np.uint8)
            zero_point = int(generator.integers(0, 2**a_bits))
            layer = plane_layer(weights, w_bits, a_bits, signed, zero_point, device=device, **window)
            np.testing.assert_array_equal(
                accumulated(layer, codes, device), reference(codes, weights, zero_point, **window)
            )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("w_bits", "a_bits"), WIDTHS)
def test_zero_points_of_weights_are_exact(generator, random_affine, reference, w_bits, a_bits, device):
    for signed in (True, False):
        for weight_shape, shape, window in SHAPES:
            weights, zeros = random_affine(generator, weight_shape, w_bits, signed)
            codes = generator.integers(0, 2**a_bits, shape).astype(np.uint8)
            zero_point = int(generator.integers(0, 2**a_bits))
            layer = plane_layer(
                weights, w_bits, a_bits, signed, zero_point, device=device, w_zero_points=zeros, **window
            )
            shifted = weights - zeros.reshape(-1, *[1] * (weights.ndim - 1))
            np.testing.assert_array_equal(
                accumulated(layer, codes, device), reference(codes, shifted, zero_point, **window)
            )


@settings(max_examples=40, deadline=None)
@given(data=st.data(), w_bits=st.integers(1, 8), a_bits=st.integers(1, 8), signed=st.booleans())
def test_random_convolutions_are_exact(random_weights, reference, data, w_bits, a_bits, signed):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    groups, channels, filters = (data.draw(st.integers(1, most)) for most in (3, 40, 12))
    size = [d * (k - 1) + 1 + extra for d, k, extra in zip(dilation, kernel, pair(0, 6), strict=True)]
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = random_weights(generator, (filters * groups, channels, *kernel), w_bits, signed)
    codes = generator.integers(0, 2**a_bits, (data.draw(st.integers(1, 2)), *size, channels * groups)).astype(np.uint8)
    zero_point = data.draw(st.integers(0, 2**a_bits - 1))
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = plane_layer(weights, w_bits, a_bits, signed, zero_point, **window)
    np.testing.assert_array_equal(accumulated(layer, codes), reference(codes, weights, zero_point, **window))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("w_bits", "a_bits", "signed", "zero_point"),
    [(8, 8, True, 0), (8, 8, False, 0), (8, 8, True, 128), (8, 8, False, 128), (1, 8, True, 0), (4, 4, True, 8)],
)
def test_the_largest_sums_do_not_wrap_around(w_bits, a_bits, signed, zero_point, device):
    """With codes of 255 that stand for 127, sums pass 2^31 before Z is subtracted, and come back."""
    top, largest = 2**a_bits - 1, 1 if w_bits == 1 else 2 ** (w_bits - 1) if signed else 2**w_bits - 1
    reduction = min((2**31 - 1) // (largest * max(top - zero_point, zero_point)), 140_000)
    weight = -largest if signed else largest
    layer = plane_layer(np.full((1, reduction), weight), w_bits, a_bits, signed, zero_point, device=device)
    for code in (0, top):
        codes = np.full((1, reduction), code, np.uint8)
        assert accumulated(layer, codes, device).item() == weight * reduction * (code - zero_point)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [514, 515])
def test_groups_whose_sums_need_more_than_float32_are_exact(channels, device):
    """2^24 / (128 · 255) = 514.008; one more product, and a sum next to the largest is no float32."""
    codes = np.full((1, 1, 1, 2 * channels), 255, np.uint8)
    codes[..., -1] = 254
    layer = plane_layer(np.full((2, channels, 1, 1), -128), 8, 8, groups=2, device=device)
    largest = -128 * 255 * channels
    assert accumulated(layer, codes, device).tolist() == [[[[largest, largest + 128]]]]
    odd = plane_layer(np.full((2, channels, 1, 1), -127), 8, 8, groups=2, device=device)
    assert accumulated(odd, codes, device).tolist() == [[[[-127 * 255 * channels, -127 * (255 * channels - 1)]]]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("weight_shape", "shape", "window"), SHAPES)
def test_output_equals_that_of_the_cpu_kernels(generator, random_weights, weight_shape, shape, window, device):
    weights = random_weights(generator, weight_shape, 4, True)
    scale, bias = (generator.normal(size=len(weights)).astype(np.float32) for _ in range(2))
    arguments = {"scale": scale, "bias": bias, "a_zero_point": 2, "a_scale": 0.3, **window}
    x = generator.normal(0, 1, shape).astype(np.float32)
    x.flat[0] = 0.45  # times 1 / 0.3 a tie, but for float32
    x.flat[-1] = 1e30
    y = plane_layer(weights, 4, 3, device=device, **arguments)(torch.from_numpy(x).to(device))
    assert y.dtype == torch.float32
    assert y.is_contiguous()  # channels last, which the next layer reads without a copy
    np.testing.assert_array_equal(y.cpu().numpy(), BitSerialLayer(weights, 4, 3, **arguments)(x))


@pytest.mark.parametrize(("weight_shape", "shape", "window"), [case for case in SHAPES if "groups" not in case[2]])
def test_one_product_of_a_kind_that_gpus_take(monkeypatch, generator, random_weights, weight_shape, shape, window):
    """What `_int_mm_out_cuda` in PyTorch's aten/src/ATen/native/cuda/Blas.cpp asks for; CPUs take anything."""
    seen = []
    multiply = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *matrices: seen.append(matrices) or multiply(*matrices))
    codes = torch.zeros(shape, dtype=torch.uint8)
    sums = plane_layer(random_weights(generator, weight_shape, 3, True), 3, 5, **window).accumulate(codes)
    ((left, right),) = seen
    assert left.dtype == right.dtype == torch.int8
    assert left.shape[0] > 16
    assert all(size % 16 == 0 for size in (*left.shape, *right.shape))
    assert left.is_contiguous()
    assert right.t().is_contiguous()
    assert left.shape[0] - 5 * sums[..., 0].numel() < 32
    assert right.shape[1] - 3 * weight_shape[0] < 16


def test_work_grows_with_both_widths(monkeypatch):
    work = {}
    multiply = torch._int_mm

    def product(left, right):
        work[w_bits, a_bits] = left.shape[0] * left.shape[1] * right.shape[1]
        return multiply(left, right)

    monkeypatch.setattr(torch, "_int_mm", product)
    for w_bits, a_bits in WIDTHS:
        layer = plane_layer(np.ones((32, 16, 3, 3), int), w_bits, a_bits, signed_weights=False, padding=(1, 1))
        layer.accumulate(torch.zeros(1, 8, 8, 16, dtype=torch.uint8))
    assert work == {(w, a): w * a * work[1, 1] for w, a in WIDTHS}


def test_any_layout_of_the_input_will_do(generator):
    layer = plane_layer(generator.integers(-2, 2, (4, 8, 3, 3)), 2, 2, padding=(1, 1))
    x = torch.rand(2, 8, 6, 5)
    expected = layer(x.permute(0, 2, 3, 1).contiguous())
    assert torch.equal(layer(x.permute(0, 2, 3, 1)), expected)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer)(x.permute(0, 2, 3, 1)), expected)


def test_nothing_of_a_layer_is_as_large_as_its_weights_in_int64():
    layer = plane_layer(np.zeros((64, 256), int), 2, 8)
    assert sum(buffer.nbytes for buffer in layer.buffers()) < 2 * 64 * 256 + 64 * 64


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_waits_for_the_program(monkeypatch, device):
    """Reading a value back, as `item` does, would stop the GPU's queue at every layer."""
    layer = plane_layer(np.ones((8, 8, 3, 3), int), 2, 2, device=device, padding=(1, 1))
    x = torch.rand(1, 8, 8, 8, device=device)

    def refuse(*_):
        raise AssertionError("a value was read back")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    layer(x)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w_bits": 9}, "w_bits=9; bit-serial kernels take 1 to 8"),
        ({"codes": [[9]]}, "weights lie between 9 and 9; w_bits=4 allows -8 to 7"),
        ({"a_zero_point": 16}, "a_zero_point=16 is not a code of a_bits=4; give 0 to 15"),
        ({"codes": np.zeros((1, 70_000), int), "w_bits": 8, "a_bits": 8}, "can sum up to 2284800000, beyond int32"),
    ],
)
def test_wrong_arguments_are_one_line(change, said):
    with pytest.raises(HardwareError) as error:
        plane_layer(**{"codes": [[1, 2]], "w_bits": 4, "a_bits": 4, "name": "fc", **change})
    assert str(error.value).startswith("layer 'fc': ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 4, 4, 3), "give (N, H, W, 2), channels last"), ((1, 2, 4, 2), "kernel (3, 3) does not fit into an input")],
)
def test_wrong_inputs_are_one_line(shape, said):
    with pytest.raises(HardwareError) as error:
        plane_layer(np.zeros((1, 2, 3, 3), int), 2, 2, name="conv")(torch.zeros(shape))
    assert str(error.value).startswith("layer 'conv': ")
    assert said in str(error.value)


def test_too_little_memory_is_one_line(monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    with pytest.raises(HardwareError) as error:
        plane_layer([[1, 2]], 4, 4, name="fc")(torch.zeros(3, 2))
    planes = "the bit planes of an input of shape (3, 2)"
    assert str(error.value) == f"layer 'fc': {planes} do not fit into the memory of cpu; use a smaller batch"


# In a network


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(self.pointwise(x)).amax((2, 3)))


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_computes_the_same_on_all_kernels(net, images, device):
    names = [layer.name for layer in trace(net, images[:1])]
    policy = BitPolicy({name: LayerBits(w, a) for name, w, a in zip(names, (2, 8, 1, 5), (8, 4, 3, 6), strict=True)})
    quantized = prepare(net, policy, calibration=calibrate(net, [images], (1, 2, 3, 4, 5, 6, 8)))
    with torch.inference_mode():
        expected = deploy(quantized, images[:1])(images)
        deployed = deploy(quantized, images[:1], "planes", device)
        found = deployed(images.to(device))
    assert [type(module.kernel) for module in deployed.modules() if isinstance(module, BitSerialModule)] == 4 * [
        PlaneLayer
    ]
    assert found.device.type == device
    assert expected.std() > 0.01
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_measured(tmp_path, net, images, device):
    layers = trace(net, images[:1])
    plan = Plan(layers, (2, 8), (3, 8), batch=2, repeats=6, device=device, backend="planes")
    table = measure(plan, net, images[:1], tmp_path / "journal", lambda done, total: None)
    assert table.layers == tuple(layer.name for layer in layers)
    assert table.version.endswith(", planes kernels")
    assert table.rest["latency_ms"] > 0
    assert (table.details["raw_latency_ms"] > 0).all()
    if device == "cuda":
        assert table.hardware == torch.cuda.get_device_name()
        assert table.provenance["features"].startswith("compute capability ")


@needs_cuda
def test_the_command_measures_a_gpu(tmp_path):
    path = tmp_path / "gpu.parquet"
    shown = command("measure", "--device", "cuda", "--bits", "2,8", "--repeats", "3", "-o", str(path))
    assert torch.cuda.get_device_name() in shown
    assert CostTable.load(path).hardware == torch.cuda.get_device_name()


def test_the_command_says_that_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError) as error:
        command("measure", "--device", "cuda", "-o", str(tmp_path / "gpu.parquet"))
    assert str(error.value) == "--device cuda: PyTorch sees no CUDA device here; use --device cpu"


def command(*arguments: str) -> str:
    return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).output
