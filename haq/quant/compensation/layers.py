"""Rounds one layer's weight for several widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from haq.layers.kinds import bias_of
from haq.quant.compensation.care import Care
from haq.quant.compensation.fitting import fit_grids
from haq.quant.compensation.moments import Moments, takes_shift
from haq.quant.compensation.rounding import Grid, as_columns, as_weight, damped, descend, diffuse
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["Rounded", "compensated_target", "round_layer"]

_TARGET_PER_COLUMN = 1.0  # times columns over samples: few samples keep the target near the exact weight
_WIDEST = 8  # at 16 bits there is nothing to compensate for


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight on its quantizer's grid, in compact form.

    Attributes:
        quantizer: Quantizer of the weight; it leaves the rounded weight unchanged.
        codes: The quantizer's codes of the weight, one byte each; `None` if the quantizer rounds the float weight to
            the nearest levels.
        shift: Mean error of each output channel, to subtract from the bias, `(M,)`; `None` for none.
    """

    quantizer: nn.Module
    codes: QuantizedTensor | None = None
    shift: Tensor | None = None

    def weight(self, exact: Tensor) -> Tensor:
        """Returns the weight that the layer holds: on the grid, or `exact` if the quantizer rounds it later."""
        if self.codes is None:
            return exact
        return replace(self.codes, codes=self.codes.codes.to(torch.int32)).dequantize()

    def bias(self, layer: nn.Module) -> Tensor | None:
        """Returns the bias that goes with this weight, given the layer with its float bias."""
        bias = bias_of(layer)
        own = None if bias is None else bias.detach()
        if self.shift is None:
            return own
        return -self.shift if own is None else own - self.shift

    def put_in(self, layer: Any) -> None:
        """Puts this weight into the layer, and subtracts the mean error from its bias."""
        if self.codes is None:
            return
        trained = layer.weight.requires_grad
        layer.weight = nn.Parameter(self.weight(layer.weight.detach()), requires_grad=trained)
        if (bias := self.bias(layer)) is not None:
            layer.bias = nn.Parameter(bias, requires_grad=trained)


def round_layer(
    layer: Any,
    quantizers: Mapping[int, Quantizer],
    moments: Moments | None,
    choose: bool = True,
    care: Care = Care.FULL,
) -> dict[int, Rounded]:
    """Rounds a layer's weight for every width, so that the layer's outputs stay close to the float network's.

    Uniform grids with one scale per channel get the scales that suit compensated rounding best, and zero points if the
    quantizer is `adaptive`. Other grids and codebooks stay unchanged. If a quantizer changes values that are on its
    grid, because the grid depends on the values, it keeps rounding to the nearest level.

    Args:
        layer: Layer with the float network's weight and bias.
        quantizers: Width → quantizer of the weight.
        moments: Moments of the layer's inputs; `None` rounds weights to the nearest level.
        choose: Whether zero points may be chosen; otherwise they stay unchanged.
        care: With less than full care, zero points stay unchanged, and weights are rounded once.

    Returns:
        Width → rounded weight.
    """
    found = {width: Rounded(quantizer) for width, quantizer in quantizers.items()}
    chosen = {width: quantizer for width, quantizer in quantizers.items() if _compensable(quantizer)}
    if moments is None or not chosen:
        return found
    weight = layer.weight.detach().float()
    gram, blocks, full = damped(moments.gram, moments.samples), moments.blocks, care is Care.FULL
    groups = len(gram) // blocks
    target = compensated_target(as_columns(weight, groups, blocks), moments)
    fitted = fit_grids(weight, target, gram, chosen, choose and full, blocks, refit=full)
    for width, quantizer in chosen.items():
        if width in fitted:
            quantizer, values = fitted[width]
        else:
            grid = Grid.of(quantizer.encode(weight), groups, blocks)
            values = diffuse(target, gram, grid)
            if full:
                values = descend(target, values, gram, grid)
        rounded = as_weight(values, weight, blocks)
        stored = quantizer.encode(rounded)
        if not torch.allclose(stored.dequantize(), rounded, rtol=1e-4, atol=1e-9):
            continue  # the grid depends on the values
        narrow = torch.int8 if stored.codes.amax() <= 127 else torch.uint8
        stored = replace(stored, codes=stored.codes.to(narrow), dtype=layer.weight.dtype)
        shift = _mean_error(weight, rounded, moments).to(layer.weight.dtype) if takes_shift(layer) else None
        found[width] = Rounded(quantizer, stored, shift)
    return found


def compensated_target(weight: Tensor, moments: Moments) -> Tensor:
    """Returns the weight that best reproduces the exact outputs from the layer's actual inputs; this one is rounded.

    The W* that minimises ‖W x − W* x̂‖² is W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹, damped towards W. Rounding W* for x̂ is then
    equivalent to the whole problem (the first step of Qronos, Zhang et al. 2025, arXiv:2505.11695, section 3, for all
    columns at once).

    Args:
        weight: W, `(groups, K, rows)`.
        moments: Moments of the layer's inputs.
    """
    if moments.cross is None:
        return weight
    gram = damped(moments.gram, moments.samples, _TARGET_PER_COLUMN)
    wanted = (moments.cross + gram - moments.gram).transpose(1, 2) @ weight
    solved: Tensor = torch.linalg.solve(gram.double(), wanted.double()).float()
    return solved


def _compensable(quantizer: nn.Module) -> bool:
    return isinstance(quantizer, Quantizer) and quantizer.is_projection and quantizer.bits <= _WIDEST


def _mean_error(exact: Tensor, rounded: Tensor, moments: Moments) -> Tensor:
    """Returns E[Ŵ x̂ − W x], `(M,)`."""
    groups, blocks = len(moments.gram) // moments.blocks, moments.blocks
    given = torch.einsum("gkr,gk->gr", as_columns(rounded, groups, blocks), moments.mean)
    wanted = torch.einsum("gkr,gk->gr", as_columns(exact, groups, blocks), moments.exact_mean)
    return (given - wanted).view(groups, blocks, -1).sum(1).flatten()
