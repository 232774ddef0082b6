"""Thousands of trials of a tiny network through Ray Tune: memory, processes, files and throughput must not drift.

python benchmarks/soak.py --trials 2000 --seed 0
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from processes import trial_workers

from haq.config import SearchConfig
from haq.search import Silent, run

TINY = Path(__file__).with_name("tiny_net.py")


class Gauge(Silent):
    """Reads memory, processes and open files of the driver and its workers as trials end."""

    def __init__(self, every: int) -> None:
        self.every, self.rows = every, []  # type: ignore[var-annotated]
        self._me = psutil.Process()

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task != "search" or done % self.every:
            return
        workers = trial_workers(self._me)
        resident = sum(worker.memory_info().rss for worker in workers) / max(len(workers), 1)
        children = len(self._me.children(recursive=True))
        row = (done, time.monotonic(), self._me.memory_info().rss, resident, children, self._me.num_fds())
        self.rows.append(row)
        print(
            f"{done:5d} driver {row[2] / 1e6:.0f} MB, worker {resident / 1e6:.0f} MB, {children} processes", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--agent", default="predictor")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gauge = Gauge(max(options.trials // 40, 1))
    config = SearchConfig(
        ("latency=50%",), model=f"{TINY}:model", data=f"{TINY}:data", trials=options.trials, qat_steps=0,
        finetune_steps=0, pin_ends=False, agent=options.agent, workers=options.workers, seed=options.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run(**config.options(), out=Path(folder) / "run", observer=gauge)
    number, when, driver, worker, processes, files = np.array(gauge.rows).T
    settled = number > number[-1] / 5  # imports and caches fill in the first fifth
    for name, values in (("driver", driver), ("worker", worker)):
        slope = np.polyfit(number[settled], values[settled] / 1e3, 1)[0]
        print(f"{name}: {slope:+.1f} kB a trial")
    print(f"processes {processes[0]:.0f} → {processes[-1]:.0f}, open files {files[0]:.0f} → {files[-1]:.0f}")
    rate = np.diff(number) / np.diff(when)
    part = max(len(rate) // 5, 1)
    first, last = rate[:part].mean(), rate[-part:].mean()
    print(f"trials a second: {first:.1f} in the first fifth, {last:.1f} in the last, {last / first:.2f} of it")


if __name__ == "__main__":
    main()
