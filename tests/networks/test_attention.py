"""PyTorch's attention and transformers."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from .proof import Case, check, told

pytestmark = pytest.mark.usefixtures("in_turn")


class _Encoder(nn.Module):
    """Reads positions from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 64), nn.Linear(64, 3)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y: Tensor = self.head(self.encoder(self.embed(x), mask, is_causal=True).mean(1))
        return y


class _Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 112), nn.Linear(112, 3)
        self.attention = nn.MultiheadAttention(112, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return y


PROJECTIONS = tuple(f"{name}_proj" for name in ("q", "k", "v", "out"))
CASES = {
    "encoder": Case(
        _Encoder, told(5, 8),
        tuple(
            f"encoder.layers.{layer}.{name}"
            for layer in (0, 1)
            for name in (*(f"self_attn.{projection}" for projection in PROJECTIONS), "linear1", "linear2")
        ),
    ),
    "attention": Case(_Attention, told(5, 8), tuple(f"attention.{name}" for name in PROJECTIONS)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_search_report_and_files(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
