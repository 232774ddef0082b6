"""Picking another point of an archive without a search."""

import json
import shutil
from pathlib import Path

import pytest

from haq.errors import ConstraintError, HaqError
from haq.runs import RunFolder
from haq.search import pick, resume
from haq.search.results import Result

from .conftest import Recorder

pytestmark = pytest.mark.usefixtures("in_turn")


@pytest.fixture(scope="module")
def tighter(finished: Result) -> float:
    """A latency that some of the scored policies meet, but not the chosen one."""
    latencies = sorted({trial.cost["latency_ms"] or 0.0 for trial in finished.trials})
    return latencies[len(latencies) // 2 - 1]


@pytest.fixture(scope="module")
def picked(finished: Result, tighter: float, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return pick(finished, f"latency={tighter}ms", tmp_path_factory.mktemp("picked") / "run")


def test_the_budget_is_kept_without_a_new_trial(finished: Result, picked: Result, tighter: float) -> None:
    assert picked.finished
    assert (picked.best.cost["latency_ms"] or 0.0) <= tighter
    assert picked.best.constraints == {"latency_ms": tighter}
    assert picked.trials == finished.trials
    assert picked.read_config().constraints == (f"latency={tighter}ms",)
    assert picked.network() is not None


def test_the_best_of_those_that_fit_is_a_finalist(finished: Result, picked: Result, tighter: float) -> None:
    fitting = [trial.policy for trial in finished.trials if (trial.cost["latency_ms"] or 0.0) <= tighter]
    uniform = {(bits.w_bits, bits.a_bits) for bits in picked.best.policy.values()}
    assert picked.best.policy in fitting or len(uniform) == 1


def test_the_source_is_left_alone(finished: Result, picked: Result) -> None:
    assert not {path.name for path in finished.path.iterdir()} & {"start.pt", "finetune.yaml"}
    assert json.loads((finished.path / "best.json").read_text())["constraints"].keys() == {"latency_ms", "size_bytes"}


def test_a_budget_that_nothing_meets_is_refused_with_the_least_cost(finished: Result, tmp_path: Path) -> None:
    least = min(trial.cost["size_bytes"] or 0.0 for trial in finished.trials)
    with pytest.raises(ConstraintError, match=r"no policy of .* meets size ≤ .*: the least is .*; raise the budget"):
        pick(finished, [f"size={least - 1}B"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_budgets_that_no_policy_meets_at_once(finished: Result, tmp_path: Path) -> None:
    slim = min(finished.trials, key=lambda trial: trial.cost["size_bytes"] or 0.0)
    fast = min(finished.trials, key=lambda trial: trial.cost["latency_ms"] or 0.0)
    limits = [f"size={slim.cost['size_bytes']}B", f"latency={fast.cost['latency_ms']}ms"]
    if slim.policy == fast.policy:
        assert pick(finished, limits, tmp_path / "both").best.policy == slim.policy
    else:
        with pytest.raises(ConstraintError, match="at once"):
            pick(finished, limits, tmp_path / "both")


@pytest.mark.parametrize("constraint", ["latency", "speed=3ms", "latency=0ms"])
def test_a_wrong_budget_is_refused(finished: Result, tmp_path: Path, constraint: str) -> None:
    with pytest.raises(HaqError):
        pick(finished, [constraint], tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused(finished: Result, tmp_path: Path) -> None:
    with pytest.raises(HaqError, match="exists; give another --out"):
        pick(finished, ["latency=60%"], tmp_path)


def test_an_interrupted_pick_is_resumed(picked: Result, tmp_path: Path) -> None:
    again = RunFolder.open(Path(shutil.copytree(picked.path, tmp_path / "again")))
    (again.path / "best.json").unlink()
    (again.path / "model.pt").unlink()
    recorder = Recorder()
    assert resume(again, recorder).best == picked.best
    assert "search" not in {task for task, *_ in recorder.tasks}
