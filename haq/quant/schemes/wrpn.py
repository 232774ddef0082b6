"""WRPN: fewer bits, more filters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import copied, quantizable_layers, reachable, run_sample, trace
from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.dorefa import dorefa_inputs
from haq.torch_internals import BatchNorm

__all__ = ["WRPN", "widen", "wrpn_weights"]


class _Clipped(UniformQuantizer):
    """A signed grid without its lowest code, so that it is symmetric: round((2^(k−1) − 1)·w) / (2^(k−1) − 1)."""

    def _clipped(self, x: Tensor) -> Tensor:
        limit = float(self.scale.detach()) * (2 ** (self.bits - 1) - 1)
        return x.clamp(-limit, limit)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the clipped and rounded `x`; the gradient is 0 outside the clip."""
        return super().fake_quantize(self._clipped(x))

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes from −(2^(k−1) − 1) to 2^(k−1) − 1."""
        return super().encode(self._clipped(x.detach()))


def wrpn_weights(values: Tensor, bits: int, *, granularity: str = "tensor", scaled: bool = True) -> UniformQuantizer:
    """Returns a quantizer that clips weights to [−1, 1] and rounds them to k − 1 bits and a sign (eq. 1).

    Args:
        values: The weight.
        bits: k, at least 2.
        granularity: `tensor`, because there is one clip.
        scaled: Whether to clip at max |W|, for a pretrained network, instead of the paper's 1.
    """
    rows = group(check_values(values), "tensor")
    limit = rows.abs().amax(1).clamp_min(1e-12) if scaled else torch.ones(1)
    return _Clipped(bits, limit / (2 ** (bits - 1) - 1), signed=True, learned=False)


def widen(model: nn.Module, factor: int, sample: Tensor) -> nn.Module:
    """Returns a copy of `model` with `factor` times the channels in every layer, which computes the same function.

    Every channel is repeated, and every weight that reads it is divided by `factor` (a widening similar to Net2Net,
    Chen et al. 2016, arXiv:1511.05641), so that a trained network can be quantized and fine-tuned directly; the paper
    trains wide networks from scratch. The image channels and the outputs of the last layer keep their number.

    Args:
        model: Network in evaluation mode.
        factor: Multiple of the number of filters.
        sample: One input.

    Raises:
        ModelError: The forward pass depends on channel counts, so the copy does not compute the same function.
    """
    called = [spec.name for spec in trace(model, sample)]
    model = reachable(model, sample)
    wide = copied(model)
    layers = dict(quantizable_layers(wide))
    with torch.no_grad():
        for name in called:
            _widen_layer(layers[name], factor, name == called[0], name == called[-1])
        for module in wide.modules():
            if isinstance(module, BatchNorm):
                for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if values.dim():
                        values.data = values.data.repeat_interleave(factor)
                module.num_features *= factor
    try:
        same = torch.allclose(run_sample(model, sample), run_sample(wide, sample), rtol=1e-3, atol=1e-4)
    except ModelError:
        same = False
    if not same:
        raise ModelError(
            f"{type(model).__name__} cannot be widened: its forward depends on channel counts; build a wider network"
        )
    return wide


def _widen_layer(layer: nn.Module, factor: int, first: bool, last: bool) -> None:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise ModelError(f"{type(layer).__name__} cannot be widened; only Conv2d and Linear can")
    weight = layer.weight.data
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if not first and not depthwise:
        weight = weight.repeat_interleave(factor, 1) / factor
    if not last:
        weight = weight.repeat_interleave(factor, 0)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.repeat_interleave(factor)
    layer.weight.data = weight
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(weight)
        layer.groups *= factor if depthwise else 1
        layer.in_channels = weight.shape[1] * layer.groups
    else:
        layer.out_features, layer.in_features = weight.shape


WRPN = Scheme(
    name="wrpn",
    title="WRPN: Wide Reduced-Precision Networks",
    arxiv="1709.01134",
    equation="section 4, eq. 1–2; `widen` makes a network wider; clips keep the size of pretrained values",
    weights=wrpn_weights,
    inputs=dorefa_inputs,
    widths=(2, 3, 4, 5, 6, 7, 8),
    covers="both",
)
