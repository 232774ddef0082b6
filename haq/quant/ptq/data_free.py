"""Calibration without data, with ranges of activations from batch norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import quantizable_layers
from haq.quant.calibration import Calibration, LayerQuantizers
from haq.quant.compensation import Rounded
from haq.quant.folding import fold_batch_norm
from haq.quant.ptq.statistics import ClippedNormal, input_statistics
from haq.quant.quantizers.ranges import batch_norm_range
from haq.quant.schemes import Scheme, get_scheme

__all__ = ["calibrate_data_free", "data_free_inputs"]

_POINTS = 1001  # quantiles of each channel's distribution
_REACH = 6.0  # standard deviations


def data_free_inputs(model: nn.Module, sample: Tensor) -> dict[str, tuple[float, float]]:
    """Returns the range of each layer's input: mean ± 6σ over all channels, clipped by the ReLU before the layer.

    See Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
    section 4.1. The means and standard deviations come from `input_statistics`. After a layer without batch norm, they
    are estimated from that layer's weights.

    Args:
        model: The float network, with its batch norms.
        sample: Inputs, `(N, C, H, W)`. The mean and standard deviation of the images' channels are taken from here,
            because no batch norm gives them. So it should hold a real image, or noise with the same statistics.

    Raises:
        ModelError: The network cannot be traced, or the range of a layer's input is unknown.
    """
    return {name: _range(values) for name, values in _statistics(model, sample).items()}


def calibrate_data_free(
    model: nn.Module, sample: Tensor, bits: Iterable[int], scheme: str | Scheme = "linear"
) -> Calibration:
    """Sets up the quantizers of all layers without running the network.

    In place of samples, the scheme gets evenly spaced quantiles of every channel's distribution and the ends of the
    range. So `clip="minmax"` gives mean ± 6σ, and other methods find their own clip.

    Args:
        model: The float network, with its batch norms.
        sample: As for `data_free_inputs`.
        bits: Widths to set up.
        scheme: Scheme for weights and activations.

    Returns:
        Quantizers for the network with its batch norms folded.

    Raises:
        ModelError: The network cannot be traced, or the range of a layer's input is unknown.
    """
    chosen = get_scheme(scheme) if isinstance(scheme, str) else scheme
    widths = sorted(set(bits))
    statistics = _statistics(model, sample)
    return {
        name: LayerQuantizers(
            weights={width: Rounded(chosen.weight_quantizer(layer.weight.detach(), width)) for width in widths},
            inputs={width: chosen.input_quantizer(_values(statistics[name]), width) for width in widths},
        )
        for name, layer in quantizable_layers(fold_batch_norm(model, sample[:1]))
    }


def _statistics(model: nn.Module, sample: Tensor) -> dict[str, ClippedNormal]:
    by_channel = sample.detach().transpose(0, 1).flatten(1)
    image = ClippedNormal(by_channel.mean(1), by_channel.std(1), exact=False)
    statistics = input_statistics(model, sample[:1], image)
    missing = [name for name, _ in quantizable_layers(model) if name not in statistics]
    if missing:
        raise ModelError(
            f"no batch norm gives the input range of layer {missing[0]!r} and {len(missing) - 1} more; "
            "calibrate with images"
        )
    return statistics


def _range(values: ClippedNormal) -> tuple[float, float]:
    low, high = batch_norm_range(values.mean, values.std, relu=values.low >= 0)
    return float(low), min(float(high), values.high)


def _values(values: ClippedNormal) -> Tensor:
    """Returns values that the scheme can use as samples, `(channels, points)`."""
    shares = (torch.arange(_POINTS, dtype=torch.float32) + 0.5) / _POINTS
    z = torch.cat([torch.tensor([-_REACH, _REACH]), torch.special.ndtri(shares)])
    return (values.mean[:, None] + values.std[:, None] * z).clamp(values.low, values.high)
