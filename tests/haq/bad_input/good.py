"""Good input of every kind, small enough to be copied for each case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from haq.config import SearchConfig
from haq.errors import ModelError
from haq.exports.text import to_json
from haq.hwmodels import CostTable, get_hardware
from haq.hwmodels.tables.formats import save_table
from haq.io.user_code import call_named
from haq.layers import LayerSpec, trace
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.preparation import prepare, save_quantized
from haq.runs import Baseline, BaselineName, Best, RunFolder, Trial
from haq.scores import Score

USER = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )
"""


def write_good_input(home: Path) -> None:
    """Writes the network, its weights, data, hardware, tables, a policy, and a finished and an unfinished run."""
    (home / "user.py").write_text(USER)
    network = call_named(f"{home / 'user.py'}:net", "model", ModelError)
    torch.save(network.state_dict(), home / "weights.pt")
    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("test", 12)):
        (home / "data").mkdir(exist_ok=True)
        np.savez(
            home / "data" / f"{part}.npz",
            x=rng.integers(0, 256, (count, 8, 8, 1), np.uint8), y=np.arange(count) % 3,
        )  # fmt: skip
    edge = Path(__file__).resolve().parents[3] / "configs" / "hardware" / "edge.yaml"
    (home / "board.yaml").write_text(edge.read_text(encoding="utf-8"), encoding="utf-8")

    sample = torch.rand(1, 1, 8, 8)
    layers = trace(network, sample)
    table = CostTable.build(get_hardware("edge"), layers, (2, 4, 8), (2, 4, 8))
    save_table(table, home / "costs.parquet")
    save_table(replace(table, details={}), home / "costs.csv")
    np.save(home / "cycles.npy", np.ones((3, 8, 8)))
    policy = BitPolicy.uniform(table.layers, 4)
    (home / "bits.json").write_text(to_json(policy))
    for name, finished in (("run", True), ("half", False)):
        _write_run(RunFolder(home / name), network, layers, table, policy, sample, finished)


def _write_run(
    folder: RunFolder, network: nn.Module, layers: list[LayerSpec], table: CostTable, policy: BitPolicy,
    sample: torch.Tensor, finished: bool,
) -> None:  # fmt: skip
    cost = table.cost(policy)
    score = Score(0.9, 0.3, 9, 0.1, "ptq")
    trial = Trial(1, policy, "programme", cost, (score,), 0.9, 1.0)
    baseline = Baseline(8, score, table.cost(BitPolicy.uniform(table.layers, 8)), 8)
    named: dict[BaselineName, Baseline | None] = {
        "float": Baseline(None, score, {"latency_ms": None, "size_bytes": 1000.0}), "uniform8": baseline,
        "uniform_same_budget": None,
    }  # fmt: skip
    config = SearchConfig(
        ("latency=80%",), model="user.py:net", data="npz:data", trials=2, workers=1, qat_steps=0, finetune_steps=1
    )
    folder.path.mkdir()
    folder.write_config(config, {"haq": "0.1.0"})
    folder.write_layers(layers)
    table.save(folder.costs)
    folder.write_baselines(named)
    folder.append_trial(trial)
    if finished:
        tested = {name: {"test_top1": 0.9, "cost": value.cost} if value else None for name, value in named.items()}
        folder.write_front([trial])
        folder.write_best(Best(policy, 0.9, 0.3, 0.9, cost, {"latency_ms": 1.0}, tested))
        quantized = prepare(network, policy, None, calibrate(network, [torch.rand(8, 1, 8, 8)], (4,)))
        save_quantized(folder.model, quantized, policy, sample)
