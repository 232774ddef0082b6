"""QIL: quantization interval learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import round_through, uniform
from haq.quant.schemes.base import Scheme

__all__ = ["QIL", "QILQuantizer", "qil_inputs"]


class QILQuantizer(Quantizer):
    """Spreads magnitudes inside a learned interval over the levels; below it they become 0, above it they saturate.

    With centre c and half-width d, ŵ = (α|w| + β)^γ·sign(w) for c − d ≤ |w| ≤ c + d, α = 0.5/d, β = −0.5·c/d + 0.5 (eq.
    3–5). ŵ is rounded to multiples of 1/q, with q = 2^(bits−1) − 1, or 2^bits − 1 if no value is negative. c, d and γ
    are trained with the task. The paper leaves levels in [−1, 1]; here they are multiplied by a trained size, because a
    pretrained network needs the magnitude of its values.

    Args:
        values: A weight, or samples of activations.
        bits: Width of a code; at least 2 if signed.
        granularity: Which values share an interval; the paper has one per tensor.
        signed: Whether negative values are kept; by default if there are any.
        curved: Whether γ is trained: true for weights (section 3.2), false for activations.
    """

    is_projection = False  # the transformer changes values before they are rounded

    def __init__(
        self,
        values: Tensor,
        bits: int,
        *,
        granularity: str = "tensor",
        signed: bool | None = None,
        curved: bool = True,
    ) -> None:
        values = check_values(values)
        super().__init__(bits, granularity, bool((values < 0).any()) if signed is None else signed)
        start = uniform(values, bits, granularity=granularity, signed=self.signed)
        top = start.scale.detach() * self._steps
        self.center = nn.Parameter(top / 2)  # the interval starts as [0, top], the clip with the least squared error
        self.distance = nn.Parameter(top / 2)
        self.gamma = nn.Parameter(torch.ones_like(top), requires_grad=curved)
        self.size = nn.Parameter(top.clone())

    @property
    def _steps(self) -> int:
        return (1 << self.bits - 1) - 1 if self.signed else (1 << self.bits) - 1

    def _unit(self, rows: Tensor) -> Tensor:
        """Returns ŵ in [−1, 1], before rounding."""
        distance = self.distance.abs().clamp_min(1e-8)[:, None]
        spread = (0.5 * (rows.abs() - self.center[:, None]) / distance + 0.5).clamp(0, 1)
        if self.gamma.requires_grad:
            spread = spread.clamp_min(1e-6) ** self.gamma[:, None]  # above 0, because γ's gradient has a logarithm
        return spread * rows.sign() if self.signed else spread * (rows > 0)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the rounded values; gradients reach c, d, γ and the values through the transformer's formula."""
        unit = self._unit(group(x, self.granularity))
        y = round_through(unit * self._steps) / self._steps * self.size[:, None]
        return ungroup(y, x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes −q, …, q with scale size/q."""
        unit = self._unit(group(x.detach().float(), self.granularity)).detach()
        codes = ungroup(torch.round(unit * self._steps).to(torch.int32), x, self.granularity)
        scale = self.size.detach() / self._steps
        return QuantizedTensor(codes, self.bits, self.granularity, x.dtype, scale)


def qil_inputs(values: Tensor, bits: int, *, granularity: str = "tensor") -> Quantizer:
    """Returns the quantizer of activations, whose γ is 1.

    Args:
        values: Samples of activations.
        bits: Width of a code.
        granularity: `tensor`.
    """
    return QILQuantizer(values, bits, granularity="tensor", curved=False)


QIL = Scheme(
    name="qil",
    title="Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss",
    arxiv="1808.05779",
    equation="eq. 2–5; levels have a trained size",
    weights=QILQuantizer,
    inputs=qil_inputs,
    widths=(2, 3, 4, 5, 6, 7, 8),
    input_widths=(2, 3, 4, 5, 6, 7, 8),
    covers="both",
    trainable="interval, γ, size",
    kernels=("float",),
)
