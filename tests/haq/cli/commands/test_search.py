"""`haq search` with a file of options and with code of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from haq.cli.main import cli
from haq.runs import RunFolder
from tests.in_turn import searching_in_turn
from tests.search.conftest import TINY

OPTIONS = """
model: tiny.py:model
data: tiny.py:data
constraints: [latency=60%]
bits: [2, 4, 8]
trials: 2
qat_steps: 0
finetune_steps: 0
workers: 1
pin_ends: false
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    Path("mine.yaml").write_text(OPTIONS)
    with searching_in_turn():
        yield


def haq(*words: str) -> str:
    result = CliRunner().invoke(cli, ["search", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_command_line_wins_over_the_file() -> None:
    haq("--config", "mine.yaml", "--trials", "3", "--constraint", "size=80%", "--out", "one")
    config = RunFolder.open(Path("one")).read_config()
    assert (config.trials, config.constraints, config.bits) == (3, ("size=80%",), (2, 4, 8))
    assert config.qat_steps == 0, "defaults of the command line do not replace what the file says"


def test_a_run_is_repeated_from_its_own_file() -> None:
    haq("--config", "mine.yaml", "--out", "one")
    haq("--config", "one/config.yaml", "--out", "two")
    first, again = (RunFolder.open(Path(name)) for name in ("one", "two"))
    assert [trial.policy for trial in first.read_trials()] == [trial.policy for trial in again.read_trials()]
    assert first.read_best().policy == again.read_best().policy


def test_widths_to_start_from() -> None:
    haq("--config", "mine.yaml", "--out", "one")
    haq("--config", "mine.yaml", "--start", "one/best.json", "--agent", "random", "--seed", "4", "--out", "two")
    trial = RunFolder.open(Path("two")).read_trials()[0]
    assert (trial.origin, trial.policy) == ("start", RunFolder.open(Path("one")).read_best().policy)


@pytest.mark.parametrize("option", [("--config", "mine.yaml"), ("--start", "bits.json"), ("--agent", "random")])
def test_a_resumed_search_keeps_its_options(option: tuple[str, str]) -> None:
    haq("--config", "mine.yaml", "--out", "one")
    with pytest.raises(Exception, match=f"{option[0]} cannot be changed with --resume"):
        haq("--resume", "one", *option)


AGENT = """
from haq.search.agents import AgentKind
from haq.search.agents.baselines import Random
from haq.search.agents.lattice import Lattice

MINE = AgentKind(lambda task: Random(Lattice(task.budget), task.seed))
"""


def test_an_agent_of_a_file_is_found_again_when_the_project_has_moved(tmp_path: Path, monkeypatch) -> None:
    Path("project").mkdir()
    for name in ("tiny.py", "mine.yaml"):
        Path(name).rename(Path("project") / name)
    Path("project/my_agent.py").write_text(AGENT)
    monkeypatch.chdir("project")
    haq("--config", "mine.yaml", "--agent", "my_agent.py:MINE", "--out", "runs/one")
    config = RunFolder.open(Path("runs/one")).read_config()
    assert config.agent == f"{tmp_path}/project/my_agent.py:MINE"
    (Path("runs/one") / "best.json").unlink()
    trials = Path("runs/one/trials.jsonl")
    trials.write_text(trials.read_text().splitlines(keepends=True)[0])
    (Path("runs/one") / "searcher.pt").unlink()
    monkeypatch.chdir(tmp_path)
    Path("project").rename("moved")
    haq("--resume", "moved/runs/one")
    run = RunFolder.open(Path("moved/runs/one"))
    assert len(run.read_trials()) == 2
    assert run.read_config().agent == f"{tmp_path}/moved/my_agent.py:MINE"


def test_help_shows_how() -> None:
    shown = haq("--help")
    for text in ("--config FILE", "--start FILE", "file.py:NAME", "haq search --config runs/"):
        assert text in shown
