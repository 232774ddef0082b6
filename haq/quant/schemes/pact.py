"""PACT: activations are clipped at a learned α."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.functional import integer_range, quantize_affine
from haq.quant.quantizers.granularity import ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.dorefa import DoReFaWeights

__all__ = ["PACT", "PACTQuantizer"]

_DECAY = 2e-4


class PACTQuantizer(Quantizer):
    """y = ½(|x| − |x − α| + α), rounded to 2^bits − 1 steps (eq. 1 and 2); α has an L2 penalty (section 3.1).

    ∂y/∂α is 1 where x ≥ α and 0 elsewhere (eq. 3); ∂y/∂x is 1 between 0 and α. The initial α minimises the squared
    error of the samples. Inputs with negative values, such as images, are clipped at ±α.

    Args:
        values: Samples of activations.
        bits: Width, at least 2.
        granularity: `tensor`.
        decay: Weight of α² in the loss.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor", decay: float = _DECAY) -> None:
        values = check_values(values)
        start = uniform(values, bits, granularity="tensor")
        super().__init__(bits, "tensor", start.signed)
        self.decay = decay
        self.alpha = nn.Parameter(start.scale.detach() * self._steps)

    @property
    def _steps(self) -> int:
        return max(integer_range(self.bits, self.signed)[1], 1)

    @property
    def scale(self) -> Tensor:
        """α divided by the largest code, `(1,)`."""
        return self.alpha.clamp_min(1e-6) / self._steps

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the clipped and rounded `x`."""
        y: Tensor = _Clip.apply(x, self.alpha, float(self.scale.detach()), self._steps, self.signed)  # type: ignore[no-untyped-call]
        return y

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the codes with scale α divided by the largest code."""
        scale = self.scale.detach()
        limited = x.detach().float().clamp(-scale.item() * self._steps, None)
        codes = quantize_affine(limited.reshape(1, -1), scale[:, None], self.bits, self.signed)
        codes = codes.clamp_(min=-self._steps)
        return QuantizedTensor(ungroup(codes, x, "tensor"), self.bits, "tensor", x.dtype, scale)

    def penalty(self, x: Tensor) -> Tensor:
        """Returns decay·α²."""
        return self.decay * self.alpha.square().sum()


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, scale: float, steps: int, signed: bool) -> Tensor:
        low = -steps if signed else 0
        y, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, scale, 0, low, steps)
        ctx.save_for_backward(x, alpha, inside)
        ctx.signed = signed
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, inside = ctx.saved_tensors
        grad_alpha = (grad * (x >= alpha)).sum()
        if ctx.signed:
            grad_alpha = grad_alpha - (grad * (x <= -alpha)).sum()
        return grad * inside, grad_alpha.view(1), None, None, None


PACT = Scheme(
    name="pact",
    title="PACT: Parameterized Clipping Activation for Quantized Neural Networks",
    arxiv="1805.06085",
    equation="eq. 1–3; weights as in DoReFa, as in the paper's experiments; signed inputs are clipped at ±α",
    weights=DoReFaWeights,
    inputs=PACTQuantizer,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    input_widths=(2, 3, 4, 5, 6, 7, 8),
    covers="activations",
    trainable="clip α",
    kernels=("float",),
)
