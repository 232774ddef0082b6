"""The quantizer module: a width, a sign, and a learned step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.quant.fake import fake_quantize
from haq.quant.functional import integer_range, quantize

__all__ = ["Quantizer"]


class Quantizer(nn.Module):
    """Fake-quantizes a tensor to a uniform symmetric grid with a learned scale.

    The scale is trained as its logarithm, which keeps it positive and makes one learning rate fit scales of every
    magnitude (Jain et al. 2020, "Trained Quantization Thresholds", arXiv:1903.08066, section 5.2). The width and the
    sign travel in the state dict, so that a checkpoint says what it holds.

    Args:
        bits: Width.
        signed: Whether the codes are signed.
        scale: `(1,)` for one scale, or `(channels,)` for one a channel; positive.
        axis: The channel dimension, `None` for one scale.
    """

    def __init__(self, bits: int, signed: bool, scale: Tensor, axis: int | None = None) -> None:
        super().__init__()
        self.bits, self.signed, self.axis = bits, signed, axis
        self.log_scale = nn.Parameter(scale.detach().to(torch.float32).log())

    @property
    def scale(self) -> Tensor:
        """Step between two neighbouring levels, `(1,)` or `(channels,)`."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized `x`, same shape and dtype."""
        return fake_quantize(x, self.scale, self.bits, self.signed, self.axis)

    def codes(self, x: Tensor) -> Tensor:
        """Returns the int32 codes of `x`, same shape: `forward(x)` is these times the scale."""
        scale = self.scale.detach()
        if self.axis is not None:
            scale = scale.view([-1 if d == self.axis else 1 for d in range(x.dim())])
        return quantize(x, scale, self.bits, self.signed)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the width and sign for the state dict."""
        return {"bits": self.bits, "signed": self.signed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the sign from a state dict.

        Raises:
            ModelError: The state dict holds another width.
        """
        if state["bits"] != self.bits:
            raise ModelError(f"the weights were quantized to {state['bits']} bits, but the policy says {self.bits}")
        self.signed = bool(state["signed"])

    def extra_repr(self) -> str:
        """Returns what `print(model)` shows."""
        low, high = integer_range(self.bits, self.signed)
        return f"bits={self.bits}, codes=[{low}, {high}], per={'tensor' if self.axis is None else 'channel'}"
