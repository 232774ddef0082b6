from collections.abc import Sequence

import numpy as np
import pytest

from haq.hwmodels import CostTable
from haq.layers import LayerSpec

WIDTHS = (2, 4, 8)


def make_layers(count: int) -> list[LayerSpec]:
    return [
        LayerSpec(f"conv{i}", "conv", 8 + i, 9 + i, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8), 64 * p, p, 0)
        for i, p in ((i, (8 + i) * (9 + i) * 9) for i in range(count))
    ]


def make_table(count: int, widths: Sequence[int] = WIDTHS, seed: int = 0) -> CostTable:
    """Latency and size that grow with both widths, at a rate of their own for every layer."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.5, 2.0, (count, 1, 1))
    w, a = np.array(widths, float)[:, None], np.array(widths, float)[None, :]
    metrics = {"latency_ms": rates * w * a / 64, "size_bytes": rates * np.broadcast_to(w, (len(w), len(w))) * 100}
    names = tuple(layer.name for layer in make_layers(count))
    return CostTable("toy", 1, names, tuple(widths), tuple(widths), metrics, "modelled", "test")


@pytest.fixture
def layers() -> list[LayerSpec]:
    return make_layers(3)
