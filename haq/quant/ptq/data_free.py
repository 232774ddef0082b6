"""Calibration without data: ranges of activations from batch norms."""

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

_POINTS = 1001  # of each channel's distribution
_REACH = 6.0  # standard deviations


def data_free_inputs(model: nn.Module, sample: Tensor) -> dict[str, tuple[float, float]]:
    """Returns the range of what each layer reads: mean ± 6σ over all channels, clipped by the ReLU before it.

    (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
    section 4.1.) How the means and deviations are found is told by `input_statistics`; layers behind a layer without
    batch norm get a guess from that layer's weights.

    Args:
        model: The float network, batch norms not folded.
        sample: Inputs, `(N, C, H, W)`. No batch norm tells the range of images: their channels' mean and deviation are
            taken from here, so it should hold a real image, or noise with the images' mean and deviation.

    Raises:
        ModelError: The network cannot be traced, or the range of a layer's input not told.
    """
    return {name: _range(values) for name, values in _statistics(model, sample).items()}


def calibrate_data_free(
    model: nn.Module, sample: Tensor, bits: Iterable[int], scheme: str | Scheme = "linear"
) -> Calibration:
    """Sets up the quantizers of all layers without running the network.

    The scheme sees, in place of samples, evenly spaced quantiles of every channel's distribution and the ends of the
    range, so `clip="minmax"` is mean ± 6σ, and other rules find their own clip.

    Args:
        model: The float network, batch norms not folded.
        sample: As for `data_free_inputs`.
        bits: Widths to set up.
        scheme: What weights and activations are quantized with.

    Returns:
        Quantizers for the network with its batch norms folded.

    Raises:
        ModelError: The network cannot be traced, or the range of a layer's input not told.
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
    statistics = input_statistics(model, image)
    missing = [name for name, _ in quantizable_layers(model) if name not in statistics]
    if missing:
        raise ModelError(
            f"no batch norm tells what layer {missing[0]!r} reads, and {len(missing) - 1} more; calibrate with images"
        )
    return statistics


def _range(values: ClippedNormal) -> tuple[float, float]:
    low, high = batch_norm_range(values.mean, values.std, relu=values.low >= 0)
    return float(low), min(float(high), values.high)


def _values(values: ClippedNormal) -> Tensor:
    """Returns what the scheme may take for samples, `(channels, points)`."""
    shares = (torch.arange(_POINTS, dtype=torch.float32) + 0.5) / _POINTS
    z = torch.cat([torch.tensor([-_REACH, _REACH]), torch.special.ndtri(shares)])
    return (values.mean[:, None] + values.std[:, None] * z).clamp(values.low, values.high)
