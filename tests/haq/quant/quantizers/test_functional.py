import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haq.quant.quantizers.functional import (
    affine_scale,
    integer_range,
    minmax_scale,
    mse_affine,
    mse_scale,
    quantize_affine,
    symmetric_scale,
)
from haq.quant.schemes import get_scheme

bits = st.integers(1, 8)
signs = st.booleans()
matrices = arrays("float32", (3, 7), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)


@given(x=matrices, width=bits, signed=signs)
def test_codes_stay_in_range(x: torch.Tensor, width: int, signed: bool) -> None:
    low, high = integer_range(width, signed)
    codes = quantize_affine(x, minmax_scale(x, width, signed)[:, None], width, signed)
    assert low <= int(codes.min()) <= int(codes.max()) <= high
    assert codes.unique().numel() <= 2**width


@given(x=matrices, width=st.integers(2, 8))
def test_error_is_at_most_half_a_step_inside_the_range(x: torch.Tensor, width: int) -> None:
    scale = minmax_scale(x, width, signed=True)[:, None]
    error = (x - quantize_affine(x, scale, width, signed=True) * scale).abs()
    assert bool((error <= 0.5 * scale * (1 + 1e-4)).all())


@given(x=matrices, width=bits, signed=signs)
def test_values_on_the_grid_come_back_unchanged(x: torch.Tensor, width: int, signed: bool) -> None:
    scale = minmax_scale(x, width, signed)[:, None]
    codes = quantize_affine(x, scale, width, signed)
    assert torch.equal(quantize_affine(codes * scale, scale, width, signed), codes)


@given(x=matrices, width=bits, signed=signs)
def test_the_best_clip_is_no_worse_than_none(x: torch.Tensor, width: int, signed: bool) -> None:
    def error(scale: torch.Tensor) -> torch.Tensor:
        step = scale[:, None]
        return ((x - quantize_affine(x, step, width, signed) * step) ** 2).mean(1)

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


@given(x=matrices, width=bits, signed=signs)
def test_asymmetric_grid_holds_zero_and_the_whole_range(x: torch.Tensor, width: int, signed: bool) -> None:
    scale, zero_point = affine_scale(x.amin(1), x.amax(1), width, signed)
    codes = quantize_affine(x, scale[:, None], width, signed, zero_point[:, None])
    assert codes.unique().numel() <= 2**width * len(x)
    assert torch.equal(
        quantize_affine(torch.zeros(3, 1), scale[:, None], width, signed, zero_point[:, None])[:, 0], zero_point
    )
    error = ((codes - zero_point[:, None]) * scale[:, None] - x).abs()
    assert bool((error <= scale[:, None] * 1.001).all()), "half a step, plus the rounding of the zero point"


@given(x=matrices, width=bits)
def test_the_best_asymmetric_clip_is_no_worse_than_none(x: torch.Tensor, width: int) -> None:
    def error(scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        codes = quantize_affine(x, scale[:, None], width, True, zero_point[:, None])
        return (((codes - zero_point[:, None]) * scale[:, None] - x) ** 2).mean(1)

    none = error(*affine_scale(x.amin(1), x.amax(1), width, True))
    assert bool((error(*mse_affine(x, width, True)) <= none * 1.001 + 1e-9).all())


@given(st.floats(0.01, 1000), st.integers(2, 8))
def test_power_of_two_scales_clip_nothing(largest: float, width: int) -> None:
    high = torch.tensor([largest])
    scale = symmetric_scale(-high, high, width, signed=True, power_of_two=True)
    exponent = torch.log2(scale).item()
    assert exponent == round(exponent)
    assert largest * (1 - 1e-4) <= scale.item() * (2 ** (width - 1) - 1) < 2 * largest * (1 + 1e-4)


def test_rounding_down() -> None:
    x, scale = torch.tensor([-0.6, -0.5, 0.4, 0.99, 1.0]), torch.tensor([0.5])
    assert quantize_affine(x, scale, 4, signed=True, rounding="floor").tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("scheme", ["linear", "asymmetric", "power-of-two", "lsq", "ristretto", "nested"])
def test_groups_of_zeros_share_the_largest_scale_and_small_ones_keep_theirs(scheme: str) -> None:
    """An integer kernel stores a bias in steps of S_w·S_x, which must not be nearly 0."""
    torch.manual_seed(0)
    weight = torch.randn(6, 32) * torch.tensor([1.0, 0.5, 1e-4, 1e-8, 0.0, 1e-42])[:, None]
    quantizer = get_scheme(scheme).with_options(granularity="channel").weight_quantizer(weight, 8)
    stored = quantizer.encode(weight)
    assert stored.scale is not None
    assert (stored.scale[4:] == stored.scale.amax()).all()
    assert (stored.dequantize()[4:] == 0).all()
    sizes = weight[:4].abs().amax(1)
    assert ((stored.dequantize()[:4] - weight[:4]).abs().amax(1) < 0.3 * sizes).all(), "relative to its own size"
    nothing = get_scheme(scheme).input_quantizer(torch.zeros(4, 8), 8)
    assert float(nothing.encode(torch.zeros(4, 8)).scale) > 1e-4  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(300, 1000), (7, 60_000)])
def test_rows_of_large_weights_are_searched_apart_with_the_same_result(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    apart = [torch.cat(found) for found in zip(*(mse_affine(row[None], 3, signed=True) for row in x[:4]), strict=True)]
    assert torch.equal(
        mse_scale(x, 3, signed=True)[:4], torch.cat([mse_scale(row[None], 3, signed=True) for row in x[:4]])
    )
    scale, zero_point = mse_affine(x, 3, signed=True)
    torch.testing.assert_close(scale[:4], apart[0])
    assert torch.equal(zero_point[:4], apart[1])
