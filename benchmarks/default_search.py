"""The default search, with several seeds: what it finds, against the best uniform network that fits.

python benchmarks/default_search.py [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from haq.search import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    print("| seed | seconds | policies | latency | test top-1 | float | uniform, same budget | found by |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = run(constraints="latency=10ms", seed=seed, out=Path(folder) / "run")
            seconds = time.perf_counter() - start
            best, trials = found.read_best(), found.read_trials()
        origin = next((trial.origin for trial in trials if trial.policy == best.policy), "uniform")
        uniform = best.baselines["uniform_same_budget"] or {"test_top1": float("nan")}
        reference = best.baselines["float"] or {"test_top1": float("nan")}
        print(
            f"| {seed} | {seconds:.0f} | {len({trial.policy for trial in trials})} | {best.cost['latency_ms']:.2f} ms "
            f"| {best.test_top1:.4f} | {reference['test_top1']:.4f} | {uniform['test_top1']:.4f} | {origin} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
