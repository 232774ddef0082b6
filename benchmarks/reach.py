"""How long the proof takes that quantizers reach every layer, as part of what it precedes.

Usage: python benchmarks/reach.py
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

from haq.models import get_model
from haq.quant.reach import reached
from haq.threads import one_thread

_REPEATS = 9


class Encoder(nn.Module):
    """A transformer of which every layer has to be taken off PyTorch's fused kernel first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 6), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.encoder(x).mean(1))
        return y


def main() -> None:
    torch.manual_seed(0)
    networks = {
        "digits-resnet": (get_model("digits-resnet"), torch.randn(1, 1, 8, 8)),
        "resnet20": (get_model("resnet20"), torch.randn(1, 3, 32, 32)),
        "mobilenet-v2, 224²": (get_model("mobilenet-v2"), torch.randn(1, 3, 224, 224)),
        "encoder, 6 layers, 128 tokens": (Encoder(), torch.randn(1, 128, 256)),
    }
    with one_thread():
        for name, (network, sample) in networks.items():
            times, passes = [], []
            for _ in range(_REPEATS):
                start = time.perf_counter()
                reached(network.eval(), sample)
                times.append(time.perf_counter() - start)
                with torch.no_grad():
                    start = time.perf_counter()
                    network(sample)
                    passes.append(time.perf_counter() - start)
            print(f"{name:32} {median(times) * 1e3:7.0f} ms, {median(times) / median(passes):5.1f} forward passes")


if __name__ == "__main__":
    main()
