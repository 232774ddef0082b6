"""Uniform quantizers: symmetric, asymmetric and power-of-two grids at every granularity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.quantizers.base import Quantizer, check_values
from haq.quant.quantizers.fake import fake_quantize
from haq.quant.quantizers.functional import (
    Rounding,
    affine_scale,
    is_binary,
    minmax_scale,
    mse_affine,
    mse_scale,
    quantize_affine,
    symmetric_scale,
)
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.ranges import clip_range
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["UniformQuantizer", "round_through", "uniform"]


class UniformQuantizer(Quantizer):
    """r = S·(q − Z), with a scale that fine-tuning learns.

    The logarithm of the scale is trained, which keeps the scale positive and lets one learning rate suit scales of all
    magnitudes (Jain et al. 2020, "Trained Quantization Thresholds", arXiv:1903.08066, section 5.2). For a power-of-two
    scale the logarithm is rounded, and the gradient passes through (the same paper, section 3).

    Args:
        bits: Width of a code.
        scale: S, `(groups,)`, positive.
        signed: Whether the codes are signed.
        zero_point: Z, int32 `(groups,)`; `None` for a symmetric grid.
        granularity: Which values share a scale.
        rounding: `nearest` or `floor`.
        power_of_two: Whether scales stay powers of two.
        learned: Whether the scale is trained.
        adaptive: Whether calibration may choose a grid with or without zero points for a weight.
    """

    zero_point: Tensor | None

    def __init__(
        self,
        bits: int,
        scale: Tensor,
        signed: bool,
        zero_point: Tensor | None = None,
        granularity: str = "tensor",
        rounding: Rounding = "nearest",
        power_of_two: bool = False,
        learned: bool = True,
        adaptive: bool = False,
    ) -> None:
        super().__init__(bits, granularity, signed)
        self.rounding, self.power_of_two, self.adaptive = rounding, power_of_two, adaptive
        self.log_scale = nn.Parameter(scale.detach().to(torch.float32).log(), requires_grad=learned)
        self.register_buffer("zero_point", zero_point)

    @property
    def scale(self) -> Tensor:
        """Step between two neighbouring levels, `(groups,)`."""
        if self.power_of_two:
            return torch.exp2(round_through(self.log_scale / torch.log(torch.tensor(2.0))))
        return self.log_scale.exp()

    @property
    def free_scale(self) -> bool:
        """Whether calibration may choose another scale for each channel of a weight."""
        return self.granularity == "channel" and not self.power_of_two and self.rounding == "nearest"

    def regridded(self, scale: Tensor, zero_point: Tensor | None) -> UniformQuantizer:
        """Returns a quantizer of the same kind with another grid, `(groups,)` each."""
        return UniformQuantizer(
            self.bits, scale, self.signed, zero_point, self.granularity, self.rounding, self.power_of_two,
            self.log_scale.requires_grad, self.adaptive,
        )  # fmt: skip

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns S·(q − Z) with straight-through gradients; see `haq.quant.quantizers.fake`."""
        if self.granularity == "tensor":
            return fake_quantize(x, self.scale, self.bits, self.signed, None, self.zero_point, self.rounding)
        rows = group(x, self.granularity).contiguous()
        y = fake_quantize(rows, self.scale, self.bits, self.signed, 0, self.zero_point, self.rounding)
        return ungroup(y, x, self.granularity)

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the codes with scale and zero point."""
        scale, zero = self.scale.detach(), self.zero_point
        rows = group(x.detach().float(), self.granularity)
        codes = quantize_affine(
            rows, scale[:, None], self.bits, self.signed, None if zero is None else zero[:, None], self.rounding
        )
        return QuantizedTensor(ungroup(codes, x, self.granularity), self.bits, self.granularity, x.dtype, scale, zero)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Accepts a state with or without zero points, because calibration chooses between them."""
        stored = state_dict.get(prefix + "zero_point")
        self.zero_point = None if stored is None else torch.zeros_like(stored)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def learned(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Yields the logarithm of the scale with magnitude 1, because it needs no relative learning rate."""
        if self.log_scale.requires_grad:
            yield self.log_scale, 1.0


def uniform(
    values: Tensor,
    bits: int,
    *,
    granularity: str = "channel",
    symmetric: bool | None = True,
    rounding: Rounding = "nearest",
    power_of_two: bool = False,
    clip: str = "mse",
    learned: bool = True,
    signed: bool | None = None,
) -> UniformQuantizer:
    """Returns a uniform quantizer for values like these.

    Args:
        values: A weight, or samples of activations, `(samples, n)`.
        bits: Width of a code.
        granularity: Which values share a scale.
        symmetric: Whether the zero point is 0. `None` starts with a symmetric grid, and lets calibration choose for
            each weight and width; see `haq.quant.compensation`.
        rounding: `nearest` or `floor`.
        power_of_two: Whether scales are powers of two.
        clip: Method of range setting: `mse`, or a name in `haq.quant.quantizers.ranges.RANGES`.
        learned: Whether fine-tuning trains the scale.
        signed: Whether codes are signed; by default if there are negative values or the grid is asymmetric.

    Raises:
        ConfigError: The method or the granularity is unknown.
        DataError: The values are empty or not finite.
    """
    values = check_values(values)
    adaptive, symmetric = symmetric is None, symmetric is not False
    if signed is None:
        signed = not symmetric or bool((values < 0).any())
    rows = group(values, granularity)
    zero_point = None
    if clip == "mse":
        if symmetric:
            scale = mse_scale(rows, bits, signed, power_of_two=power_of_two)
        else:
            scale, zero_point = mse_affine(rows, bits, signed)
    elif symmetric and is_binary(bits, signed):
        scale = minmax_scale(rows, bits, signed)  # {−α, +α} needs no range; α is mean |x|
    else:
        samples = len(values) if granularity == "tensor" and values.dim() else 1
        low, high = clip_range(rows.reshape(len(rows), samples, -1), bits, clip)
        if symmetric:
            scale = symmetric_scale(low, high, bits, signed, power_of_two)
        else:
            scale, zero_point = affine_scale(low, high, bits, signed)
    return UniformQuantizer(bits, scale, signed, zero_point, granularity, rounding, power_of_two, learned, adaptive)


def round_through(x: Tensor) -> Tensor:
    """Rounds to nearest; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()
