"""Networks that only `torch.export` can trace, beside equal ones that `torch.fx` can."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ptq.networks import Inverted


class CountingPixels(Inverted):
    """Computes what `Inverted` does, but loops over a number that depends on the size of the images."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // x.shape[-1]):
            logits = super().forward(x)
        return logits


class Tokens(nn.Module):
    """Attends to tokens given by number, with positions and a mask, as networks for text do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("positions", torch.arange(16)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if int(x.shape[1]) > 16:
            raise ValueError("too long")
        x = self.words(x) + self.places(self.positions[:, : x.shape[1]])  # type: ignore[index]
        q, k, v = (layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        x = self.norm(x + self.down(F.relu(self.up(x))))
        y: Tensor = self.head(x)
        return y


def tokens(count: int, length: int = 6) -> Tensor:
    return torch.randint(20, (count, length), generator=torch.Generator().manual_seed(1))
