"""Published and hand-checked values: the example matrix from MIT 6.5940, lecture 6, and formulas from the papers."""

import math

import pytest
import torch
from torch import Tensor

from haq.quant.api import quantize
from haq.quant.quantizers.ranges import aciq_clip
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes import get_scheme
from haq.quant.schemes.bwn import BWNQuantizer
from haq.quant.schemes.dorefa import DoReFaWeights, GradientQuantizer, dorefa_inputs, quantize_k
from haq.quant.schemes.inq import INQQuantizer
from haq.quant.schemes.kmeans import KMeansQuantizer
from haq.quant.schemes.lsq import LSQQuantizer
from haq.quant.schemes.nested import NestedScaleQuantizer, ratio_gradient
from haq.quant.schemes.pact import PACTQuantizer
from haq.quant.schemes.qil import QILQuantizer
from haq.quant.schemes.ttq import TTQQuantizer

W = torch.tensor(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
)


def distance(stored: QuantizedTensor) -> float:
    return float((W - stored.dequantize()).norm())


def test_asymmetric() -> None:
    stored = quantize(W, 2, "asymmetric", "tensor", clip="minmax")
    assert stored.codes.tolist() == [[1, -2, 0, -1], [-1, -1, -2, 1], [-2, 1, -1, -2], [1, -1, 0, 0]]
    assert stored.scale is not None
    assert stored.zero_point is not None
    assert stored.scale.item() == pytest.approx(3.2 / 3)
    assert stored.zero_point.item() == -1
    assert distance(stored) == pytest.approx(0.8634, abs=1e-4)


def test_symmetric_per_tensor() -> None:
    stored = quantize(W, 2, "linear", "tensor", clip="minmax")
    assert stored.codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 1, 1]]
    assert distance(stored) == pytest.approx(2.2846, abs=1e-4)


def test_symmetric_per_channel() -> None:
    stored = quantize(W, 2, "linear", "channel", clip="minmax")
    assert stored.codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, -1], [1, 0, 1, 1]]
    assert stored.scale is not None
    assert torch.allclose(stored.scale, torch.tensor([2.09, 2.12, 1.92, 1.87]))
    assert distance(stored) == pytest.approx(2.0795, abs=1e-4)


def test_binaryconnect() -> None:
    assert distance(quantize(W, 1, "binaryconnect")) ** 2 == pytest.approx(9.2832, abs=1e-3)


@pytest.mark.parametrize("scheme", ["bwn", "xnor"])
def test_binary_weights(scheme: str) -> None:
    stored = quantize(W, 1, scheme, "tensor")
    assert stored.scale is not None
    assert stored.scale.item() == pytest.approx(1.04875)
    assert distance(stored) ** 2 == pytest.approx(9.2452, abs=1e-3)


def test_twn() -> None:
    stored = quantize(W, 2, "twn", "tensor")
    assert stored.codes.tolist() == [[1, -1, 1, 0], [0, 0, -1, 1], [-1, 1, 0, -1], [1, 0, 1, 1]]
    assert stored.scale is not None
    assert stored.scale.item() == pytest.approx(1.5, abs=1e-3)
    assert int((stored.codes != 0).sum()) == 11


def test_kmeans() -> None:
    stored = quantize(W, 2, "kmeans", "tensor")
    assert stored.codebook is not None
    assert torch.allclose(stored.codebook, torch.tensor([[-1.0, 0.0, 1.5, 2.0]]), atol=1e-6)
    assert stored.codes.tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]


def test_centroid_gradient_is_the_sum_over_its_weights() -> None:
    """Deep Compression (Han et al. 2016, arXiv:1510.00149, eq. 3)."""
    quantizer, gradient = KMeansQuantizer(W, 2), torch.arange(16.0).view(4, 4)
    quantizer(W).backward(gradient)
    expected = [float(gradient[quantizer.codes(W) == code].sum()) for code in range(4)]
    assert quantizer.centroids.grad is not None
    assert quantizer.centroids.grad.flatten().tolist() == expected


@pytest.mark.parametrize(("bits", "clip"), [(2, 2.83), (3, 3.90), (4, 5.03)])
def test_aciq(bits: int, clip: float) -> None:
    """Banner et al. 2019, arXiv:1810.05723: where 2e^{−α} + α²/(3·4^M) is smallest."""
    best = aciq_clip(bits, "laplace", one_sided=False)
    assert best == pytest.approx(clip, abs=0.01)

    def error(alpha: float) -> float:
        return 2 * math.exp(-alpha) + alpha**2 / (3 * 4**bits)

    assert error(best) <= min(error(best - 0.01), error(best + 0.01))


INQ = torch.tensor(
    [
        [0.01, 0.02, -0.20, 0.04, 0.33],
        [0.17, -0.42, -0.33, 0.02, -0.05],
        [0.02, 0.83, -0.03, 0.03, 0.06],
        [-0.90, 0.07, 0.11, 0.87, -0.36],
        [-0.73, 0.41, 0.42, 0.39, 0.47],
    ]
)


def test_inq_first_half() -> None:
    """Zhou et al. 2017, arXiv:1702.03044, figure 2: the largest half becomes powers of two, the rest stays."""
    quantizer = INQQuantizer(INQ, 5)
    quantizer.advance(0.0)
    y = quantizer(INQ)
    replaced = {
        (0, 4): 0.25, (1, 1): -0.5, (1, 2): -0.25, (2, 1): 1.0, (3, 0): -1.0, (3, 3): 1.0, (3, 4): -0.25,
        (4, 0): -0.5, (4, 1): 0.5, (4, 2): 0.5, (4, 3): 0.5, (4, 4): 0.5,
    }  # fmt: skip
    for row in range(5):
        for column in range(5):
            assert y[row, column].item() == pytest.approx(replaced.get((row, column), INQ[row, column].item()))


def test_inq_boundaries() -> None:
    """A magnitude in [¾·2ⁿ, 1½·2ⁿ) becomes 2ⁿ (eq. 4)."""
    quantizer = INQQuantizer(torch.tensor([1.0]), 5)
    x = torch.tensor([0.75, 0.74, 0.375, 0.37, -0.76])
    assert quantizer(x).tolist() == [1.0, 0.5, 0.5, 0.25, -1.0]


def test_dorefa() -> None:
    """Zhou et al. 2016, arXiv:1606.06160, eq. 5, 9 and 11."""
    assert quantize_k(torch.tensor([0.0, 0.3, 0.5, 0.9]), 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    bent = torch.tanh(W)
    expected = 2 * torch.round((bent / (2 * bent.abs().max()) + 0.5) * 7) / 7 - 1
    assert torch.allclose(DoReFaWeights(W, 3, scaled=False)(W), expected, atol=1e-6)
    activations = dorefa_inputs(torch.rand(4, 4), 2, limit=1.0)
    assert activations(torch.tensor([-1.0, 0.4, 0.6, 3.0])).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def gradient_through(quantizer: GradientQuantizer, gradient: Tensor) -> Tensor:
    x = torch.zeros_like(gradient, requires_grad=True)
    quantizer(x).backward(gradient)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_dorefa_gradients(bits: int) -> None:
    """Eq. 12: 2^k levels between ± the largest of each sample, and on average the gradient itself."""
    torch.manual_seed(0)
    gradient = torch.randn(1, 50)
    drawn = torch.cat([gradient_through(GradientQuantizer(bits), gradient) for _ in range(2000)])
    largest, steps = gradient.abs().max(), 2**bits - 1
    assert torch.allclose(
        (drawn / largest + 1) / 2 * steps, torch.round((drawn / largest + 1) / 2 * steps), atol=steps * 1e-5
    )
    step = 2 * largest / steps
    inner = gradient[0].abs() < largest - step
    assert float((drawn.mean(0) - gradient[0])[inner].abs().max()) < 4 * 0.5 * float(step) / math.sqrt(2000)


def test_pact() -> None:
    """Choi et al. 2018, arXiv:1805.06085, eq. 1–3."""
    quantizer = PACTQuantizer(torch.rand(4, 8), 4)
    quantizer.alpha.data.fill_(1.0)
    x = torch.tensor([-1.0, 0.34, 0.99, 1.0, 3.0], requires_grad=True)
    y = quantizer(x)
    clipped = 0.5 * (x.abs() - (x - 1).abs() + 1)
    assert torch.allclose(y, torch.round(clipped * 15) / 15)
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert quantizer.alpha.grad is not None
    assert x.grad is not None
    assert quantizer.alpha.grad.item() == 11000.0
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 1000.0, 0.0]
    assert quantizer.penalty(x).item() == pytest.approx(quantizer.decay)


def test_lsq() -> None:
    """Esser et al. 2020, arXiv:1902.08153, eq. 3 and 5."""
    v = torch.tensor([[0.3, -0.76, 2.0, -3.0]])
    quantizer = LSQQuantizer(v, 3)
    assert quantizer.step.item() == pytest.approx(2 * v.abs().mean().item() / math.sqrt(3))
    quantizer.step.data.fill_(0.5)
    x = v.clone().requires_grad_()
    quantizer(x).sum().backward()
    ratio = [0.6, -1.52]
    expected = sum(round(r) - r for r in ratio) + 3 - 4
    assert quantizer.step.grad is not None
    assert x.grad is not None
    assert quantizer.step.grad.item() == pytest.approx(expected / math.sqrt(4 * 3), rel=1e-4)
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_qil() -> None:
    """Jung et al. 2019, arXiv:1808.05779, eq. 3–5, and their derivatives ∂ŵ/∂c and ∂ŵ/∂d."""
    quantizer = QILQuantizer(torch.rand(4, 8), 4, curved=False)
    for parameter, value in ((quantizer.center, 0.5), (quantizer.distance, 0.25), (quantizer.size, 1.0)):
        parameter.data.fill_(value)
    x = torch.tensor([0.1, 0.41, 0.61, 0.9])
    y = quantizer(x)
    assert torch.allclose(y, torch.round(torch.tensor([0.0, 0.32, 0.72, 1.0]) * 15) / 15)
    y.sum().backward()
    assert quantizer.center.grad is not None
    assert quantizer.distance.grad is not None
    assert quantizer.center.grad.item() == pytest.approx(2 * -0.5 / 0.25)
    assert quantizer.distance.grad.item() == pytest.approx(-0.5 * (0.41 - 0.5 + 0.61 - 0.5) / 0.25**2, abs=1e-5)


def test_ttq() -> None:
    """Zhu et al. 2017, arXiv:1612.01064, eq. 6–9."""
    quantizer = TTQQuantizer(W, 2)
    x, gradient = W.clone().requires_grad_(), torch.arange(1.0, 17.0).view(4, 4)
    quantizer(x).backward(gradient)
    limit = 0.05 * 2.12
    above, below = limit < W, -limit > W
    assert quantizer.positive.grad is not None
    assert quantizer.negative.grad is not None
    assert quantizer.positive.grad.item() == gradient[above].sum()
    assert quantizer.negative.grad.item() == -gradient[below].sum()
    factor = torch.where(above, quantizer.positive, torch.where(below, quantizer.negative, torch.ones(1)))
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient * factor)


def test_bwn_gradient() -> None:
    """Rastegari et al. 2016, arXiv:1603.05279, section 3.1: ∂C/∂W̃·(1/n + α·1[|W| < 1])."""
    x = W.clone().requires_grad_()
    BWNQuantizer(W, 1, granularity="tensor")(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 1 / 16 + 1.04875 * (W.abs() < 1))


def test_bnn_gradient_is_cut_at_one() -> None:
    """Courbariaux et al. 2016, arXiv:1602.02830, eq. 4."""
    x = W.clone().requires_grad_()
    get_scheme("bnn").weight_quantizer(W, 1)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (W.abs() <= 1).float())


def test_nested_scale() -> None:
    """Chinbat 2025: codes ⌊P/s⌋; g_s = 0 if r ≥ λ else −tanh(r − λ), times m."""
    quantizer = NestedScaleQuantizer(W, 4, granularity="tensor", threshold=0.5, multiplier=2.0)
    quantizer.scale_parameter.data.fill_(0.5)
    assert torch.equal(quantizer.codes(W), torch.floor(W / 0.5).to(torch.int32))
    gradient = torch.full_like(W, 0.3)
    quantizer(W).backward(gradient)
    ratio = 0.3 / W.abs().clamp_min(1e-12)
    expected = torch.where(ratio >= 0.5, 0.0, -torch.tanh(ratio - 0.5))
    assert torch.allclose(ratio_gradient(gradient, W, 0.5), expected)
    assert quantizer.scale_parameter.grad is not None
    assert quantizer.scale_parameter.grad.item() == pytest.approx(2.0 * expected.mean().item())


@pytest.mark.parametrize("granularity", ["tensor", "channel", "row", "column", "group:2", "element"])
def test_nested_penalties(granularity: str) -> None:
    """Inverse scale magnitude, bin count, deviation from the original values."""
    made = [
        NestedScaleQuantizer(W, 4, granularity=granularity, inverse_scale=a, bin_count=b, deviation=c)
        for a, b, c in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    ]
    for quantizer in made:
        quantizer.scale_parameter.data.fill_(0.25)
    inverse, bins, deviation = (float(quantizer.penalty(W).detach()) for quantizer in made)
    assert inverse == pytest.approx(4.0)
    if granularity == "tensor":
        assert bins == pytest.approx((2.12 + 1.08) / 0.25)
    away = (W - torch.floor(W / 0.25 + 1e-5).clamp(-8, 7) * 0.25).square().mean() / W.square().mean()
    assert deviation == pytest.approx(float(away), rel=1e-4)
    made[0].penalty(W).backward()
    assert made[0].scale_parameter.grad is not None
    assert bool((made[0].scale_parameter.grad < 0).all()), "a larger scale costs less"
