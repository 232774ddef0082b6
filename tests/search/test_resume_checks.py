"""A run belongs to its network, data, prices and settings: changes are refused, and moved files are found."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from haq.errors import HaqError
from haq.policy import BitPolicy
from haq.progress import Silent
from haq.runs import RunFolder
from haq.runs.relocation import config_of
from haq.search import Named, finetune, pick, resume, resume_finetune, run
from haq.search.bench import bench_run
from haq.search.problem import pose
from haq.search.results import Result

from .conftest import TINY, Recorder, config_for

pytestmark = pytest.mark.usefixtures("in_turn")

Use = Callable[[RunFolder, Path, Named], object]

USES: dict[str, Use] = {
    "resume": lambda folder, out, named: resume(_unfinished(folder), None, named),
    "pick": lambda folder, out, named: pick(folder, "latency=50%", out, 0, None, named),
    "finetune": lambda folder, out, named: finetune(folder, 1, out, None, None, named),
    "network": lambda folder, out, named: Result(folder.path).network(named),
    "export": lambda folder, out, named: Result(folder.path).export("packed", out, named),
    "bench": lambda folder, out, named: bench_run(folder, None, 1, None, named),
}

_SPLIT = "return (x[:160]"
CHANGES: dict[str, tuple[tuple[str, str], str]] = {
    "trained on": (("range(40)", "range(41)"), "the weights of model .* have changed: run .* has the fingerprint"),
    "flipped label": ((_SPLIT, f"y[3] = 1 - y[3]; {_SPLIT}"), "data .* has changed: run .* has the fingerprint"),
    "other label in the test split": ((_SPLIT, f"y[-1] = 0; {_SPLIT}"), "data .* has changed"),
    "fewer samples": (("(x[:160], y[:160])", "(x[:150], y[:150])"), "data .* has changed"),
    "other order": ((_SPLIT, f"x, y = x[::-1].copy(), y[::-1].copy(); {_SPLIT}"), "data .* has changed"),
    "other pixels": ((_SPLIT, f"x = x * 1.001; {_SPLIT}"), "data .* has changed"),
    "other forward pass": (
        ("torch.relu(self.conv2(", "(torch.relu if self.training else torch.abs)(self.conv2("),
        "computes something else: its code has changed",
    ),
    "no seed": (
        ("torch.manual_seed(0)", "torch.seed()"),
        "returns different weights at each call, so it cannot match a run",
    ),
}


def _unfinished(folder: RunFolder) -> Path:
    (folder.path / "best.json").unlink(missing_ok=True)
    return folder.path


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(finished.path, tmp_path / "run", ignore=_tune)))


def _tune(folder: str, names: list[str]) -> set[str]:
    return {"tune"} & set(names)


def _content(folder: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def _edited(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def _refused(use: Use, folder: RunFolder, out: Path, named: Named, message: str) -> None:
    _unfinished(folder) if use is USES["resume"] else None
    before = _content(folder)
    with pytest.raises(HaqError, match=message) as caught:
        use(folder, out, named)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before, (
        "nothing is written"
    )
    assert not out.exists()


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_named(copied: RunFolder, tmp_path: Path, change: str) -> None:
    (old, new), message = CHANGES[change]
    assert old in TINY
    other = tmp_path / "other.py"
    other.write_text(TINY.replace(old, new, 1))
    named = Named(model=f"{other}:model", data=f"{other}:data")
    _refused(USES["resume"], copied, tmp_path / "out", named, message)


@pytest.mark.parametrize("use", USES)
def test_every_use_refuses_other_weights(copied: RunFolder, tmp_path: Path, use: str) -> None:
    other = tmp_path / "other.py"
    other.write_text(TINY.replace("range(40)", "range(41)"))
    _refused(USES[use], copied, tmp_path / "out", Named(model=f"{other}:model"), "the weights of model .* have changed")


@pytest.mark.parametrize(
    ("use", "old", "new"),
    [
        ("resume", "seed: 0", "seed: 1"),
        ("pick", "scheme: linear", "scheme: lsq"),
        ("finetune", "- 8\n", "- 8\n  - 6\n"),
        ("resume", "agent: predictor", "agent: random"),
        ("resume", "latency=50%", "latency=60%"),
        ("network", "qat_steps: 3", "qat_steps: 5"),
    ],
)
def test_an_edited_option_is_refused(copied: RunFolder, tmp_path: Path, use: str, old: str, new: str) -> None:
    _edited(copied.path / "config.yaml", old, new)
    message = r"config\.yaml of run .* has \w+: .*, but it was searched with \w+: .*; undo the edit"
    _refused(USES[use], copied, tmp_path / "out", Named(), message)


def test_more_trials_and_another_machine_are_the_same_search(copied: RunFolder) -> None:
    for old, new in (
        ("trials: 8", "trials: 9"),
        ("workers: 1", "workers: 2"),
        ("finetune_steps: 4", "finetune_steps: 5"),
    ):
        _edited(copied.path / "config.yaml", old, new)
    assert pose(config_of(copied), Silent(), copied).config.trials == 9


@pytest.mark.parametrize(
    ("use", "name"), [("resume", "costs.parquet"), ("pick", "costs.parquet"), ("finetune", "layers.json")]
)
def test_a_file_of_another_run_is_refused(copied: RunFolder, tmp_path: Path, use: str, name: str) -> None:
    other = pose(replace(copied.read_config(), batch=32), Silent())
    other.table.save(copied.costs) if name == "costs.parquet" else copied.write_layers(other.layers[::-1])
    _refused(USES[use], copied, tmp_path / "out", Named(), rf"{name} is not the file that this run wrote")


@pytest.mark.parametrize("use", ["network", "export", "bench", "finetune"])
def test_a_network_of_another_run_is_refused(copied: RunFolder, tmp_path: Path, use: str) -> None:
    copied.model.write_bytes(copied.model.read_bytes() + b"\0")
    _refused(USES[use], copied, tmp_path / "out", Named(), r"model\.pt is not the file that this run wrote")


@pytest.mark.parametrize("use", ["resume", "pick"])
def test_trials_of_another_run_are_refused(copied: RunFolder, tmp_path: Path, use: str) -> None:
    lines = (copied.path / "trials.jsonl").read_text().splitlines()
    changes: list[tuple[Callable[[dict[str, object]], dict[str, object]], str]] = [
        (lambda trial: {"policy": _renamed(trial)}, "does not have the same layers as the network, for example"),
        (lambda trial: {"policy": {**_policy(trial), "scheme": "lsq"}}, "has --scheme lsq, not linear"),
        (lambda trial: {"cost": {"size_bytes": 1.0}}, "has size_bytes=1, but its policy costs"),
    ]
    for change, message in changes:
        first = json.loads(lines[0])
        first |= change(first)
        (copied.path / "trials.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
        message = rf"trial \d+ in trials\.jsonl of run .* {message}"
        _refused(USES[use], RunFolder(copied.path), tmp_path / "out", Named(), message)


def _policy(trial: dict[str, object]) -> dict[str, object]:
    policy = trial["policy"]
    assert isinstance(policy, dict)
    return policy


def _renamed(trial: dict[str, object]) -> dict[str, object]:
    policy = BitPolicy.from_dict(_policy(trial))
    return BitPolicy({f"net.{name}": bits for name, bits in policy.items()}).to_dict()


def test_quantizers_that_round_differently_are_refused(copied: RunFolder, tmp_path: Path) -> None:
    identity = copied.read_identity()
    assert identity is not None
    copied.write_identity(replace(identity, rounding=tuple(0.9 * value for value in identity.rounding)))
    _refused(USES["resume"], copied, tmp_path / "out", Named(), "the quantizers of --scheme linear no longer round")


def test_a_run_from_an_older_version_opens(copied: RunFolder, tmp_path: Path) -> None:
    (copied.path / "fingerprints.json").unlink()
    content = yaml.safe_load((copied.path / "config.yaml").read_text())
    del content["folder"]
    (copied.path / "config.yaml").write_text(yaml.safe_dump(content))
    assert resume(_unfinished(copied)).finished
    assert Result(copied.path).network() is not None
    picked = pick(copied, "latency=50%", tmp_path / "picked", 0)
    assert picked.read_identity() is None, "whose trials these are is not known"


def test_a_project_that_moved_is_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The whole folder, with the run in it, is renamed between a kill and the resume."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "tiny.py").write_text(TINY)
    run(**config_for(project / "tiny.py", trials=3).options(), out=project / "runs" / "one")
    moved = project.rename(tmp_path / "moved")
    folder = RunFolder.open(moved / "runs" / "one")
    with caplog.at_level(logging.WARNING):
        assert Result(folder.path).network() is not None
    assert f"tiny.py does not exist; using {moved / 'tiny.py'}" in caplog.text
    recorder = Recorder()
    assert resume(_unfinished(folder), recorder).finished
    assert "sensitivity" not in {task for task, *_ in recorder.tasks}
    assert folder.read_config().model == f"{moved / 'tiny.py'}:model"
    assert folder.read_place() == folder.path


def test_replacements_are_kept(copied: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "renamed.py"
    other.write_text(TINY)
    named = Named(model=f"{other}:model", data=f"{other}:data")
    resume(_unfinished(copied), None, named)
    assert (copied.read_config().model, copied.read_config().data) == (named.model, named.data)
    assert finetune(copied, 1, tmp_path / "tuned", None, None, named).read_config().model == named.model


def test_relative_paths_measure_sensitivities_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    config = replace(config_for(tiny, trials=2), model="tiny.py:model", data="tiny.py:data")
    folder = run(**config.options(), out=tmp_path / "run")
    _edited(folder.path / "config.yaml", "trials: 2", "trials: 3")
    recorder = Recorder()
    assert len(resume(_unfinished(folder), recorder).trials) == 3
    assert "sensitivity" not in {task for task, *_ in recorder.tasks}


def test_a_fine_tuning_belongs_to_its_start(finished: Result, tmp_path: Path) -> None:
    tuned = finetune(finished, 1, tmp_path / "tuned", batch=16)
    tuned.write_best(replace(tuned.best, test_top1=None))
    (tuned.path / "start.pt").write_bytes((tuned.path / "start.pt").read_bytes() + b"\0")
    with pytest.raises(HaqError, match=r"start\.pt is not the file that this run wrote"):
        resume_finetune(tuned)
    shutil.copy2(finished.model, tuned.start)
    other = tmp_path / "other.py"
    other.write_text(TINY.replace("range(40)", "range(41)"))
    with pytest.raises(HaqError, match="the weights of model .* have changed"):
        resume_finetune(tuned, None, Named(model=f"{other}:model"))
    assert resume_finetune(tuned).finished


def test_limits_of_the_hardware_are_those_of_the_start(tiny: Path, tmp_path: Path) -> None:
    """Prices and limits are kept, even if the hardware file has changed."""
    mcu = Path(__file__).parents[2] / "configs" / "hardware" / "mcu-m4.yaml"
    file = tmp_path / "mcu.yaml"
    file.write_text(mcu.read_text())
    options = {"hardware": str(file), "constraints": ("latency=100%",), "trials": 2, "bits": (4, 8)}
    folder = run(**config_for(tiny, **options).options(), out=tmp_path / "run")
    before = pose(config_of(folder), Silent(), folder).budget.constraints
    assert {"size", "ram"} <= {constraint.metric for constraint in before}
    content = yaml.safe_load(file.read_text())
    content["limits"]["size"]["value"] *= 2
    file.write_text(yaml.safe_dump(content))
    assert pose(config_of(folder), Silent(), folder).budget.constraints == before
    assert pose(folder.read_config(), Silent()).budget.constraints != before


def test_a_sweep_of_bit_operations_keeps_and_reports_them(tiny: Path, tmp_path: Path) -> None:
    config = config_for(tiny, constraints=(), pareto=("bops",), trials=6, qat_steps=0)
    result = run(**config.options(), out=tmp_path / "run")
    assert result.best.cost["bops"] is not None
    points = [(-trial.objective, *(trial.cost[field] or 0.0 for field in trial.cost)) for trial in result.trials]
    kept = [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]
    assert {trial.number for trial in result.front} == {
        trial.number for trial, keeps in zip(result.trials, kept, strict=True) if keeps
    }


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'trails'"):
        run(constraints=["latency=50%"], out=tmp_path / "run", trails=3)  # type: ignore[call-arg]
    with pytest.raises(HaqError, match="trials='3': must be a whole number"):
        run(constraints="latency=50%", out=tmp_path / "run", trials="3")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
