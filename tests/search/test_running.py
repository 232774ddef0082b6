"""A small search through real Ray Tune, in this process."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from haq.errors import ConfigError, HaqError
from haq.hwmodels import CostTable
from haq.io.user_code import call_named
from haq.progress import Silent
from haq.quant.evaluation import evaluate
from haq.quant.preparation import load_quantized
from haq.runs import RunFolder
from haq.search import resume, run
from haq.search.problem import pose

from .conftest import Recorder, config_for

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def finished(one_ray: None, tiny: Path, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search whose trials ran in Ray's workers; tests must not write into its folder."""
    return run(**config_for(tiny).options(), out=tmp_path_factory.mktemp("runs") / "one", observer=recorder)


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.marker,)


def test_best_json_holds_exactly_what_is_promised(finished: RunFolder) -> None:
    best = json.loads((finished.path / "best.json").read_text())
    assert set(best) == {"policy", "score", "test_top1", "cost", "constraints", "baselines"}
    assert set(best["score"]) == {"top1", "loss"}
    assert set(best["cost"]) == {"latency_ms", "energy_mj", "size_bytes"}
    assert set(best["baselines"]) == {"float", "uniform8", "uniform_same_budget"}
    for baseline in best["baselines"].values():
        assert set(baseline) == {"test_top1", "cost"}
    assert all(set(bits) == {"w_bits", "a_bits"} for bits in best["policy"].values())


def test_every_policy_meets_every_constraint_as_the_table_prices_it(finished: RunFolder) -> None:
    table, best = CostTable.load(finished.costs), finished.read_best()
    for policy in [best.policy, *(trial.policy for trial in finished.read_trials())]:
        cost = table.cost(policy)
        assert all(cost[field] <= limit for field, limit in best.constraints.items())


def test_trials_and_progress(finished: RunFolder, recorder: Recorder) -> None:
    trials = finished.read_trials()
    assert sorted(trial.number for trial in trials) == list(range(1, 9))
    assert len({trial.policy for trial in trials}) == 8
    assert {trial.error for trial in trials} == {None}
    assert all(trial.scores[0].fidelity == "ptq" for trial in trials)
    assert {score.steps for trial in trials for score in trial.scores} <= {0, 1, 2, 3}
    assert finished.read_front()
    assert [done for task, done, _ in recorder.tasks if task == "search"] == list(range(1, 9))
    assert any(finished.tune.rglob("events.out.tfevents*")), "TensorBoard logs"


def test_the_reported_test_accuracy_is_reproduced_from_model_pt(finished: RunFolder) -> None:
    config = finished.read_config()
    data = pose(config, Silent()).data
    model = load_quantized(finished.model, call_named(config.model, "model", HaqError))
    torch.set_num_threads(1)
    assert evaluate(model, data.test, "qat").top1 == finished.read_best().test_top1


def test_a_resumed_search_loses_nothing_and_repeats_nothing(finished: RunFolder, tiny: Path, tmp_path: Path) -> None:
    """There are four trials, and a crash cut the fifth line short; four more are run, then nothing is left to do."""
    half = run(**config_for(tiny, trials=4).options(), out=tmp_path / "half")
    content = (half.path / "config.yaml").read_text()
    (half.path / "config.yaml").write_text(content.replace("trials: 4", "trials: 8"))
    (half.path / "best.json").unlink()
    expected = [trial.policy for trial in finished.read_trials()]
    assert [trial.policy for trial in half.read_trials()] == expected[:4]
    with (half.path / "trials.jsonl").open("a") as file:
        file.write('{"number": 5, "pol')  # a line that a crash cut short
    marker = tmp_path / "marker"
    for name in ("tuner.pkl", "trainable.pkl", *(path.name for path in half.tune.glob("*state*"))):
        (half.tune / name).write_bytes(pickle.dumps(Payload(marker)))  # Tune's own state is never read
    resume(half.path)
    assert not marker.exists()
    policies = [trial.policy for trial in half.read_trials()]
    assert policies[:4] == expected[:4]
    assert len(set(policies)) == len(policies) == 8
    assert half.finished
    resume(half.path)  # nothing is left to do
    assert len(half.read_trials()) == 8


def test_a_resumed_search_keeps_what_its_trials_were_ranked_by(tiny: Path, tmp_path: Path) -> None:
    """An earlier release ranked by loss where divergence is used now; the two cannot be compared."""
    half = run(**config_for(tiny, trials=3).options(), out=tmp_path / "half")
    content = (half.path / "config.yaml").read_text()
    (half.path / "config.yaml").write_text(content.replace("trials: 3", "trials: 5"))
    (half.path / "best.json").unlink()
    old = [replace(t, objective=t.scores[-1].objective("loss")) for t in half.read_trials()]
    (half.path / "trials.jsonl").write_text("".join(json.dumps(trial.to_dict()) + "\n" for trial in old))
    resume(half.path)
    trials = half.read_trials()
    assert len(trials) == 5
    assert all(trial.objective == trial.scores[-1].objective("loss") for trial in trials)


def test_a_second_run_proposes_the_same_policies(finished: RunFolder, tiny: Path, tmp_path: Path) -> None:
    again = run(**config_for(tiny).options(), out=tmp_path / "again")
    assert [t.policy for t in again.read_trials()] == [t.policy for t in finished.read_trials()]
    assert again.read_best().policy == finished.read_best().policy


def test_ctrl_c_ends_cleanly_with_what_was_found(tiny: Path, tmp_path: Path) -> None:
    """Like a terminal, the signal goes to the whole process group."""
    options = [
        "--constraint=latency=50%",
        f"--model={tiny}:model",
        f"--data={tiny}:data",
        "--trials=300",
        "--workers=1",
    ]
    command = [
        sys.executable,
        "-m",
        "haq",
        "search",
        *options,
        "--bits=2,4,8",
        "--free-ends",
        f"--out={tmp_path / 'r'}",
    ]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    trials = tmp_path / "r" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while not (trials.is_file() and trials.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "interrupted after" in output
    found = RunFolder.open(tmp_path / "r")
    assert not found.finished
    assert found.read_best().test_top1 is None, "the test images are still unseen"
    assert found.page.is_file()


def test_an_existing_folder_is_refused(finished: RunFolder, tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"exists; resume it with `haq search --resume"):
        run(**config_for(tiny).options(), out=finished.path)


def test_nothing_is_written_when_the_options_are_wrong(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(HaqError, match="the smallest reachable latency is"):
        run(**config_for(tiny, constraints=("latency=0.001us",)).options(), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_folder_can_be_moved(finished: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder.open(Path(shutil.copytree(finished.path, tmp_path / "moved")))
    assert moved.read_best() == finished.read_best()
