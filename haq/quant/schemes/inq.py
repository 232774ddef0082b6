"""INQ: weights become powers of two, half of the remaining ones at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.codebook import CodebookQuantizer
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.schemes.base import Scheme

__all__ = ["INQ", "SCHEDULE", "INQQuantizer"]

SCHEDULE = (0.5, 0.75, 0.875, 1.0)
"""Share of the weights that is quantized in each quarter of fine-tuning (section 3.1, for pretrained CNNs)."""


class INQQuantizer(CodebookQuantizer):
    """{±2^n1, …, ±2^n2, 0} with n1 = ⌊log₂(4·max |W| / 3)⌋ and n2 = n1 + 1 − 2^(bits−1)/2 (eq. 2 and 3).

    A magnitude in [¾·2ⁿ, 1½·2ⁿ) becomes 2ⁿ (eq. 4). In fine-tuning the largest half is quantized and frozen first, and
    the rest, still in floating point, compensates for it; then half of the rest is frozen, and so on. Before and after
    fine-tuning all weights are quantized.

    Args:
        values: The weight.
        bits: Width, at least 2; one code is 0, the others are sign and exponent.
        granularity: Which values share n1; the paper has one per layer.
    """

    share: Tensor

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        super().__init__(bits, granularity, signed=True)
        values = check_values(values)
        rows = group(values, granularity)
        largest = torch.floor(torch.log2(rows.abs().amax(1).clamp_min(1e-12) * 4 / 3))
        exponents = largest[:, None] - torch.arange(2 ** (bits - 2))
        powers = torch.exp2(exponents)
        self.register_buffer("powers", torch.cat([-powers, torch.zeros(len(rows), 1), powers.flip(1)], 1))
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("frozen", torch.zeros(values.shape, dtype=torch.bool))

    def levels(self) -> Tensor:
        """Returns 0 and the signed powers of two, ascending."""
        return self.get_buffer("powers")

    def indices(self, rows: Tensor, levels: Tensor) -> Tensor:
        """Returns the level of each value by eq. 4: boundaries lie at 1½ of the smaller magnitude."""
        half = levels.shape[1] // 2
        powers = levels[:, half + 1 :]
        boundaries = torch.cat([powers[:, :1] / 2, powers[:, :-1] * 1.5], 1).contiguous()
        magnitude = torch.searchsorted(boundaries, rows.abs().contiguous(), right=True)
        return half + torch.where(rows < 0, -magnitude, magnitude)

    def advance(self, progress: float) -> None:
        """Sets the share of quantized weights from `SCHEDULE`; the last quarter of a run quantizes all."""
        share = SCHEDULE[min(int(progress * len(SCHEDULE)), len(SCHEDULE) - 1)]
        if progress == 0.0:
            self.get_buffer("frozen").zero_()
        self.share.fill_(share)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns powers of two; during fine-tuning, weights that are not yet quantized stay unchanged."""
        rounded = self._rounded(x)
        if self.share >= 1 or x.shape != self.get_buffer("frozen").shape:
            return rounded + (x - x.detach())
        frozen = self.get_buffer("frozen")
        missing = round(float(self.share) * x.numel()) - int(frozen.sum())
        if missing > 0:  # freeze the largest of the free weights (section 3.1, pruning-inspired)
            magnitude = x.detach().abs().masked_fill(frozen, -1.0).flatten()
            frozen.view(-1)[magnitude.topk(missing).indices] = True
        return torch.where(frozen, rounded, x)

    def _rounded(self, x: Tensor) -> Tensor:
        rows = group(x.detach(), self.granularity)
        levels = self.levels()
        return ungroup(torch.gather(levels, 1, self.indices(rows, levels)), x, self.granularity)


INQ = Scheme(
    name="inq",
    title="Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights",
    arxiv="1702.03044",
    equation="eq. 1–4; in the last quarter of fine-tuning all weights are powers of two, and gradients pass through",
    weights=INQQuantizer,
    widths=(2, 3, 4, 5, 6, 7, 8),
    trainable="nothing",
    kernels=("shift", "lookup"),
)
