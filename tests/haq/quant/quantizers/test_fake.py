import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.quant.quantizers.fake import fake_quantize
from haq.quant.quantizers.functional import Rounding, quantize_affine


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [None, 0])
def test_forward_is_codes_times_scale(bits: int, signed: bool, axis: int | None) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(5, 4, 3, 3, generator=generator)
    scale = torch.rand(5 if axis == 0 else 1, generator=generator) + 0.05
    shaped = scale.view(-1, 1, 1, 1) if axis == 0 else scale
    expected = quantize_affine(x, shaped, bits, signed) * shaped
    assert torch.allclose(fake_quantize(x, scale, bits, signed, axis), expected, rtol=1e-6, atol=0)


@given(st.floats(-3, 3), st.floats(0.05, 0.5), st.integers(2, 8))
def test_lsq_gradient(value: float, step: float, bits: int) -> None:
    """LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3): −v/s + round(v/s) inside, −Q_N or Q_P outside."""
    x = torch.tensor([value], requires_grad=True)
    scale = torch.tensor([step], requires_grad=True)
    fake_quantize(x, scale, bits, signed=True).backward()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ratio = (x.detach() / scale.detach()).item()
    if abs(ratio - round(ratio)) > 0.499:
        return  # a tie may round either way in float32
    inside = low <= round(ratio) <= high
    expected = round(ratio) - ratio if inside else (low if ratio < low else high)
    assert scale.grad is not None
    assert x.grad is not None
    assert scale.grad.item() == pytest.approx(expected, abs=2e-3)
    assert x.grad.item() == float(inside)


def test_pact_gradient() -> None:
    """PACT (Choi et al. 2018, arXiv:1805.06085): with α = S·q_max, ∂y/∂α = 1 where x ≥ α."""
    x = torch.tensor([0.1, 0.9, 2.0, 5.0])
    alpha = torch.tensor([1.0], requires_grad=True)
    y = fake_quantize(x, alpha / 15, 4, signed=False)
    for element, expected in ((2, 1.0), (3, 1.0)):
        (gradient,) = torch.autograd.grad(y[element], alpha, retain_graph=True)
        assert gradient.item() == pytest.approx(expected)


def test_scale_gradient_per_channel_equals_per_tensor_on_each_channel() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.1, 0.2, 0.4], requires_grad=True)
    fake_quantize(x, scale, 3, signed=True, axis=0).square().sum().backward()
    assert scale.grad is not None
    for row, (step, gradient) in enumerate(zip(scale.tolist(), scale.grad.tolist(), strict=True)):
        one = torch.tensor([step], requires_grad=True)
        fake_quantize(x[row], one, 3, signed=True).square().sum().backward()
        assert one.grad is not None
        assert gradient == pytest.approx(one.grad.item(), rel=1e-4, abs=1e-5)


def test_binary_gradient_passes_straight_through() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 3.0], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    y = fake_quantize(x, scale, 1, signed=True)
    assert y.tolist() == [-0.5, -0.5, 0.5, 0.5]
    y.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [1.0] * 4
    assert scale.grad.item() == 0.0


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("axis", [None, 0])
def test_zero_points_and_rounding(axis: int | None, rounding: Rounding) -> None:
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = torch.full((5 if axis == 0 else 1,), 0.2).requires_grad_()
    zero_point = torch.full(scale.shape, 3, dtype=torch.int32)
    y = fake_quantize(x, scale, 4, False, axis, zero_point, rounding)
    codes = quantize_affine(x.detach(), torch.tensor(0.2), 4, False, torch.tensor(3), rounding)
    assert torch.allclose(y, (codes - 3) * 0.2, atol=1e-6)
    y.sum().backward()
    inside = (codes > 0) & (codes < 15)
    assert x.grad is not None
    assert bool((x.grad[inside] == 1).all())
    assert scale.grad is not None
    outside = ~inside & ((x > 0.2 * 12.5) | (x < -0.2 * 3.5))
    assert bool((x.grad[outside] == 0).all())
