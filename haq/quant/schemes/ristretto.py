"""Ristretto: dynamic fixed point."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.functional import fill_empty
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes.base import Scheme

__all__ = ["RISTRETTO"]


def dynamic_fixed_point(values: Tensor, bits: int, *, granularity: str = "tensor") -> UniformQuantizer:
    """Returns a fixed-point quantizer with as many integer bits as the largest magnitude needs; the rest is fraction.

    il = ⌈log₂ max |x|⌉ integer bits without the sign; the step is 2^(il − (bits − 1)), or 2^(il − bits) if unsigned.

    Args:
        values: A weight, or samples of activations.
        bits: Width of a code.
        granularity: Which values share a step; the paper has one per tensor.
    """
    values = check_values(values)
    signed = bool((values < 0).any())
    integer_bits = torch.ceil(torch.log2(fill_empty(group(values, granularity).abs().amax(1))))
    scale = torch.exp2(integer_bits - (bits - 1 if signed else bits))
    return UniformQuantizer(bits, scale, signed, granularity=granularity, power_of_two=True, learned=False)


def _weights(values: Tensor, bits: int, *, granularity: str = "tensor") -> UniformQuantizer:
    quantizer = dynamic_fixed_point(values, bits, granularity=granularity)
    if not quantizer.signed:  # a weight may become negative in fine-tuning
        quantizer.signed = True
        quantizer.log_scale.data += torch.log(torch.tensor(2.0))
    return quantizer


RISTRETTO = Scheme(
    name="ristretto",
    title="Hardware-oriented Approximation of Convolutional Neural Networks",
    arxiv="1604.03168",
    equation="section 4.1 (Gysel et al. 2018 for the whole system); one fractional length a tensor",
    weights=_weights,
    inputs=dynamic_fixed_point,
    widths=(2, 3, 4, 5, 6, 7, 8, 16),
    covers="both",
    kernels=("bit-serial", "integer", "shift"),
)
