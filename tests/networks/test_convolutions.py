"""Sound, volumes, and transposed convolutions."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from .proof import Array, Case, check, told

pytestmark = pytest.mark.usefixtures("in_turn")


def _tones(count: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(count)
    y, phase = rng.integers(0, 3, count), rng.uniform(0, 6, (count, 2, 1))
    return np.sin((0.3 + 0.5 * y[:, None, None]) * np.arange(24) + phase).astype(np.float32), y


def _sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 32, 5, 2, 2), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 32, 3, groups=32, padding="same", bias=False),
        nn.Conv1d(32, 128, 3, groups=2, dilation=2), nn.ReLU(),
        nn.Conv1d(128, 192, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(192, 3),
    )  # fmt: skip


def _volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 24, 3, padding=1), nn.BatchNorm3d(24), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(24, 64, 3, padding=1, groups=2), nn.ReLU(), nn.Conv3d(64, 64, (1, 3, 3)), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 3),
    )  # fmt: skip


def _up_in_time() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose1d(8, 64, 4, 2, 1), nn.BatchNorm1d(64), nn.ReLU(),
        nn.ConvTranspose1d(64, 96, 3, 2, 1, output_padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose1d(96, 192, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(192, 3),
    )  # fmt: skip


def _up_in_space() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(64, 64, 3, 2, 1, output_padding=1, groups=64),
        nn.ReLU(), nn.ConvTranspose2d(64, 112, 3, bias=False), nn.BatchNorm2d(112), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(112, 3),
    )  # fmt: skip


CASES = {
    "sound": Case(_sound, _tones, ("0", "3", "4", "6", "10")),
    "volumes": Case(_volumes, told(1, 4, 6, 6), ("0", "4", "6", "9")),
    "up in time": Case(_up_in_time, told(8, 6), ("0", "3", "5", "9")),
    "up in space": Case(_up_in_space, told(1, 6, 6), ("0", "2", "4", "9")),
}


@pytest.mark.parametrize("name", CASES)
def test_search_report_and_files(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
