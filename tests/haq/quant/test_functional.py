"""Golden values: MIT 6.5940, Fall 2023, lecture 6 (its 4×4 example matrix), recomputed in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haq.quant.functional import dequantize, integer_range, minmax_scale, mse_scale, quantize

W = torch.tensor(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
)

bits = st.integers(1, 8)
signs = st.booleans()
matrices = arrays("float32", (3, 7), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)


def test_golden_two_bits_per_tensor() -> None:
    scale = minmax_scale(W.reshape(1, -1), 2, signed=True)
    codes = quantize(W, scale, 2, signed=True)
    assert scale.item() == pytest.approx(2.12)
    assert codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 1, 1]]
    assert torch.linalg.norm(W - dequantize(codes, scale)).item() == pytest.approx(2.2846, abs=1e-4)


def test_golden_two_bits_per_channel() -> None:
    scale = minmax_scale(W, 2, signed=True)[:, None]
    codes = quantize(W, scale, 2, signed=True)
    assert scale[:, 0].tolist() == pytest.approx([2.09, 2.12, 1.92, 1.87])
    assert codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, -1], [1, 0, 1, 1]]
    assert torch.linalg.norm(W - dequantize(codes, scale)).item() == pytest.approx(2.0795, abs=1e-4)


def test_golden_one_bit_is_binary_with_scale() -> None:
    scale = mse_scale(W.reshape(1, -1), 1, signed=True)
    codes = quantize(W, scale, 1, signed=True)
    assert scale.item() == pytest.approx(1.04875)
    assert set(codes.flatten().tolist()) == {-1, 1}
    assert codes[3, 1] == 1, "sign(0) is +1"
    assert ((W - dequantize(codes, scale)) ** 2).sum().item() == pytest.approx(9.2452, abs=1e-4)


@given(x=matrices, width=bits, signed=signs)
def test_codes_stay_in_range(x: torch.Tensor, width: int, signed: bool) -> None:
    low, high = integer_range(width, signed)
    codes = quantize(x, minmax_scale(x, width, signed)[:, None], width, signed)
    assert low <= int(codes.min()) <= int(codes.max()) <= high
    assert codes.unique().numel() <= 2**width


@given(x=matrices, width=st.integers(2, 8))
def test_error_is_at_most_half_a_step_inside_the_range(x: torch.Tensor, width: int) -> None:
    scale = minmax_scale(x, width, signed=True)[:, None]
    error = (x - dequantize(quantize(x, scale, width, signed=True), scale)).abs()
    assert bool((error <= 0.5 * scale * (1 + 1e-4)).all())


@given(x=matrices, width=bits, signed=signs)
def test_values_on_the_grid_come_back_unchanged(x: torch.Tensor, width: int, signed: bool) -> None:
    scale = minmax_scale(x, width, signed)[:, None]
    codes = quantize(x, scale, width, signed)
    assert torch.equal(quantize(dequantize(codes, scale), scale, width, signed), codes)


@given(x=matrices, width=bits, signed=signs)
def test_the_best_clip_is_no_worse_than_none(x: torch.Tensor, width: int, signed: bool) -> None:
    def error(scale: torch.Tensor) -> torch.Tensor:
        step = scale[:, None]
        return ((x - dequantize(quantize(x, step, width, signed), step)) ** 2).mean(1)

    assert bool((error(mse_scale(x, width, signed)) <= error(minmax_scale(x, width, signed)) * 1.001 + 1e-9).all())


@pytest.mark.parametrize(("width", "clip"), [(2, 2.83), (3, 3.90), (4, 5.03)])
def test_best_clip_of_a_laplace_distribution(width: int, clip: float) -> None:
    """ACIQ's analytic optimum (Banner et al. 2019, arXiv:1810.05723), for half of a symmetric distribution.

    A folded Laplace quantized to unsigned `width` bits has the step that the two-sided one has at one bit more.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.empty(400_000).exponential_(generator=generator)
    signed = torch.cat([sample, -sample])
    found = mse_scale(signed[None], width, signed=True, candidates=181).item() * (2**width - 1) / 2
    assert found == pytest.approx(clip, rel=0.15), "ACIQ approximates the rounding error as uniform"


def test_a_channel_of_zeros_gets_a_positive_scale() -> None:
    zeros = torch.zeros(2, 5)
    for width in (1, 2, 8):
        assert bool((mse_scale(zeros, width, signed=True) > 0).all())
