"""Reduced floating point: fp16 and bf16."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme

__all__ = ["BF16", "FP16", "ReducedFloat"]


class ReducedFloat(Quantizer):
    """Rounds to a 16-bit floating-point format; the codes are its bit patterns.

    Values beyond ±65504 saturate in fp16.

    Args:
        values: A weight, or samples of activations.
        bits: 16.
        granularity: Has no effect.
        form: `torch.float16` or `torch.bfloat16`.
    """

    def __init__(
        self, values: Tensor, bits: int, *, granularity: str = "tensor", form: torch.dtype = torch.float16
    ) -> None:
        check_values(values)
        super().__init__(16, granularity, signed=True)
        self.form = form

    def _reduced(self, x: Tensor) -> Tensor:
        limits = torch.finfo(self.form)
        return x.float().clamp(limits.min, limits.max).to(self.form)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the rounded values; the gradient passes straight through."""
        return self._reduced(x.detach()).float() + (x - x.detach())

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the bit patterns as codes −32768, …, 32767."""
        patterns = self._reduced(x.detach()).view(torch.int16).to(torch.int32)
        return ReducedTensor(ungroup(patterns, x, "tensor"), 16, "tensor", x.dtype, form=self.form)


class ReducedTensor(QuantizedTensor):
    """Codes that are bit patterns of a 16-bit floating-point format.

    Args:
        codes: Bit patterns, int32, any shape.
        bits: 16.
        granularity: See `QuantizedTensor`.
        dtype: Type of the tensor that was quantized.
        form: `torch.float16` or `torch.bfloat16`.
    """

    form: torch.dtype

    def __init__(self, codes: Tensor, bits: int, granularity: str, dtype: torch.dtype, form: torch.dtype) -> None:
        super().__init__(codes, bits, granularity, dtype)
        object.__setattr__(self, "form", form)

    def dequantize(self) -> Tensor:
        """Returns the numbers that the patterns stand for."""
        return self.codes.to(torch.int16).view(self.form).to(self.dtype)


FP16 = Scheme(
    name="fp16",
    title="IEEE 754 half precision",
    arxiv=None,
    equation="binary16: 1 sign, 5 exponent and 10 fraction bits",
    weights=partial(ReducedFloat, form=torch.float16),
    inputs=partial(ReducedFloat, form=torch.float16),
    widths=(16,),
    input_widths=(16,),
    covers="both",
    kernels=("float",),
)

BF16 = Scheme(
    name="bf16",
    title="A Study of BFLOAT16 for Deep Learning Training",
    arxiv="1905.12322",
    equation="section 3: 1 sign, 8 exponent and 7 fraction bits",
    weights=partial(ReducedFloat, form=torch.bfloat16),
    inputs=partial(ReducedFloat, form=torch.bfloat16),
    widths=(16,),
    input_widths=(16,),
    covers="both",
    kernels=("float",),
)
