"""`haq quantize` counts and says what no layer covers."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from haq.cli.main import cli

USER = """
import numpy as np
import torch
from torch import nn


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.ones(16, 16))

    def forward(self, x):
        return torch.matmul(self.values, x[..., None])[..., 0]


def model():
    return nn.Sequential(nn.Flatten(), Mix(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))


def data():
    y = np.arange(40) % 2
    x = np.random.default_rng(0).normal(size=(40, 1, 4, 4)).astype(np.float32)
    return (x, y), (x, y)
"""


def test_sizes_are_those_of_the_whole_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER)
    options = "quantize", "--model", "user.py:model", "--data", "user.py:data", "--bits", "4"
    found = json.loads(CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False).stdout)
    whole = 4 * (16 * 16 + 16 * 4 + 4 + 4 * 2 + 2)
    assert found["networks"][0]["size_bytes"] == whole
    assert found["networks"][1]["size_bytes"] == 4 * 16 * 16 + 64 // 2 + 8 // 2 + 4 * (4 + 2) + 4 * (4 + 2 + 2)
    assert found["rest"]["weights"] == 256
    shown = CliRunner().invoke(cli, options, catch_exceptions=False).output
    assert "1 (256, 1.02 kB) stays in floating point because no kind of layer covers Mix" in " ".join(shown.split())
