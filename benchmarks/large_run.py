"""How long a run folder of many trials takes to read and to report.

python benchmarks/large_run.py --trials 50000
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from haq.config import SearchConfig
from haq.data import ImageData, Images
from haq.hwmodels import CostTable, get_hardware
from haq.layers import trace
from haq.models import open_untrained
from haq.policy import BitPolicy, LayerBits
from haq.report import write_report
from haq.runs import Baseline, Best, RunFolder, Trial
from haq.scores import Score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = made(Path(folder) / "run", options.trials, options.seed)
        megabytes = (run.path / "trials.jsonl").stat().st_size / 1e6
        print(f"{options.trials} trials of ResNet-20, trials.jsonl {megabytes:.0f} MB")
        start = time.perf_counter()
        trials = run.read_trials()
        read = time.perf_counter()
        page = write_report(run, Console(file=io.StringIO(), width=80))
        print(f"read in {read - start:.2f} s, reported in {time.perf_counter() - read:.2f} s")
        print(f"{len(trials)} trials; page {page.stat().st_size / 1e6:.1f} MB")


def made(path: Path, trials: int, seed: int) -> RunFolder:
    """Writes a run folder of random policies with made-up scores."""
    rng = np.random.default_rng(seed)
    blank = Images(np.zeros((4, 3, 32, 32), np.float32), np.zeros(4, np.int64), (0.0,) * 3, (1.0,) * 3)
    model = open_untrained("resnet20", None, ImageData("blank", blank, blank, blank, 10))
    layers = trace(model, torch.zeros(1, 3, 32, 32))
    table = CostTable.build(get_hardware("edge"), layers, range(2, 9), range(2, 9))
    names = [layer.name for layer in layers]
    path.mkdir()
    run = RunFolder(path)
    run.write_config(SearchConfig(("latency=50%",), model="resnet20", data="npz:cifar10", trials=trials), {"haq": "0"})
    run.write_layers(layers)
    table.save(run.costs)
    uniform = BitPolicy.uniform(names, 8)
    score = Score(0.9, 0.3, 1000, 1.0, "ptq")
    run.write_baselines(
        {
            "float": Baseline(None, score, {"latency_ms": None, "energy_mj": None, "size_bytes": 1e6}),
            "uniform8": Baseline(8, score, table.cost(uniform), 8),
            "uniform_same_budget": None,
        }
    )
    found = []
    widths = rng.integers(2, 9, (trials, len(names), 2)).tolist()
    for number in range(1, trials + 1):
        policy = BitPolicy({name: LayerBits(*pair) for name, pair in zip(names, widths[number - 1], strict=True)})
        cost = table.cost(policy)
        steps = (0, 8, 16, 24) if number % 2 else (0,)
        top1 = float(np.clip(0.5 + cost["latency_ms"] / 60 + rng.normal(0, 0.02), 0, 1))
        scores = tuple(Score(top1 + s / 1e3, 1 - top1, 1000, 1.0, "qat" if s else "ptq", s) for s in steps)
        error = "its worker died twice: killed, or out of memory" if number % 50 == 0 else None
        trial = Trial(
            number, policy, "guided", cost, () if error else scores, 0.0 if error else top1, number * 0.1, error
        )
        found.append(trial)
    lines = [json.dumps(trial.to_dict()) for trial in found]
    (path / "trials.jsonl").write_text("\n".join(lines) + "\n")
    best = max(found, key=lambda trial: trial.objective)
    run.write_best(
        Best(
            best.policy,
            0.9,
            0.3,
            0.9,
            best.cost,
            {"latency_ms": 20.0},
            dict.fromkeys(("float", "uniform8", "uniform_same_budget")),
        )
    )  # type: ignore[arg-type]
    return run


if __name__ == "__main__":
    main()
