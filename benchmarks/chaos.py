"""Kills a search again and again, the driver or a worker, resumes it each time, and checks that nothing was lost.

python benchmarks/chaos.py --kills 20 --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from processes import trial_workers

from haq.runs import RunFolder

TINY = Path(__file__).with_name("tiny_net.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.monotonic()
        seen: dict[int, str] = {}
        kills: Counter[str] = Counter()
        while not (run / "best.json").is_file():
            process = subprocess.Popen(
                command(run, options.trials, options.workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            if sum(kills.values()) < options.kills:
                before = len(lines(run))
                wait_for(lambda: len(lines(run)) > before or process.poll() is not None)  # noqa: B023
                time.sleep(rng.uniform(0, 1.5))
                if process.poll() is not None:
                    raise SystemExit(f"the search ended after {sum(kills.values())} kills; give more --trials")
                kills[kill(process, rng)] += 1
            else:
                process.wait()
            if process.poll() is None and sum(kills.values()) < options.kills:
                process.kill()  # a worker was killed: the search went on; end it, to be resumed
                kills["driver"] += 1
            process.wait()
            for number, line in lines(run).items():
                assert seen.setdefault(number, line) == line, f"trial {number} changed"
            assert set(seen) == set(lines(run)), f"lost: {set(seen) - set(lines(run))}"
        trials = RunFolder.open(run).read_trials()
        assert Counter(trial.number for trial in trials).most_common(1)[0][1] == 1, "a trial was run twice"
        assert len({trial.policy for trial in trials}) == len(trials) == options.trials
        errors = Counter(trial.error for trial in trials if trial.error)
        print(f"{dict(kills)} killed, {len(trials)} trials, none lost, none twice; failed: {dict(errors) or 'none'}")
        print(f"{time.monotonic() - start:.0f} s")
    time.sleep(5)
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(run) in " ".join(process.info["cmdline"] or [])
    ]
    print(f"processes left behind: {len(left)}")


def command(run: Path, trials: int, workers: int) -> list[str]:
    if (run / "config.yaml").is_file():
        return [sys.executable, "-m", "haq", "search", "--resume", str(run)]
    options = [f"--model={TINY}:model", f"--data={TINY}:data", f"--trials={trials}", f"--workers={workers}"]
    return [
        sys.executable, "-m", "haq", "search", "--constraint=latency=50%", *options, "--free-ends", "--qat-steps=3",
        "--finetune-steps=4", f"--out={run}",
    ]  # fmt: skip


def lines(run: Path) -> dict[int, str]:
    """Returns number → line of the trials that ended; a torn last line is none."""
    file = run / "trials.jsonl"
    *whole, _ = file.read_text().split("\n") if file.is_file() else [""]
    found = {json.loads(line)["number"]: line for line in whole}
    assert len(found) == len(whole), "a number occurs twice"
    return found


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Sends SIGKILL to the driver, or to a worker that runs a trial; returns which."""
    workers = trial_workers(psutil.Process(process.pid))
    if workers and rng.random() < 0.5:
        rng.choice(workers).send_signal(signal.SIGKILL)
        time.sleep(rng.uniform(0, 2))
        return "worker"
    process.send_signal(signal.SIGKILL)
    return "driver"


def wait_for(condition: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the search does not go on"
        time.sleep(0.05)


if __name__ == "__main__":
    main()
