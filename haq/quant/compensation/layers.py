"""One layer's weight at several widths: its grids, and what is rounded to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from haq.quant.compensation.fitting import fit_grids
from haq.quant.compensation.moments import Moments, takes_shift
from haq.quant.compensation.rounding import Grid, as_columns, as_weight, damped, descend, diffuse
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["Rounded", "compensated_target", "round_layer"]

_TARGET_PER_COLUMN = 1.0  # times columns over samples: towards the exact weight, where samples are few
_WIDEST = 8  # at 16 bits there is nothing to make up for


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight that lies on its quantizer's grid, in little memory.

    Attributes:
        quantizer: Gives the weight back as it is.
        codes: As the quantizer would encode the weight, in a byte each; `None` for the nearest levels.
        shift: Mean error of each output channel, to be taken off the bias, `(M,)`; `None` where that is not wanted.
    """

    quantizer: nn.Module
    codes: QuantizedTensor | None = None
    shift: Tensor | None = None

    def weight(self, exact: Tensor) -> Tensor:
        """Returns the weight that the layer holds: on the grid, or the float network's where that is rounded later."""
        if self.codes is None:
            return exact
        return replace(self.codes, codes=self.codes.codes.to(torch.int32)).dequantize()

    def bias(self, layer: nn.Conv2d | nn.Linear) -> Tensor | None:
        """Returns the bias that the layer holds beside this weight."""
        own = None if layer.bias is None else layer.bias.detach()
        if self.shift is None:
            return own
        return -self.shift if own is None else own - self.shift

    def put_in(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Gives the layer this weight, and takes the mean error off its bias."""
        if self.codes is None:
            return
        trained = layer.weight.requires_grad
        layer.weight = nn.Parameter(self.weight(layer.weight.detach()), requires_grad=trained)
        if (bias := self.bias(layer)) is not None:
            layer.bias = nn.Parameter(bias, requires_grad=trained)


def round_layer(
    layer: nn.Conv2d | nn.Linear, quantizers: Mapping[int, Quantizer], moments: Moments | None, choose: bool = True
) -> dict[int, Rounded]:
    """Rounds a layer's weight for every width, so that its outputs stay close to what they are in the float network.

    Uniform grids with one scale a channel get the scale and, where a quantizer is `adaptive`, the zero points that fit
    compensated rounding best; other grids and codebooks stay as they are. A quantizer that does not give values on its
    grid back as they are, because its grid depends on them, keeps rounding to the nearest.

    Args:
        layer: With the float network's weight and bias.
        quantizers: By width.
        moments: Of what the layer reads; without them weights are rounded to the nearest.
        choose: Whether zero points may be chosen; otherwise they stay as they are.
    """
    found = {width: Rounded(quantizer) for width, quantizer in quantizers.items()}
    chosen = {width: quantizer for width, quantizer in quantizers.items() if _compensable(quantizer)}
    if moments is None or not chosen:
        return found
    weight = layer.weight.detach().float()
    gram = damped(moments.gram, moments.samples)
    target = compensated_target(as_columns(weight, len(gram)), moments)
    fitted = fit_grids(weight, target, gram, chosen, choose)
    for width, quantizer in chosen.items():
        if width in fitted:
            quantizer, values = fitted[width]
        else:
            grid = Grid.of(quantizer.encode(weight), len(gram))
            values = descend(target, diffuse(target, gram, grid), gram, grid)
        rounded = as_weight(values, weight)
        stored = quantizer.encode(rounded)
        if not torch.allclose(stored.dequantize(), rounded, rtol=1e-4, atol=1e-9):
            continue  # its grid moves with the values
        narrow = torch.int8 if stored.codes.amax() <= 127 else torch.uint8
        stored = replace(stored, codes=stored.codes.to(narrow), dtype=layer.weight.dtype)
        shift = _mean_error(weight, rounded, moments).to(layer.weight.dtype) if takes_shift(layer) else None
        found[width] = Rounded(quantizer, stored, shift)
    return found


def compensated_target(weight: Tensor, moments: Moments) -> Tensor:
    """Returns the weight that makes the most of the inputs that a layer gets, to be rounded in place of the exact one.

    The W* that minimises ‖W x − W* x̂‖² is W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹, damped towards W; rounding it for x̂ is then the whole
    problem (the first step of Qronos, Zhang et al. 2025, arXiv:2505.11695, section 3, for all columns at once).

    Args:
        weight: `(groups, K, rows)`.
        moments: Of the layer's inputs.
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
    groups = len(moments.gram)
    given = torch.einsum("gkr,gk->gr", as_columns(rounded, groups), moments.mean)
    wanted = torch.einsum("gkr,gk->gr", as_columns(exact, groups), moments.exact_mean)
    return (given - wanted).flatten()
