import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from haq.errors import HardwareError
from haq.hwmodels.kernels.bitserial import BitSerialLayer

ALL_WIDTHS = [(w, a) for w in range(1, 9) for a in range(1, 9)]

# weights, input, and how the window moves: no size a multiple of 64 words or of a tile
SHAPES = [
    ((5, 130), (3, 130), {}),
    ((17, 1), (1, 1), {}),
    ((18, 19, 3, 2), (2, 7, 6, 19), {"stride": (2, 1), "padding": (1, 2)}),
    ((3, 70, 3, 3), (1, 5, 5, 70), {"padding": (1, 1), "dilation": (2, 1)}),
    ((2, 5, 1, 3), (2, 3, 9, 5), {"dilation": (1, 3), "stride": (1, 2)}),
    ((1, 64, 1, 1), (1, 1, 1, 64), {}),
    ((8, 3, 3, 3), (1, 6, 5, 6), {"groups": 2, "padding": (1, 1)}),
    ((6, 1, 3, 3), (1, 4, 4, 3), {"groups": 3}),
    ((19, 1, 3, 3), (2, 6, 5, 19), {"groups": 19, "padding": (1, 1), "stride": (1, 2)}),
]


@pytest.mark.parametrize(("w_bits", "a_bits"), ALL_WIDTHS)
def test_accumulators_are_exact(backend, generator, random_weights, reference, w_bits, a_bits):
    for signed in (True, False):
        for weight_shape, shape, window in SHAPES:
            weights = random_weights(generator, weight_shape, w_bits, signed)
            codes = generator.integers(0, 2**a_bits, shape).astype(np.uint8)
            zero_point = int(generator.integers(0, 2**a_bits))
            layer = BitSerialLayer(
                weights, w_bits, a_bits, signed_weights=signed, a_zero_point=zero_point, backend=backend, **window
            )
            found = layer.accumulate(codes)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, reference(codes, weights, zero_point, **window))


@pytest.mark.parametrize("a_bits", [1, 4, 8])
@pytest.mark.parametrize("w_bits", range(1, 9))
def test_zero_points_of_weights_are_exact(backend, generator, random_affine, reference, w_bits, a_bits):
    for signed in (True, False):
        for weight_shape, shape, window in SHAPES:
            weights, zeros = random_affine(generator, weight_shape, w_bits, signed)
            codes = generator.integers(0, 2**a_bits, shape).astype(np.uint8)
            zero_point = int(generator.integers(0, 2**a_bits))
            layer = BitSerialLayer(
                weights, w_bits, a_bits, signed, zero_point, w_zero_points=zeros, backend=backend, **window
            )
            shifted = weights - zeros.reshape(-1, *[1] * (weights.ndim - 1))
            np.testing.assert_array_equal(layer.accumulate(codes), reference(codes, shifted, zero_point, **window))


def test_output_with_zero_points_is_requantized_in_float32(backend, generator, random_affine):
    for weight_shape, shape, window in SHAPES:
        weights, zeros = random_affine(generator, weight_shape, 3, True)
        scale, bias = (generator.normal(size=len(weights)).astype(np.float32) for _ in range(2))
        layer = BitSerialLayer(
            weights, 3, 3, a_zero_point=2, scale=scale, bias=bias, a_scale=0.25, w_zero_points=zeros, backend=backend,
            **window,
        )  # fmt: skip
        x = generator.normal(0, 0.5, shape).astype(np.float32)
        codes = np.clip(np.rint(x * np.float32(4)) + 2, 0, 7).astype(np.uint8)
        np.testing.assert_array_equal(layer(x), layer.accumulate(codes).astype(np.float32) * scale + bias)


@pytest.mark.parametrize("zero", [-128, 127])
def test_the_largest_products_with_zero_points_do_not_wrap_around(backend, zero):
    weight = 127 if zero < 0 else -128
    reduction = (2**31 - 1) // (255 * 255)
    arguments = np.full((1, reduction), weight), 8, 8
    layer = BitSerialLayer(*arguments, w_zero_points=[zero], backend=backend)
    codes = np.full((1, reduction), 255, np.uint8)
    assert layer.accumulate(codes).item() == (weight - zero) * 255 * reduction
    with pytest.raises(HardwareError, match=f"K={reduction + 1} at w_bits=8, a_bits=8 can sum up to .*, beyond int32"):
        BitSerialLayer(np.full((1, reduction + 1), weight), 8, 8, w_zero_points=[zero], backend=backend)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), w_bits=st.integers(1, 8), a_bits=st.integers(1, 8), signed=st.booleans())
def test_random_convolutions_are_exact(backend, random_weights, reference, data, w_bits, a_bits, signed):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    groups = data.draw(st.integers(1, 3))
    size = [d * (k - 1) + 1 + extra for d, k, extra in zip(dilation, kernel, pair(0, 6), strict=True)]
    channels, filters = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 20))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = random_weights(generator, (filters * groups, channels, *kernel), w_bits, signed)
    codes = generator.integers(0, 2**a_bits, (data.draw(st.integers(1, 2)), *size, channels * groups)).astype(np.uint8)
    zero_point = data.draw(st.integers(0, 2**a_bits - 1))
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = BitSerialLayer(weights, w_bits, a_bits, signed, zero_point, backend=backend, **window)
    np.testing.assert_array_equal(layer.accumulate(codes), reference(codes, weights, zero_point, **window))


@pytest.mark.parametrize(("w_bits", "a_bits", "signed"), [(8, 8, True), (8, 8, False), (1, 8, True), (4, 4, True)])
def test_the_largest_products_do_not_wrap_around(backend, w_bits, a_bits, signed):
    largest = 1 if w_bits == 1 else 2 ** (w_bits - 1) if signed else 2**w_bits - 1
    reduction = min((2**31 - 1) // (largest * (2**a_bits - 1)), 70000)
    sign = -1 if signed else 1
    layer = BitSerialLayer(np.full((1, reduction), sign * largest), w_bits, a_bits, signed, backend=backend)
    codes = np.full((1, reduction), 2**a_bits - 1, np.uint8)
    assert layer.accumulate(codes).item() == sign * largest * reduction * (2**a_bits - 1)


@pytest.mark.parametrize(("weight_shape", "shape", "window"), SHAPES)
def test_output_is_requantized_in_float32(backend, generator, random_weights, weight_shape, shape, window):
    weights = random_weights(generator, weight_shape, 4, True)
    scale, bias = (generator.normal(size=len(weights)).astype(np.float32) for _ in range(2))
    layer = BitSerialLayer(
        weights, 4, 3, a_zero_point=2, scale=scale, bias=bias, a_scale=0.25, backend=backend, **window
    )
    x = generator.normal(0, 0.5, shape).astype(np.float32)
    codes = np.clip(np.rint(x * np.float32(4)) + 2, 0, 7).astype(np.uint8)
    y = layer(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, layer.accumulate(codes).astype(np.float32) * scale + bias)


def test_agrees_with_a_fake_quantized_convolution(generator):
    weights = generator.integers(-8, 8, (20, 12, 3, 3))
    x = generator.normal(size=(2, 9, 9, 12)).astype(np.float32)
    layer = BitSerialLayer(weights, 4, 4, a_zero_point=7, padding=(1, 1), stride=(2, 2), a_scale=0.3, scale=[0.06] * 20)
    fake = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x).permute(0, 3, 1, 2), 0.3, 7, 0, 15)
    expected = F.conv2d(fake, torch.from_numpy(weights * 0.2).float(), padding=1, stride=2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(layer(x), expected.numpy(), atol=1e-4)


def test_shapes_alternate_and_results_stay(generator):
    layer = BitSerialLayer(generator.integers(-2, 2, (4, 8, 3, 3)), 2, 2, padding=(1, 1))
    small, large = (generator.random((1, size, size, 8)).astype(np.float32) for size in (4, 6))
    first, other = layer(small), layer(large)
    kept = first.copy()
    np.testing.assert_array_equal(layer(np.asfortranarray(small)), kept)
    layer(np.zeros_like(small))
    np.testing.assert_array_equal(first, kept)
    out = np.empty_like(other)
    assert layer(large, out=out) is out
    np.testing.assert_array_equal(out, other)


def test_a_call_costs_microseconds():
    layer, x = BitSerialLayer(np.ones((4, 8), int), 2, 2), np.zeros((1, 8), np.float32)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - start)
    assert min(times) < 20e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w_bits": 9}, "layer 'fc': w_bits=9; bit-serial kernels take 1 to 8"),
        ({"a_bits": 0}, "layer 'fc': a_bits=0; bit-serial kernels take 1 to 8"),
        ({"codes": [[9]]}, "weights lie between 9 and 9; w_bits=4 allows -8 to 7"),
        ({"codes": [[0, 1]], "w_bits": 1}, "weights lie between 0 and 1; w_bits=1 allows -1 or 1"),
        ({"codes": [[0.5]]}, "weights are float64 of shape (1, 1); give integers"),
        ({"codes": [1]}, "weights are int64 of shape (1,); give integers"),
        ({"groups": 2}, "groups=2 does not divide 1 output channels"),
        ({"a_zero_point": 16}, "a_zero_point=16 is not a code of a_bits=4; give 0 to 15"),
        (
            {"w_zero_points": [0, 1]},
            "w_zero_points are int64 of shape (2,); give an integer for each of 1 output channels",
        ),
        ({"w_zero_points": [0.5]}, "w_zero_points are float64 of shape (1,); give an integer for each of 1 output"),
        ({"w_zero_points": [8]}, "w_zero_points lie between 8 and 8; w_bits=4 allows -8 to 7"),
        (
            {"codes": [[0, 1]], "w_bits": 1, "w_zero_points": [0]},
            "weights lie between 0 and 1; w_bits=1 allows -1 to 0",
        ),
        ({"scale": [1, 2]}, "scale of shape (2,); give one for each of 1 output channels"),
        ({"a_scale": 0.0}, "a_scale=0.0 must be positive"),
        ({"a_scale": float("nan")}, "a_scale=nan must be positive"),
        ({"a_scale": 1e-40}, "a_scale=1e-40 must be positive, and it and its inverse finite in float32"),
        ({"stride": (0, 1)}, "stride=(0, 1) must be two numbers of at least 1"),
        ({"padding": (0, -1)}, "padding=(0, -1) must be two numbers of at least 0"),
        ({"backend": "gpu"}, "backend='gpu': this CPU runs"),
    ],
)
def test_wrong_arguments_are_one_line(change, said):
    with pytest.raises(HardwareError) as error:
        BitSerialLayer(**{"codes": [[1, 2]], "w_bits": 4, "a_bits": 4, "name": "fc", **change})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_accumulators_beyond_int32_are_refused():
    reduction = (2**31 - 1) // (128 * 255) + 1
    said = f"layer 'fc1': K={reduction} at w_bits=8, a_bits=8 can sum up to {reduction * 128 * 255}, beyond int32;"
    with pytest.raises(HardwareError) as error:
        BitSerialLayer(np.zeros((1, reduction), int), 8, 8, name="fc1")
    assert str(error.value).startswith(said)
    BitSerialLayer(np.zeros((1, reduction), int), 8, 8, a_zero_point=128)  # codes from −128 to 127


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda layer: layer(np.zeros((1, 4, 4, 3), np.float32)), "give (N, H, W, 2), channels last"),
        (lambda layer: layer(np.zeros((1, 2), np.float32)), "input of shape (1, 2)"),
        (lambda layer: layer(np.zeros((0, 4, 4, 2), np.float32)), "input of shape (0, 4, 4, 2)"),
        (lambda layer: layer(np.zeros((1, 2, 4, 2), np.float32)), "kernel (3, 3) does not fit into an input of shape"),
        (lambda layer: layer.accumulate(np.zeros((1, 4, 4, 2), int)), "codes of type int64; give uint8"),
        (lambda layer: layer.accumulate(np.full((1, 4, 4, 2), 4, np.uint8)), "code 4 needs more than a_bits=2"),
        (
            lambda layer: layer(np.zeros((1, 4, 4, 2), np.float32), out=np.zeros((1, 2, 2, 1))),
            "out is float64 of shape (1, 2, 2, 1); give a contiguous array of float32 and shape (1, 2, 2, 1)",
        ),
    ],
)
def test_wrong_inputs_are_one_line(call, said):
    layer = BitSerialLayer(np.zeros((1, 2, 3, 3), int), 2, 2, name="conv")
    with pytest.raises(HardwareError) as error:
        call(layer)
    assert str(error.value).startswith("layer 'conv': ")
    assert said in str(error.value)
