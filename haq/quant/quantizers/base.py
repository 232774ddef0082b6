"""Base class of all quantizers: modules that round a tensor to a grid and give its codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import DataError, ModelError
from haq.quant.quantizers.granularity import check_granularity
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["Quantizer", "check_values"]


class Quantizer(nn.Module):
    """Rounds a tensor to at most 2^bits levels in each group, with gradients for fine-tuning.

    A subclass implements `encode`, which returns the codes, and `fake_quantize`, which returns the same numbers with
    gradients. The width is part of the state dict, so that a checkpoint states its own widths.

    Args:
        bits: Width of a code.
        granularity: Which values share parameters; see `haq.quant.quantizers.granularity`.
        signed: Whether negative values are kept.
    """

    is_projection = True
    """Whether quantizing the output again changes nothing; a subclass sets it to false if its formula is different."""

    def __init__(self, bits: int, granularity: str, signed: bool) -> None:
        super().__init__()
        self.bits, self.granularity, self.signed = bits, check_granularity(granularity), signed

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized `x`, same shape and dtype."""
        if x.dtype == torch.float32:
            return self.fake_quantize(x)
        return self.fake_quantize(x.float()).to(x.dtype)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Returns the numbers that the codes of a float32 `x` stand for, with gradients."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> QuantizedTensor:
        """Returns the codes of `x`; they stand for the numbers of `forward(x)`."""
        raise NotImplementedError

    def codes(self, x: Tensor) -> Tensor:
        """Returns the int32 codes of `x`, same shape."""
        return self.encode(x).codes

    def penalty(self, x: Tensor) -> Tensor | None:
        """Returns a term to add to the loss in fine-tuning, given the tensor to quantize; most quantizers have none."""
        return None

    def advance(self, progress: float) -> None:
        """Called before every fine-tuning step with the share of the run that is done, 0 to 1; for schedules."""

    def learned(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Yields each trained parameter with its magnitude; the learning rate is multiplied by the magnitude."""
        for parameter in self.parameters(recurse=False):
            if parameter.requires_grad:
                yield parameter, float(parameter.detach().abs().mean().clamp_min(1e-8))

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the width and sign for the state dict."""
        return {"bits": self.bits, "signed": self.signed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores `signed` from a state dict, and checks the width.

        Raises:
            ModelError: The state dict holds another width.
        """
        if state["bits"] != self.bits:
            raise ModelError(f"the weights were quantized to {state['bits']} bits, but the policy says {self.bits}")
        self.signed = bool(state["signed"])

    def extra_repr(self) -> str:
        """Returns what `print(model)` shows."""
        return f"bits={self.bits}, per={self.granularity}"


def check_values(x: Tensor) -> Tensor:
    """Returns `x`, detached and as float32.

    Raises:
        DataError: The tensor is empty, is not floating-point, or has NaN or infinite values.
    """
    if not x.is_floating_point():
        raise DataError(f"a tensor of {x.dtype} cannot be quantized; convert it to floating point first")
    if not x.numel():
        raise DataError(f"an empty tensor of shape {tuple(x.shape)} cannot be quantized")
    if not bool(torch.isfinite(x).all()):
        raise DataError(f"a tensor of shape {tuple(x.shape)} has NaN or infinite values; remove them before quantizing")
    return x.detach().float()
