import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.errors import ConfigError
from haq.quant.quantizers.ranges import RANGES, batch_norm_range, clip_range
from haq.quant.quantizers.uniform import uniform


def one(x: torch.Tensor, method: str, bits: int = 4) -> tuple[float, float]:
    """Returns the clip of `(samples, n)` activations."""
    low, high = clip_range(x[None], bits, method)
    return low.item(), high.item()


SAMPLES = torch.tensor([[-1.0, 0.0, 2.0], [-3.0, 1.0, 4.0], [0.0, 0.5, 6.0]])


def test_minmax() -> None:
    assert one(SAMPLES, "minmax") == (-3.0, 6.0)


def test_mean_of_each_samples_range() -> None:
    assert one(SAMPLES, "mean-minmax") == (pytest.approx(-4 / 3), 4.0)


def test_moving_average() -> None:
    low, high = -1.0, 2.0
    for sample in SAMPLES[1:]:
        low, high = 0.9 * low + 0.1 * float(sample.min()), 0.9 * high + 0.1 * float(sample.max())
    assert one(SAMPLES, "ema") == (pytest.approx(low), pytest.approx(high))


def test_percentile() -> None:
    x = torch.arange(10_001.0)[None]
    assert one(x, "percentile") == (10.0, 9990.0)


@pytest.mark.parametrize(("method", "factor"), [("aciq-laplace", 5.03), ("aciq-gauss", 2.55)])
def test_aciq_follows_the_distribution(method: str, factor: float) -> None:
    """Banner et al. 2019, arXiv:1810.05723, table 1: 5.03 b and 2.55 σ at 4 bits."""
    torch.manual_seed(0)
    if method == "aciq-laplace":
        x = torch.distributions.Laplace(0.0, 2.0).sample((1, 200_000))
    else:
        x = torch.randn(1, 200_000) * 2
    low, high = one(x, method)
    assert high == pytest.approx(2 * factor, rel=0.02)
    assert low == pytest.approx(-2 * factor, rel=0.02)


@pytest.mark.parametrize("method", ["aciq-laplace", "aciq-gauss"])
def test_aciq_behind_a_relu_is_the_clip_of_one_bit_more(method: str) -> None:
    torch.manual_seed(0)
    x = torch.distributions.Laplace(0.0, 1.0).sample((1, 200_000)) if "laplace" in method else torch.randn(1, 200_000)
    assert one(x.clamp_min(0), method, 3)[1] == pytest.approx(one(x, method, 4)[1], rel=0.02)


def test_kl_leaves_outliers_out() -> None:
    """Migacz 2017: a few far values do not stretch an 8-bit grid; without any, nothing is clipped."""
    torch.manual_seed(0)
    x = torch.rand(1, 50_000)
    assert one(x, "kl", 8)[1] == pytest.approx(1.0, abs=0.02)
    x[0, :3] = 20.0
    assert one(x, "kl", 4)[1] < 5.0


def test_six_sigma_of_a_batch_norm() -> None:
    """Nagel et al. 2019, arXiv:1906.04721, section 4.1."""
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.1])
    assert [v.item() for v in batch_norm_range(mean, std, relu=False)] == [pytest.approx(-2.6), 4.0]
    assert [v.item() for v in batch_norm_range(mean, std, relu=True)] == [0.0, 4.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(2, 8), st.sampled_from([*RANGES, "mse"]), st.booleans(), st.booleans())
def test_every_method_sets_up_every_grid(seed: int, bits: int, method: str, relu: bool, symmetric: bool) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    x = x.clamp_min(0) if relu else x
    quantizer = uniform(x, bits, granularity="tensor", clip=method, symmetric=symmetric)
    y = quantizer(x).detach()
    assert bool(torch.isfinite(y).all())
    assert float((y - x).square().mean()) < float(x.square().mean()) * 1.01
    best = uniform(x, bits, granularity="tensor", clip="mse", symmetric=symmetric)(x).detach()
    assert float((best - x).square().mean()) <= 1.15 * float((y - x).square().mean()) + 1e-9


def test_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown range setting 'minmx' .did you mean 'minmax'"):
        clip_range(SAMPLES[None], 4, "minmx")
