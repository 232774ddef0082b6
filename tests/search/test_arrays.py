"""Whole searches on what is no picture: tokens, sequences and volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import IGNORED, get_data
from haq.quant.evaluation import evaluate
from haq.search import run

pytestmark = pytest.mark.usefixtures("in_turn")

RNG = np.random.default_rng(0)
CLASSES = 3


class Embedded(nn.Module):
    """A class for a text, or for each of its tokens."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(30, 24), nn.Linear(24, 32), nn.Linear(32, CLASSES)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        y = self.head(F.relu(self.hidden(y.mean(1) if self.mean else y)))
        return y


class Waves(nn.Module):
    """Convolutions over time, `(N, C, T)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, (1, 5), (1, 2)), nn.Conv2d(6, 6, (1, 3))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.second(F.relu(self.first(x[:, :, None])))).mean((2, 3)))
        return y


def dense(features: int, flat: int) -> nn.Module:
    """Linear layers on the axes from `flat` on: on samples, or on the frames of each."""
    return nn.Sequential(nn.Flatten(flat), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def told(y: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns noise whose first values tell the class."""
    x = RNG.standard_normal((*y.shape, *shape))
    first = x.reshape(*y.shape, -1)[..., :CLASSES]  # a view
    first += 3 * np.eye(CLASSES)[y.clip(0)]
    return x


def tones(y: NDArray[np.int64]) -> NDArray[np.float64]:
    phase = RNG.uniform(0, 6, (len(y), 2, 1))
    return np.sin((0.2 + 0.6 * y[:, None, None]) * np.arange(40) + phase)


def padded(count: int) -> NDArray[np.int64]:
    y = RNG.integers(0, CLASSES, (count, 10))
    y[np.arange(10) >= RNG.integers(3, 11, count)[:, None]] = IGNORED
    return y


def tokens(y: NDArray[np.int64]) -> NDArray[np.int16]:
    classes = np.repeat(y[:, None], 6, 1) if y.ndim == 1 else y
    return (RNG.integers(0, 10, classes.shape) + 10 * classes.clip(0)).astype(np.int16)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[NDArray[np.int64]], object], bool]] = {
    "text": (lambda: Embedded(True), tokens, False),
    "tagged text": (lambda: Embedded(False), tokens, True),
    "audio": (Waves, tones, False),
    "frames": (lambda: dense(6, 2), lambda y: torch.from_numpy(told(y, (6,))).bfloat16(), True),
    "volumes": (lambda: dense(2 * 27, 1), lambda y: told(y, (2, 3, 3, 3)).astype(np.float16), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_search_report_and_export(kind: str, tmp_path: Path) -> None:
    make, inputs, positions = KINDS[kind]
    labels = [padded(count) if positions else RNG.integers(0, CLASSES, count) for count in (160, 60)]
    arrays = tuple((inputs(y), y) for y in labels)
    data = get_data(arrays, 30, 0)
    network = trained(make, data.train.batch(range(len(data.train))))
    result = run(
        network, arrays, constraints="size=80%", trials=3, qat_steps=2, finetune_steps=2, workers=1, val_images=30,
        pin_ends=False, out=tmp_path / "run",
    )  # fmt: skip
    assert result.best.test_top1 is not None
    assert result.best.test_top1 > 0.6, "chance is a third"
    if positions:
        assert result.report(tmp_path / "report.html").is_file()
    quantized = result.network()
    score = evaluate(quantized, data.test, "qat")
    assert (score.top1, score.samples) == (pytest.approx(result.best.test_top1), data.test.answers)
    session = onnxruntime.InferenceSession(result.export("onnx", tmp_path / "net.onnx"))
    x, y = data.test.batch(range(len(data.test)))
    (logits,) = session.run(None, {"input": x.numpy()})
    assert logits.shape == (*y.shape, CLASSES)
    right = (logits.argmax(-1) == y.numpy())[y.numpy() != IGNORED].mean()
    assert right == pytest.approx(score.top1, abs=0.02), "the file is as good as the network"


def trained(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network, (x, y) = make(), batch
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x).flatten(0, -2), y.flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()
