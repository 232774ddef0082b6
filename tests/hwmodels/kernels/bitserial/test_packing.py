import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haq.hwmodels.kernels.bitserial import packing
from haq.hwmodels.kernels.bitserial.packing import SLACK, pack, pack_weights, quantize
from haq.hwmodels.kernels.bitserial.plan import Layout
from haq.quant.quantizers.functional import quantize_affine

FLOATS = st.floats(width=32, allow_nan=False)


def codes_of(values, scale, zero_point, bits):
    x = np.asarray(values, np.float32).reshape(1, 1, -1)
    codes = np.zeros(x.shape, np.uint8)
    inverse = np.float32(1) / np.float32(scale)
    quantize(x, codes, inverse, np.float32(zero_point), np.float32(2**bits - 1), 0, 0)
    return codes.ravel()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(FLOATS | st.integers(-600, 600).map(lambda half: half / 2), min_size=1, max_size=40),
    scale=st.sampled_from([1.0, 0.5, 0.1, 1 / 3, 7e-4, 1e-30]),
    bits=st.integers(1, 8),
    data=st.data(),
)
def test_codes_are_those_of_the_quantizers(values, scale, bits, data):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    step, zero = torch.tensor(scale), torch.tensor(zero_point)
    expected = quantize_affine(torch.tensor(values, dtype=torch.float32), step, bits, False, zero)
    np.testing.assert_array_equal(codes_of(values, scale, zero_point, bits), expected.numpy())


def test_codes_are_those_of_fused_fake_quantization(generator):
    x = torch.from_numpy(generator.normal(0, 40, 10000).astype(np.float32))
    fake = torch.fake_quantize_per_tensor_affine(x, 0.3, 100, 0, 255)
    codes = codes_of(x.numpy(), 0.3, 100, 8)
    np.testing.assert_array_equal((codes.astype(np.float32) - 100) * np.float32(0.3), fake.numpy())


def test_ties_go_to_even_and_nan_to_zero():
    # an odd zero point must not change which way a tie goes
    np.testing.assert_array_equal(codes_of([0.5, 1.5, 2.5, -0.5, -1.5], 1.0, 3, 4), [3, 5, 5, 3, 1])
    np.testing.assert_array_equal(codes_of([np.nan, np.inf, -np.inf], 1.0, 3, 4), [0, 15, 0])


def test_quantize_leaves_the_padding_alone():
    codes = np.full((1, 4, 6), 9, np.uint8)
    quantize(np.ones((1, 2, 3), np.float32), codes, np.float32(1), np.float32(0), np.float32(15), 1, 2)
    assert (codes[0, 1:3, 2:5] == 1).all()
    assert codes.sum() == 6 + 9 * 18


def planes_of(codes, bits):
    """Bit planes by NumPy: `(rows, bits, words)` of `(rows, n)` codes."""
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 64)))
    return np.stack([np.packbits(filled >> i & 1, axis=1, bitorder="little").view(np.uint64) for i in range(bits)], 1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4), positions=st.integers(1, 5), step=st.integers(1, 70), length=st.integers(1, 200),
    bits=st.integers(1, 8),
)  # fmt: skip
@example(rows=1, positions=1, step=1, length=64, bits=8)
def test_pack_equals_numpy(rows, positions, step, length, bits):
    row_codes = (positions - 1) * step + length
    codes = np.random.default_rng(0).integers(0, 256, rows * row_codes + SLACK, np.uint8)  # the upper bits are ignored
    planes = np.zeros((rows * positions, bits, -(-length // 64)), np.uint64)
    sums = np.zeros(len(planes), np.int32)
    pack(codes, planes, sums, rows, row_codes, step, length)
    starts = [row * row_codes + column * step for row in range(rows) for column in range(positions)]
    runs = np.stack([codes[start : start + length] for start in starts])
    np.testing.assert_array_equal(planes, planes_of(runs, bits))
    np.testing.assert_array_equal(sums, (runs & 2**bits - 1).sum(1))


@pytest.mark.parametrize("chunk", [16, 32, 64])
def test_bits_are_gathered_by_vectors_of_any_size(monkeypatch, generator, chunk):
    monkeypatch.setattr(packing, "_chunk", lambda: chunk)
    codes = generator.integers(0, 256, 100 + SLACK, np.uint8)
    planes, sums = np.zeros((1, 8, 2), np.uint64), np.zeros(1, np.int32)
    numba.njit(pack.py_func)(codes, planes, sums, 1, 100, 100, 100)
    np.testing.assert_array_equal(planes, planes_of(codes[None, :100], 8))


def test_weights_by_hand():
    # two groups of one channel with taps 1, 2, 3: bits 1 and 2 of plane 0, bits 2 and 3 of plane 1; two lanes
    codes = np.array([1, 2, 3, 3, 2, 1], np.uint8).reshape(2, 1, 1, 3)
    planes = pack_weights(codes, Layout(1, (1, 3), groups=2), w_bits=2, channels=2)
    assert planes.shape == (2, 2 * 3 + 1, 2)
    np.testing.assert_array_equal(planes[0, :, 0], [1, 0, 1, 0, 1, 1, 0])  # a run for each tap: not joined
    np.testing.assert_array_equal(planes[1, :, 0], [1, 0, 1, 1, 1, 0, 0])
    assert not planes[:, :, 1].any()
    joined = pack_weights(codes[:1], Layout(1, (1, 3)), w_bits=2, channels=1)
    np.testing.assert_array_equal(joined.ravel(), [0b101, 0b110, 0])
