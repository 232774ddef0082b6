"""A network and data so small that a trial takes milliseconds, for chaos.py and soak.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Layers that tell which quarter of a picture is bright: few would have fewer policies than a soak has trials."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(1 if index == 0 else 4, 4, 3, padding=1) for index in range(15))
        self.linear = nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x)) + x if conv.in_channels == conv.out_channels else torch.relu(conv(x))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = rng.normal(0, 1, (400, 1, 4, 4)).astype(np.float32)
    for label in range(4):
        rows, columns = slice(2 * (label // 2), 2 * (label // 2) + 2), slice(2 * (label % 2), 2 * (label % 2) + 2)
        x[y == label, 0, rows, columns] += 1
    return (x[:300], y[:300]), (x[300:], y[300:])


def model() -> nn.Module:
    net, ((x, y), _) = Tiny(), data()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return net
