"""BNN: weights and activations −1 and +1."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.granularity import ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.binary import SignQuantizer, sign, sign_through

__all__ = ["BNN", "SignActivations", "SignWeights"]


class SignWeights(SignQuantizer):
    """sign(w); the gradient passes where |w| ≤ 1 (eq. 4).

    Args:
        values: The weight.
        bits: 1.
        granularity: Has no effect.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        check_values(values)
        super().__init__(1, granularity, signed=True)


class SignActivations(Quantizer):
    """β·sign(x − τ).

    A BNN has batch norms before its signs and no ReLU, so τ = 0. In a network with ReLU, activations are never negative
    and all signs would be the same; there τ is the mean of the calibration samples. The gradient passes within twice
    the mean deviation on each side, for the |x| ≤ 1 of eq. 4 with normalised activations.

    Args:
        values: Samples of activations.
        bits: 1.
        granularity: `tensor`.
    """

    is_projection = False  # −β and +β need not lie on both sides of τ
    threshold: Tensor
    reach: Tensor

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        values = check_values(values)
        super().__init__(1, "tensor", signed=True)
        negative = bool((values < 0).any())
        threshold = values.new_zeros(1) if negative else values.mean().view(1)
        self.register_buffer("threshold", threshold)
        self.register_buffer("reach", 1 / _mean_inverse(values - threshold))

    def magnitude(self, x: Tensor) -> Tensor:
        """Returns β: 1 in a BNN."""
        return x.new_ones(1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns β·sign(x − τ)."""
        centred = x - self.threshold
        return sign_through(centred, float(self.reach)) * self.magnitude(centred.detach())

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns codes −1 and +1 with scale β."""
        centred = x.detach().float() - self.threshold
        codes = ungroup(sign(centred).to(torch.int32).reshape(1, -1), x, "tensor")
        return QuantizedTensor(codes, 1, "tensor", x.dtype, self.magnitude(centred).reshape(1))


def _mean_inverse(centred: Tensor) -> Tensor:
    return 1 / (2 * centred.abs().mean().view(1)).clamp_min(1e-8)


BNN = Scheme(
    name="bnn",
    title="Binarized Neural Networks: Training Neural Networks with Weights and Activations Constrained to +1 or −1",
    arxiv="1602.02830",
    equation="eq. 1 and 4; behind a ReLU the sign is taken around the mean activation",
    weights=SignWeights,
    inputs=SignActivations,
    widths=(1,),
    input_widths=(1,),
    covers="both",
    kernels=("float",),
)
