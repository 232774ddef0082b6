"""Uniform schemes: linear, asymmetric, power-of-two scales, and weight-only quantization."""

from __future__ import annotations

from functools import partial

from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes.base import Scheme

__all__ = ["ASYMMETRIC", "HYBRID", "LINEAR", "POWER_OF_TWO"]

LINEAR = Scheme(
    name="linear",
    title="Quantizing deep convolutional networks for efficient inference",
    arxiv="1806.08342",
    equation="section 2; weights have zero points where that lowers a layer's error, the scale is learned as in LSQ",
    weights=partial(uniform, symmetric=None),
    inputs=uniform,
    covers="both",
    trainable="scales",
)

ASYMMETRIC = Scheme(
    name="asymmetric",
    title="Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    arxiv="1712.05877",
    equation="eq. 1, r = S(q − Z); the scale is learned, the zero point is not",
    weights=partial(uniform, symmetric=False),
    inputs=partial(uniform, symmetric=False),
    covers="both",
    trainable="scales",
)

POWER_OF_TWO = Scheme(
    name="power-of-two",
    title="Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference",
    arxiv="1903.08066",
    equation="section 3; scales are powers of two, so that requantization is a shift",
    weights=partial(uniform, power_of_two=True),
    inputs=partial(uniform, power_of_two=True),
    covers="both",
    trainable="scales",
    kernels=("bit-serial", "integer", "shift"),
)

HYBRID = Scheme(
    name="hybrid",
    title="Quantizing deep convolutional networks for efficient inference",
    arxiv="1806.08342",
    equation="section 3.1.1, weight-only quantization, 8 bits by custom; activations stay in floating point",
    weights=uniform,
    inputs=None,
    input_widths=(),
    trainable="scales",
    kernels=("float",),
)
