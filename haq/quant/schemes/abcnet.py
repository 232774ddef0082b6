"""ABC-Net: weights and activations as sums of several binary bases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.codebook import CodebookQuantizer
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes.base import Scheme

__all__ = ["ABCNET", "ABCActivations", "ABCWeights"]

_RIDGE = 1e-6


class ABCWeights(CodebookQuantizer):
    """W ≈ Σ α_i·B_i with B_i = sign(W − mean(W) + u_i·std(W)), u_i evenly spaced in [−1, 1] (eq. 2–4).

    α starts as the least-squares solution for the bases of the initial weights, and is then trained. The bases are
    nested half-lines, so M of them have M + 1 levels; the thresholds around a value determine its level.

    Args:
        values: The weight.
        bits: M, the number of bases.
        granularity: Which values share α.
    """

    is_projection = False  # a level need not lie between its own thresholds

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "channel") -> None:
        super().__init__(bits, granularity, signed=True)
        rows = group(check_values(values), granularity)
        shifts = torch.linspace(-1, 1, bits) if bits > 1 else torch.zeros(1)
        mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True, unbiased=False)
        self.register_buffer("thresholds", (mean - std * shifts).sort(1).values)
        bases = torch.where(rows[:, :, None] >= self.get_buffer("thresholds")[:, None], 1.0, -1.0)
        gram = bases.transpose(1, 2) @ bases + _RIDGE * rows.shape[1] * torch.eye(bits)
        right = bases.transpose(1, 2) @ rows[:, :, None]
        self.alpha = nn.Parameter(torch.linalg.solve(gram, right)[:, :, 0])

    def levels(self) -> Tensor:
        """Returns the M + 1 sums of nested bases, `(groups, M + 1)`."""
        below = torch.arange(self.bits + 1)[:, None] > torch.arange(self.bits)
        return self.alpha @ torch.where(below, 1.0, -1.0).t().to(self.alpha)

    def indices(self, rows: Tensor, levels: Tensor) -> Tensor:
        """Returns how many thresholds each value has passed."""
        return torch.searchsorted(self.get_buffer("thresholds"), rows.contiguous(), right=True)


class ABCActivations(CodebookQuantizer):
    """R ≈ Σ β_i·A_i with A_i = [R ≥ t_i] and trained β (eq. 7–9).

    The paper's A_i is ±1 around clip(R + v_i, 0, 1). With 0 and 1 instead, the sum is 0 for an input of 0, as after a
    ReLU. The thresholds t_i lie midway between the levels, which start evenly spaced. ∂A_i/∂R is 1 within half a level
    of t_i; for all bases together, this is the straight-through gradient inside the range of the levels.

    Args:
        values: Samples of activations.
        bits: N, the number of bases.
        granularity: `tensor`.
    """

    clips = True

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        values = check_values(values)
        low = values.amin().clamp_max(0)
        super().__init__(bits, "tensor", bool(low < 0))
        # N bases give N + 1 levels; a uniform grid with about as many levels has nearly the same best clip
        width = max(1, (bits + 1).bit_length() - 1)
        start = uniform(values, width, granularity="tensor", clip="mse")
        top = start.scale.detach() * (2 ** (width - 1) if self.signed else 2**width - 1)
        self.register_buffer("offset", -top if self.signed else torch.zeros(1))
        self.beta = nn.Parameter(((top - self.get_buffer("offset")) / bits).expand(bits).clone()[None])

    def levels(self) -> Tensor:
        """Returns the N + 1 partial sums, `(1, N + 1)`."""
        below = torch.arange(self.bits + 1)[:, None] > torch.arange(self.bits)
        return self.get_buffer("offset") + self.beta.abs() @ below.t().to(self.beta)


ABCNET = Scheme(
    name="abcnet",
    title="Towards Accurate Binary Convolutional Neural Network",
    arxiv="1711.11294",
    equation="eq. 2–9; the width is the number of bases; those of activations are 0 and 1, with midway thresholds",
    weights=ABCWeights,
    inputs=ABCActivations,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    input_widths=(1, 2, 3, 4, 5, 6, 7, 8),
    covers="both",
    trainable="α, β",
    kernels=("lookup",),
)
