"""Trials that raise, diverge, hang or die: the search continues without them."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from haq.errors import ConfigError, HaqError
from haq.policy import LayerBits
from haq.report import summarize
from haq.runs import RunFolder, Trial
from haq.search import resume, run

from ..in_turn import searching_in_turn
from .conftest import TINY, Recorder, config_for

# A layer's widths decide which fault a worker has; the driver, which scores the baselines, has none
FAULTY = (
    TINY.replace("class Tiny", "class Sound").replace("net, ((x, y), _) = Tiny()", "net, ((x, y), _) = Faulty()")
    + """

import os, signal, time

DRIVER = os.environ["HAQ_TEST_DRIVER"]


class Faulty(Sound):
    def forward(self, x):
        if str(os.getpid()) != DRIVER and hasattr(self.conv1, "weight_quantizer"):
            bits = [layer.weight_quantizer.bits for layer in (self.conv1, self.conv2, self.linear)]
            FAULT
        return super().forward(x)
"""
)
EACH = """
            match bits:
                case 2, 2, _: raise KeyError("a bug of the network")
                case 2, 8, _: return super().forward(x) * float("nan")
                case 8, 2, 2: os.kill(os.getpid(), signal.SIGKILL)
                case 8, 2, 8: time.sleep(1000)
"""
REASONS = {
    (2, 2): "ModelError: Faulty fails on inputs of shape (32, 1, 4, 4): KeyError: 'a bug of the network'; "
    "check its forward pass",
    (2, 8): "the loss became nan",
    (8, 2, 2): "its worker died twice: killed, or out of memory",
    (8, 2, 8): "it took longer than --trial-timeout 2",
}


pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    return tmp_path / "faulty.py"


def test_trials_that_fail_twice_are_recorded_and_the_search_continues(faulty: Path, tmp_path: Path) -> None:
    faulty.write_text(FAULTY.replace("FAULT\n", EACH))
    config = config_for(faulty, agent="random", trials=8, bits=(2, 8), qat_steps=0, finetune_steps=0, seed=1)
    found = run(**replace(config, constraints=("latency=99%",), trial_timeout=2.0).options(), out=tmp_path / "run")
    reasons = set()
    for trial in found.trials:
        widths = tuple(bits.w_bits for bits in trial.policy.values())
        expected = REASONS.get(widths[:2], REASONS.get(widths))
        assert trial.error == expected, widths
        assert (trial.objective == 0.0) == (expected is not None)
        reasons.add(expected)
    assert reasons == {None, *REASONS.values()}, "every fault struck"
    assert len(found.trials) == 8
    assert found.finished
    failed = [trial.error for trial in found.trials if trial.error]
    assert dict(summarize(found).failures) == Counter(failed)


def test_a_search_in_which_everything_fails_stops_early_and_says_why(faulty: Path, tmp_path: Path) -> None:
    faulty.write_text(FAULTY.replace("FAULT\n", "raise MemoryError('no memory')\n"))
    config = config_for(faulty, trials=100, qat_steps=0)
    with pytest.raises(HaqError, match=r"no policy could be scored: all 5 trials failed \(MemoryError: no memory\)"):
        run(**config.options(), out=tmp_path / "run")
    assert len(RunFolder.open(tmp_path / "run").read_trials()) == 5


def command(tiny: Path, out: Path, trials: int) -> list[str]:
    options = [f"--model={tiny}:model", f"--data={tiny}:data", f"--trials={trials}", "--workers=1", "--bits=2,4,8"]
    return [
        sys.executable, "-m", "haq", "search", "--constraint=latency=50%", "--constraint=size=80%", *options,
        "--qat-steps=3", "--finetune-steps=4", "--free-ends", f"--out={out}",
    ]  # fmt: skip


def killed_after(trials: int, command: list[str], run: Path) -> int:
    """Runs a search until it has this many trials, kills the driver, and returns how many had finished by then."""
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    file, deadline = run / "trials.jsonl", time.monotonic() + 120
    while not (file.is_file() and file.read_bytes().count(b"\n") >= trials) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(RunFolder.open(run).read_trials())


def test_a_search_whose_driver_is_killed_proposes_what_an_uninterrupted_one_does(
    finished: RunFolder, tiny: Path, tmp_path: Path
) -> None:
    """The chaos test in benchmarks/ does this 20 times."""
    folder = tmp_path / "run"
    before = killed_after(3, command(tiny, folder, 8), folder)
    assert 3 <= before < 8
    found = resume(folder)
    assert [trial.policy for trial in found.trials] == [trial.policy for trial in finished.read_trials()]
    assert [trial.number for trial in found.trials] == list(range(1, 9))
    assert found.best.policy == finished.read_best().policy
    assert found.best.test_top1 == finished.read_best().test_top1


def test_a_trial_that_only_the_searchers_state_knows_is_not_lost(
    finished: RunFolder, tmp_path: Path, tiny: Path
) -> None:
    """The machine died between the two files."""
    with searching_in_turn():
        half = run(**config_for(tiny, trials=5).options(), out=tmp_path / "half")
    text = (half.path / "config.yaml").read_text()
    (half.path / "config.yaml").write_text(text.replace("trials: 5", "trials: 8"))
    (half.path / "best.json").unlink()
    lines = (half.path / "trials.jsonl").read_text().splitlines(keepends=True)
    (half.path / "trials.jsonl").write_text("".join(lines[:-1]))
    with searching_in_turn():
        found = resume(half)
    assert [trial.policy for trial in found.trials] == [trial.policy for trial in finished.read_trials()]
    assert found.trials[4] == Trial.from_dict(json.loads(lines[-1]))


def test_a_folder_in_use_is_refused(finished: RunFolder, tmp_path: Path, tiny: Path) -> None:
    with searching_in_turn():
        half = run(**config_for(tiny, trials=2).options(), out=tmp_path / "half")
        (half.path / "best.json").unlink()
        with half.locked(), pytest.raises(ConfigError, match="another haq is working in .*; wait until it has ended"):
            resume(half.path)
        assert resume(half.path).finished


class Filling(Recorder):
    """Simulates a full disk after the first trial, for writes of trials only."""

    def __init__(self, trials: Path) -> None:
        super().__init__()
        self.trials = trials

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == "search" and done == 1:
            self.trials.unlink()
            self.trials.symlink_to("/dev/full")


def test_a_full_disk_ends_the_search_with_a_fix(tmp_path: Path, tiny: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    trials = tmp_path / "run" / "trials.jsonl"
    with pytest.raises(ConfigError, match=r"cannot write into .*: No space left on device; fix that, and resume with"):
        run(**config_for(tiny, trials=9).options(), out=tmp_path / "run", observer=Filling(trials))
    trials.unlink()
    assert resume(tmp_path / "run").finished, "with what the searcher's state kept"


def test_a_finalist_that_fails_is_left_out(faulty: Path, tmp_path: Path) -> None:
    """A policy scores well in the search, but fails in the final fine-tuning."""
    fault = "if bits[0] == 2 and self.training: raise KeyError('late')"
    faulty.write_text(FAULTY.replace("FAULT\n", fault + "\n"))
    recorder = Recorder()
    config = config_for(faulty, agent="random", trials=6, bits=(2, 8), qat_steps=0, finetune_steps=3)
    found = run(**replace(config, constraints=("latency=90%",)).options(), out=tmp_path / "run", observer=recorder)
    assert found.finished
    assert next(iter(found.best.policy.values())) != LayerBits(2, 2)
