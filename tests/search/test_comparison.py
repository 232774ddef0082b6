"""Agents side by side, through the command line."""

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from haq.cli.main import cli
from haq.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_ray")


def compare(tiny: Path, out: Path, *options: str) -> str:
    given = ["--model", f"{tiny}:model", "--data", f"{tiny}:data", "--bits", "2,4,8", "--free-ends", "--workers", "1"]
    result = CliRunner().invoke(
        cli, ["compare-agents", *given, "--constraint", "latency=50%", "--out", str(out), *options]
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_every_agent_gets_the_same_evaluations(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    shown = compare(tiny, out, "--agents", "predictor,evolution,uniform", "--evaluations", "6", "--seeds", "2")
    table = pd.read_csv(out / "comparison.csv")
    counts = table.groupby(["agent", "seed"]).size().to_dict()
    assert counts["predictor", 0] == counts["predictor", 1] == counts["evolution", 0] == counts["evolution", 1] == 6
    assert ("uniform", 1) not in counts, "it draws nothing, so one run says all"
    for _, course in table.groupby(["agent", "seed"]):
        assert list(course["best"]) == list(course["objective"].cummax())
        assert course["bits"].is_unique
    same = table.groupby("bits")["objective"].nunique()
    assert (same == 1).all(), "the same policy scores the same, whoever proposes it"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sensitivity.json").is_file()
    assert "predictor" in shown
    assert "±" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines() if str(out) not in line) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--agents", "predctor"), r"--agents predctor \(did you mean 'predictor'\?\): use predictor, ddpg"),
        (("--evaluations", "0"), "--evaluations 0: must be at least 1"),
        (("--seeds", "0"), "--seeds 0: must be at least 1"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(tiny, tmp_path / "compared", *options)
    assert not (tmp_path / "compared").exists()


def test_a_folder_that_exists_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="exists; give another --out"):
        compare(tiny, tmp_path)
