import json
from pathlib import Path

import pytest

from haq.errors import ConfigError
from haq.search.results import Result

from tests.haq.conftest import MakeRun


@pytest.fixture
def result(make_run: MakeRun) -> Result:
    return Result.open(make_run().path)


def test_a_row_for_each_trial(result: Result) -> None:
    frame = result.to_dataframe()
    assert list(frame.index) == [trial.number for trial in result.trials]
    assert set(frame[frame.front].index) == {trial.number for trial in result.front}
    chosen = frame[frame.chosen]
    assert len(chosen) == 1
    assert chosen.policy.iloc[0] == result.best.policy
    assert chosen.latency_ms.iloc[0] == pytest.approx(result.best.cost["latency_ms"])
    assert frame.loc[result.trials[0].number].top1 == result.trials[0].scores[-1].top1
    assert frame.w_bits.between(2, 8).all()


def test_failed_trials_have_no_score(make_run: MakeRun) -> None:
    result = Result(make_run().path)
    failed = {trial.number for trial in result.trials if trial.error}
    assert set(result.to_dataframe().query("error.notna()").index) == failed


def test_a_search_without_trials_has_an_empty_frame(make_run: MakeRun) -> None:
    assert Result(make_run(trials=0, finished=False).path).to_dataframe().empty


def test_export_and_report_write_files(result: Result, tmp_path: Path) -> None:
    text = result.export("json")
    assert isinstance(text, str)
    assert json.loads(text)["layers"].keys() == result.best.policy.keys()
    assert result.export("csv", tmp_path / "bits.csv") == tmp_path / "bits.csv"
    assert result.report() == result.path / "report.html"
    assert result.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        Result.open(tmp_path)
