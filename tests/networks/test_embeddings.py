"""Tables of embeddings, and weights that a module multiplies with itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .proof import Array, Case, check, told

pytestmark = pytest.mark.usefixtures("in_turn")

WORDS = 900


def _words(count: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(count)
    y = rng.integers(0, 3, count)
    return rng.integers(1, WORDS // 3, (count, 6)) + WORDS // 3 * y[:, None], y


class _Text(nn.Module):
    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table, self.hidden, self.head = table, nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        y = self.head(F.relu(self.hidden(y if y.dim() == 2 else y.mean(1))))
        return y


class _Bare(nn.Module):
    """Multiplies, convolves and looks up rows with its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(64, 8) / 3), nn.Parameter(torch.zeros(64))
        self.v = nn.Parameter(torch.randn(64, 128) / 8)
        self.filters, self.up = nn.Parameter(torch.randn(96, 128, 3) / 20), nn.Parameter(torch.randn(96, 48, 2) / 10)
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (F.relu(F.linear(x, self.w, self.b)) @ self.v).transpose(1, 2)
        x = F.relu(F.conv_transpose1d(F.relu(F.conv1d(x, self.filters)), self.up, stride=2))
        y: Tensor = self.head(x.mean(2))
        return y


CASES = {
    "embedding": Case(lambda: _Text(nn.Embedding(WORDS, 64, padding_idx=0)), _words, ("table", "hidden", "head")),
    "bag": Case(lambda: _Text(nn.EmbeddingBag(WORDS, 64, mode="mean")), _words, ("table", "hidden", "head")),
    "bare": Case(_Bare, told(5, 8), ("w", "v", "filters", "up", "head")),
}


@pytest.mark.parametrize("name", CASES)
def test_search_report_and_files(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
