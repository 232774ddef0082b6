"""Range setting: methods that choose where to clip before rounding.

Every method takes values `(groups, samples, n)` and returns the clip of each group, low and high, `(groups,)` each.
A weight has one sample; activations have one group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.errors import ConfigError, did_you_mean

__all__ = ["RANGES", "aciq_clip", "batch_norm_range", "clip_range"]

Range = tuple[Tensor, Tensor]

_EMA_MOMENTUM = 0.9
_PERCENTILE = 0.999
_BINS = 1024


def minmax(x: Tensor, bits: int) -> Range:
    """Clips nothing (Krishnamoorthi 2018, arXiv:1806.08342, section 2)."""
    return x.amin((1, 2)), x.amax((1, 2))


def mean_minmax(x: Tensor, bits: int) -> Range:
    """Averages each sample's smallest and largest value, which makes single outlying samples matter less."""
    return x.amin(2).mean(1), x.amax(2).mean(1)


def moving_average(x: Tensor, bits: int) -> Range:
    """Averages each sample's smallest and largest value exponentially, in the order of the samples.

    See Jacob et al. 2018, arXiv:1712.05877, section 3.1.
    """
    samples = x.shape[1]
    ages = torch.arange(samples - 1, -1, -1, dtype=x.dtype, device=x.device)
    weights = (1 - _EMA_MOMENTUM) * _EMA_MOMENTUM**ages
    weights[0] = _EMA_MOMENTUM ** (samples - 1)  # the first sample starts the average
    return x.amin(2) @ weights, x.amax(2) @ weights


def percentile(x: Tensor, bits: int) -> Range:
    """Keeps 99.9 % of the values on each side (McKinstry et al. 2018, arXiv:1809.04191, use 99.99 %).

    The 99.99 % percentile of samples as small as ours would be close to the largest value.
    """
    flat = x.flatten(1).sort(1).values
    last = flat.shape[1] - 1
    return flat[:, round((1 - _PERCENTILE) * last)], flat[:, round(_PERCENTILE * last)]


def aciq_laplace(x: Tensor, bits: int) -> Range:
    """Returns the best clip for a Laplace distribution of values (Banner et al. 2019, arXiv:1810.05723, eq. 7)."""
    return _analytic(x, bits, "laplace")


def aciq_gauss(x: Tensor, bits: int) -> Range:
    """Returns the best clip for a Gaussian distribution of values (Banner et al. 2019, arXiv:1810.05723, section 3)."""
    return _analytic(x, bits, "gauss")


@cache
def aciq_clip(bits: int, distribution: str, one_sided: bool) -> float:
    """Returns the clip that minimises the expected squared error, in units of b (Laplace) or σ (Gauss).

    With b = 1 the error of clip α is 2e^{−α} + α²/(3·4^M); its derivative vanishes at α·e^α = 3·4^M. For values after a
    ReLU, the step and the mass above 0 are halved, and α·e^α = 12·4^M.

    Args:
        bits: M, width of the codes.
        distribution: `laplace` or `gauss`.
        one_sided: Whether the values come from a ReLU.

    Examples:
        >>> [round(aciq_clip(bits, "laplace", one_sided=False), 2) for bits in (2, 3, 4)]
        [2.83, 3.9, 5.03]
    """
    # Imported here, because they take most of a second, which every worker of a search would otherwise spend
    from scipy.optimize import minimize_scalar
    from scipy.special import lambertw
    from scipy.stats import norm

    levels = 4.0 ** (bits + one_sided)
    if distribution == "laplace":
        return float(lambertw(3 * levels).real)

    def error(clip: float) -> float:
        tail = (1 + clip**2) * norm.sf(clip) - clip * norm.pdf(clip)
        return float(2 * tail + clip**2 / (3 * levels))

    return float(minimize_scalar(error, bounds=(0.1, 20.0), method="bounded").x)


def _analytic(x: Tensor, bits: int, distribution: str) -> Range:
    flat = x.flatten(1)
    low, high = flat.aminmax(dim=1)
    one_sided = bool((low >= 0).all())
    centre = torch.zeros_like(low) if one_sided else flat.mean(1)
    deviation = (flat - centre[:, None]).abs()
    # Half of the values after a ReLU are zeros: E|x| = b/2 and E x² = σ²/2
    if distribution == "laplace":
        spread = deviation.mean(1) * (2 if one_sided else 1)
    else:
        spread = (deviation.square().mean(1) * (2 if one_sided else 1)).sqrt()
    clip = aciq_clip(bits, distribution, one_sided) * spread
    return torch.maximum(low, centre - clip), torch.minimum(high, centre + clip)


def kl_divergence(x: Tensor, bits: int) -> Range:
    """Returns the clip whose quantized histogram is closest to the original in Kullback-Leibler divergence.

    See Migacz 2017, "8-bit Inference with TensorRT".
    """
    flat = x.flatten(1)
    low, high = flat.aminmax(dim=1)
    levels = 2**bits - 1 if bool((low >= 0).all()) else max(2 ** (bits - 1) - 1, 1)
    clips = [_kl_clip(row.abs().double().cpu().numpy(), levels) for row in flat]
    clip = torch.tensor(clips, dtype=x.dtype, device=x.device)
    return torch.maximum(low, -clip), torch.minimum(high, clip)


def _kl_clip(magnitudes: NDArray[np.float64], levels: int) -> float:
    largest = float(magnitudes.max())
    if largest == 0:
        return 0.0
    counts, edges = np.histogram(magnitudes, bins=_BINS, range=(0, largest))
    best, least = largest, np.inf
    for kept in range(max(levels, 8), _BINS + 1, 8):
        reference = counts[:kept].astype(np.float64)
        present = reference > 0
        reference[-1] += counts[kept:].sum()  # clipped values land in the last bin
        cell = np.arange(kept) * levels // kept
        mass = np.bincount(cell, counts[:kept], levels)
        filled = np.bincount(cell, present, levels)
        candidate = np.where(present, (mass / np.maximum(filled, 1))[cell], 0.0)
        if not candidate.sum():
            continue
        p, q = reference / reference.sum(), np.maximum(candidate / candidate.sum(), 1e-12)
        shown = p > 0
        divergence = float((p[shown] * np.log(p[shown] / q[shown])).sum())
        if divergence < least:
            best, least = float(edges[kept]), divergence
    return best


RANGES: dict[str, Callable[[Tensor, int], Range]] = {
    "minmax": minmax,
    "mean-minmax": mean_minmax,
    "ema": moving_average,
    "percentile": percentile,
    "aciq-laplace": aciq_laplace,
    "aciq-gauss": aciq_gauss,
    "kl": kl_divergence,
}
"""Methods by name. `mse` is not among them, because it needs to know the grid."""


def clip_range(x: Tensor, bits: int, method: str) -> Range:
    """Returns the clip of each group.

    Args:
        x: Values, `(groups, samples, n)`.
        bits: Width of the codes.
        method: Name in `RANGES`.

    Returns:
        Low and high, `(groups,)` each.

    Raises:
        ConfigError: The method is unknown.
    """
    if method not in RANGES:
        known = [*RANGES, "mse"]
        raise ConfigError(f"unknown range setting {method!r}{did_you_mean(method, known)}; use {', '.join(known)}")
    return RANGES[method](x, bits)


def batch_norm_range(mean: Tensor, std: Tensor, relu: bool) -> Range:
    """Returns mean ± 6σ over all channels, without data (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

    Args:
        mean: β of the batch norm, `(channels,)`.
        std: |γ| of the batch norm, `(channels,)`.
        relu: Whether a ReLU follows.

    Returns:
        Low and high, `(1,)` each.
    """
    low, high = (mean - 6 * std).amin()[None], (mean + 6 * std).amax()[None]
    return (low.clamp_min(0), high.clamp_min(0)) if relu else (low, high)
