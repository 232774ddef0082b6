"""One layer's weight at several widths: its grids, and what is rounded to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from haq.quant.compensation.moments import Moments, takes_shift
from haq.quant.compensation.rounding import Grid, as_columns, as_weight, damped, descend, diffuse, output_error
from haq.quant.functional import is_binary, mse_affine
from haq.quant.quantizer import Quantizer
from haq.quant.tensor import QuantizedTensor
from haq.quant.uniform import UniformQuantizer

__all__ = ["Rounded", "compensated_target", "round_layer"]

_WIDEST = 8  # at 16 bits there is nothing to make up for
_STEPS = (1.0, 0.85, 0.7)  # of the step that rounding to the nearest wants: with compensation finer ones win
_REFITS = 2
_CLIPS = 16  # a start for the fit
_WORTH = 1e-3  # of the outputs' energy: a zero point costs a sum of activations, and must save as much error
_FEW_ENOUGH = 2.0e11  # operations that a layer may take for all steps and refits; a larger one tries fewer


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
    layer: nn.Conv2d | nn.Linear, quantizers: Mapping[int, Quantizer], moments: Moments | None
) -> dict[int, Rounded]:
    """Rounds a layer's weight for every width, so that its outputs stay close to what they are in the float network.

    Uniform grids with one scale a channel get the scale and, where a quantizer is `adaptive`, the zero points that fit
    compensated rounding best; other grids and codebooks stay as they are. A quantizer that does not give values on its
    grid back as they are, because its grid depends on them, keeps rounding to the nearest.

    Args:
        layer: With the float network's weight and bias.
        quantizers: By width.
        moments: Of what the layer reads; without them weights are rounded to the nearest.
    """
    found = {width: Rounded(quantizer) for width, quantizer in quantizers.items()}
    chosen = {width: quantizer for width, quantizer in quantizers.items() if _compensable(quantizer)}
    if moments is None or not chosen:
        return found
    weight = layer.weight.detach().float()
    gram = damped(moments.gram, moments.samples)
    target = compensated_target(as_columns(weight, len(gram)), moments, gram)
    fitted = _fitted(weight, target, gram, chosen)
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


def compensated_target(weight: Tensor, moments: Moments, gram: Tensor) -> Tensor:
    """Returns the weight that makes the most of the inputs that a layer gets, to be rounded in place of the exact one.

    The W* that minimises ‖W x − W* x̂‖² is W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹, damped towards W; rounding it for x̂ is then the whole
    problem (the first step of Qronos, Zhang et al. 2025, arXiv:2505.11695, section 3, for all columns at once).

    Args:
        weight: `(groups, K, rows)`.
        moments: Of the layer's inputs.
        gram: Damped.
    """
    if moments.cross is None:
        return weight
    wanted = (moments.cross + gram - moments.gram).transpose(1, 2) @ weight
    return torch.linalg.solve(gram.double(), wanted.double()).float()


def _compensable(quantizer: nn.Module) -> bool:
    return isinstance(quantizer, Quantizer) and quantizer.is_projection and quantizer.bits <= _WIDEST


def _mean_error(exact: Tensor, rounded: Tensor, moments: Moments) -> Tensor:
    """Returns E[Ŵ x̂ − W x], `(M,)`."""
    groups = len(moments.gram)
    given = torch.einsum("gkr,gk->gr", as_columns(rounded, groups), moments.mean)
    wanted = torch.einsum("gkr,gk->gr", as_columns(exact, groups), moments.exact_mean)
    return (given - wanted).flatten()


def _fitted(
    weight: Tensor, target: Tensor, gram: Tensor, quantizers: Mapping[int, Quantizer]
) -> dict[int, tuple[Quantizer, Tensor]]:
    """Returns the best grid of every width that may choose one, and the target rounded to it.

    All grids of all widths are tried at once, as copies of the rows.
    """
    tried = [
        (width, start)
        for width, quantizer in quantizers.items()
        if isinstance(quantizer, UniformQuantizer) and quantizer.free_scale
        for start in _starts(weight, quantizer)
    ]
    if not tried:
        return {}
    groups, columns, rows = target.shape
    work = 4.0 * groups * columns * columns * rows * len(tried)
    steps = _STEPS if work * len(_STEPS) * (1 + _REFITS) < _FEW_ENOUGH else _STEPS[:1]
    grids = [grid.scaled(torch.tensor(step)) for _, start in tried for grid in [start.grid(groups)] for step in steps]
    grid, copies = Grid.beside(grids), target.repeat(1, 1, len(grids))
    values = diffuse(copies, gram, grid)
    for _ in range(_REFITS if work * len(steps) < _FEW_ENOUGH else 1):
        factor = _best_factor(copies, values, gram)
        grid, values = grid.scaled(factor), values * factor
        values = descend(copies, values, gram, grid)
    factor = _best_factor(copies, values, gram)
    grid, values = grid.scaled(factor), values * factor
    error = output_error(copies, values, gram).view(groups, len(tried), len(steps), rows)
    best = error.argmin(2)  # of the steps, (groups, tried, rows)
    least = error.amin(2)
    energy = float(output_error(target, torch.zeros_like(target), gram).sum())
    found: dict[int, tuple[Quantizer, Tensor]] = {}
    for width, quantizer in quantizers.items():
        options = [index for index, (tried_width, _) in enumerate(tried) if tried_width == width]
        if not options:
            continue
        symmetric, *shifted = options
        owner = torch.full((groups, rows), symmetric)
        if shifted:
            # A symmetric channel is one whose zero point is 0; {−1, +1} is no such grid
            choice = shifted if quantizer.bits == 1 else options
            among = least[:, choice]
            if float(least[:, symmetric].sum() - among.amin(1).sum()) > _WORTH * energy:
                owner = torch.tensor(choice)[among.argmin(1)]
        step = best.gather(1, owner[:, None])[:, 0]
        picked = (owner * len(steps) + step) * rows + torch.arange(rows)
        scale = grid.scale[:, 0].gather(1, picked).flatten()
        zero = None
        assert isinstance(quantizer, UniformQuantizer)
        if quantizer.zero_point is not None or bool((owner != symmetric).any()):
            zeros = torch.stack([start.zero_point.view(groups, rows) for _, start in tried], 1)
            zero = zeros.gather(1, owner[:, None])[:, 0].flatten()
        elif tried[symmetric][1].binary:
            scale = scale / 2  # the distance of −α and +α
        taken = values.gather(2, picked[:, None].expand(-1, columns, -1))
        found[width] = quantizer.regridded(scale, zero), taken
    return found


@dataclass(frozen=True, eq=False)
class _Start:
    scale: Tensor
    zero_point: Tensor
    bits: int
    binary: bool

    def grid(self, groups: int) -> Grid:
        scale = self.scale.view(groups, 1, -1)
        none = torch.zeros_like(scale)
        if self.binary:
            return Grid(2 * scale, none, none + 1, none + 0.5)
        zero = self.zero_point.view(groups, 1, -1).float()
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return Grid(scale, low - zero, high - zero, none)


def _starts(weight: Tensor, quantizer: UniformQuantizer) -> list[_Start]:
    """Returns the quantizer's own grid, and one with zero points where it may have them."""
    scale, zero = quantizer.scale.detach(), quantizer.zero_point
    binary = zero is None and is_binary(quantizer.bits, quantizer.signed)
    none = torch.zeros(len(scale), dtype=torch.int32)
    starts = [_Start(scale, none if zero is None else zero, quantizer.bits, binary)]
    if quantizer.adaptive:
        shifted, zeros = mse_affine(weight.flatten(1), quantizer.bits, signed=True, candidates=_CLIPS)
        if quantizer.bits > 1:
            starts.append(_Start(shifted, zeros, quantizer.bits, binary=False))
        else:
            starts += [_Start(scale * 2, torch.full_like(none, z), 1, binary=False) for z in (-1, 0)]
    return starts


def _best_factor(target: Tensor, rounded: Tensor, gram: Tensor) -> Tensor:
    """Returns by what each row's scale is best multiplied, its codes unchanged: a least-squares fit, `(groups, 1, n)`."""
    seen = gram @ rounded
    along, own = (seen * target).sum(1, keepdim=True), (seen * rounded).sum(1, keepdim=True)
    return torch.where((along > 0) & (own > 0), along / own.clamp_min(1e-30), torch.ones_like(own)).clamp(0.5, 2.0)
