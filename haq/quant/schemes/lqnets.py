"""LQ-Nets: levels are sums of a learned basis."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.codebook import CodebookQuantizer, nearest_level
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.uniform import uniform
from haq.quant.schemes.base import Scheme

__all__ = ["LQNETS", "LQNetsQuantizer"]

_ROUNDS = 20
_MOMENTUM = 0.9
_RIDGE = 1e-4


class LQNetsQuantizer(CodebookQuantizer):
    """Levels Σ v_i·b_i over all codes b, with the basis v fitted to the values by the QEM algorithm.

    QEM alternates between the nearest level for every value and the least-squares basis for these levels. In training
    mode it runs on every batch, and the basis follows as a moving average, without a gradient.

    Args:
        values: A weight, or samples of activations.
        bits: Width, the size of the basis.
        granularity: Which values share a basis.
        signed: Whether b_i is −1 or +1, else 0 or 1; by default if there are negative values.
    """

    clips = True
    signs: Tensor
    basis: Tensor

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "channel", signed: bool | None = None) -> None:
        values = check_values(values)
        super().__init__(bits, granularity, bool((values < 0).any()) if signed is None else signed)
        patterns = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
        self.register_buffer("patterns", patterns.float(), persistent=False)
        rows = group(values, granularity)
        step = uniform(values, bits, granularity=granularity, signed=self.signed).scale.detach()
        powers = 2.0 ** torch.arange(bits)
        self.register_buffer("basis", step[:, None] * (powers / 2 if self.signed else powers))
        for _ in range(_ROUNDS):
            before, self.basis = self.basis, self._fitted(rows)
            if torch.allclose(before, self.basis, rtol=1e-4):
                break

    def _codes(self) -> Tensor:
        """Returns the values of b in each code, `(2^bits, bits)`."""
        patterns = self.get_buffer("patterns")
        return 2 * patterns - 1 if self.signed else patterns

    def _sorted(self) -> tuple[Tensor, Tensor]:
        levels = self.basis @ self._codes().t()
        return levels.sort(1)

    def levels(self) -> Tensor:
        """Returns all sums, ascending."""
        return self._sorted()[0]

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the nearest levels; in training mode the basis first takes a step towards QEM's solution."""
        if self.training:
            fitted = self._fitted(group(x.detach(), self.granularity))
            self.basis.mul_(_MOMENTUM).add_(fitted, alpha=1 - _MOMENTUM)
        return super().fake_quantize(x)

    def _fitted(self, rows: Tensor) -> Tensor:
        """Solves (BᵀB)v = Bᵀx for each group (eq. 9); sums over values are sums over the 2^bits codes."""
        levels, order = self._sorted()
        code = order.gather(1, nearest_level(rows, levels))
        counts = torch.zeros_like(levels).scatter_add_(1, code, torch.ones_like(rows))
        sums = torch.zeros_like(levels).scatter_add_(1, code, rows)
        b = self._codes()
        gram = torch.einsum("gk,ki,kj->gij", counts, b, b)
        # If no value takes some levels, the basis may be undetermined; the ridge then keeps the old one
        ridge = _RIDGE * rows.shape[1]
        right = sums @ b + ridge * self.basis
        eye = torch.eye(self.bits, device=rows.device)
        basis: Tensor = torch.linalg.solve(gram + ridge * eye, right)
        return basis


LQNETS = Scheme(
    name="lqnets",
    title="LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural Networks",
    arxiv="1807.10029",
    equation="eq. 5 and algorithm 1 (QEM)",
    weights=LQNetsQuantizer,
    inputs=LQNetsQuantizer,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    input_widths=(1, 2, 3, 4, 5, 6, 7, 8),
    covers="both",
    trainable="basis",
    kernels=("lookup",),
)
