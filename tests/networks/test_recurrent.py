"""Recurrent networks: both directions, several layers, cells, and sequences of different lengths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .proof import Array, Case, check, told

pytestmark = pytest.mark.usefixtures("in_turn")

STEPS = 6


class _Reader(nn.Module):
    def __init__(self, kind: Any, hidden: int, **options: Any) -> None:
        super().__init__()
        self.rnn, width = kind(8, hidden, batch_first=True, **options), options.get("proj_size") or hidden
        self.head = nn.Linear(2 * width if options.get("bidirectional") else width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0].mean(1))
        return y


class _Padded(_Reader):
    """Takes zeros at the end of a sequence for padding."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).any(-1).sum(1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y: Tensor = self.head(pad_packed_sequence(self.rnn(packed)[0], True, total_length=x.shape[1])[0].mean(1))
        return y


class _Cells(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 112), nn.Linear(112, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        y: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return y


def _padded(count: int) -> tuple[Array, Array]:
    x, y = told(STEPS, 8)(count)
    x[np.arange(STEPS) >= np.random.default_rng(1).integers(2, STEPS + 1, count)[:, None]] = 0
    return x, y


BOTH = tuple(
    f"rnn.weight_{what}_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse") for what in ("ih", "hh")
)
CASES = {
    "lstm": Case(lambda: _Reader(nn.LSTM, 40, num_layers=2, bidirectional=True), told(STEPS, 8), BOTH),
    "gru": Case(lambda: _Reader(nn.GRU, 48, num_layers=2, bidirectional=True), told(STEPS, 8), BOTH),
    "projected": Case(lambda: _Reader(nn.LSTM, 160, proj_size=64), told(STEPS, 8), ("rnn.weight_hr_l0",)),
    "of different lengths": Case(
        lambda: _Padded(nn.GRU, 48, num_layers=2, bidirectional=True),
        _padded,
        BOTH,
        refused="module 'rnn' runs packed sequences, so its number of steps",
    ),
    "cells": Case(lambda: _Cells(nn.LSTMCell), told(STEPS, 8), ("cell.weight_ih", "cell.weight_hh")),
}


@pytest.mark.parametrize("name", CASES)
def test_search_report_and_files(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
