"""Small networks of `(N, 1, 8, 8)` pictures with modules of several weights, or weights without a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .networks import Make


class Rows(nn.Module):
    """Reads the rows of a picture one after the other."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn: Any = kind(8, 6, **{"batch_first": True, **options})
        self.head = nn.Linear((options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x.flatten(1, 2))[0].mean(1))
        return y


class Packed(Rows):
    """Reads fewer rows of some pictures."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([8, 3, 5, 8])[: len(x)]
        packed = pack_padded_sequence(x.flatten(1, 2), lengths, batch_first=True, enforce_sorted=False)
        y: Tensor = self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].mean(1))
        return y


class Cells(nn.Module):
    """Makes the steps itself."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = kind(8, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for row in x.flatten(1, 2).unbind(1):
            state = self.cell(row, state)
        y: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return y


class Wrapped(nn.LSTM):
    """Has a forward pass of its own, which leaves the weights to PyTorch."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        self.flatten_parameters()
        y, state = super().forward(x)
        return y + 1, state


class Bare(nn.Module):
    """Multiplies with its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b = nn.Parameter(torch.randn(12, 8) / 3), nn.Parameter(torch.randn(12))
        self.v, self.head = nn.Parameter(torch.randn(12, 6) / 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(F.relu(F.linear(x.flatten(1, 2), self.w, self.b)) @ self.v).mean(1))
        return y


class BareConvolution(nn.Module):
    """Convolves with its own parameter, in a part that is used twice."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters, self.bias = nn.Parameter(torch.randn(1, 1, 3, 3)), nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filters, self.bias, padding=1)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = self.again = self.Part()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.again(F.relu(self.part(x)))).flatten(1))
        return y


def _computed(wrap: Any) -> nn.Module:
    network = Rows(nn.LSTM)
    wrap(network.rnn, "weight_hh_l0")
    return network


SEVERAL_WEIGHTS: dict[str, Make] = {
    "lstm": lambda: Rows(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm with projections": lambda: Rows(nn.LSTM, proj_size=4),
    "gru": lambda: Rows(nn.GRU, bias=False, bidirectional=True),
    "rnn": lambda: Rows(nn.RNN, nonlinearity="relu"),
    "packed": lambda: Packed(nn.LSTM, bidirectional=True),
    "lstm cell": lambda: Cells(nn.LSTMCell),
    "gru cell": lambda: Cells(nn.GRUCell),
    "rnn cell": lambda: Cells(nn.RNNCell),
    "lstm with weight norm": lambda: _computed(parametrizations.weight_norm),
    "lstm with weight norm of before": lambda: _computed(weight_norm),
    "wrapped lstm": lambda: Rows(Wrapped),
    "bare": Bare,
    "bare convolution": BareConvolution,
}
"""Networks whose layers are all reached."""
