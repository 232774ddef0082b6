"""LSQ: learned step size."""

from __future__ import annotations

import math

from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.fake import fake_quantize
from haq.quant.quantizers.functional import fill_empty, integer_range, is_binary, quantize_affine
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme

__all__ = ["LSQ", "LSQQuantizer"]


class LSQQuantizer(Quantizer):
    """A uniform grid whose step s is trained directly, with its gradient scaled by 1/√(N·Q_P).

    s starts at 2·mean |v| / √Q_P. N is the number of values that share a step: the weights of the group, or the
    features of one sample for activations.

    Args:
        values: A weight, or samples of activations `(samples, n)`.
        bits: Width of a code.
        granularity: Which values share a step; the paper has one per tensor.
        signed: Whether codes are signed; by default if there are negative values.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor", signed: bool | None = None) -> None:
        values = check_values(values)
        super().__init__(bits, granularity, bool((values < 0).any()) if signed is None else signed)
        mean = group(values, granularity).abs().mean(1)
        binary = is_binary(bits, self.signed)
        step = mean.clamp_min(1e-8) if binary else fill_empty(2 * mean / math.sqrt(self._largest))
        self.step = nn.Parameter(step)

    @property
    def _largest(self) -> int:
        return max(integer_range(self.bits, self.signed)[1], 1)

    @property
    def scale(self) -> Tensor:
        """The step, `(groups,)`; kept positive."""
        return self.step.abs().clamp_min(1e-12)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns s·round(clip(x / s)); its gradients are eq. 3 and 5."""
        rows = x if self.granularity == "tensor" else group(x, self.granularity).contiguous()
        shared = x[0].numel() if self.granularity == "tensor" and x.dim() else rows[0].numel()
        step = _scale_gradient(self.scale, 1 / math.sqrt(shared * self._largest))
        y = fake_quantize(rows, step, self.bits, self.signed, None if self.granularity == "tensor" else 0)
        return ungroup(y, x, self.granularity) if y is not x else y

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the codes with the step as scale."""
        scale = self.scale.detach()
        codes = quantize_affine(group(x.detach().float(), self.granularity), scale[:, None], self.bits, self.signed)
        return QuantizedTensor(ungroup(codes, x, self.granularity), self.bits, self.granularity, x.dtype, scale)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())  # equal to x to the last bit, so that codes and values agree


LSQ = Scheme(
    name="lsq",
    title="Learned Step Size Quantization",
    arxiv="1902.08153",
    equation="eq. 1–5; on weights of activations' size the factor of eq. 5 cancels in an adaptive optimiser",
    weights=LSQQuantizer,
    inputs=LSQQuantizer,
    covers="both",
    trainable="steps",
)
