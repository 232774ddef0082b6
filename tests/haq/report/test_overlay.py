"""Several runs side by side, and the options of `haq report`."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from haq.cli.main import cli, main
from haq.report.overlay import compared, comparison
from haq.runs import RunFolder
from tests.haq.browser import Browser, opened

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def runs(make_run: MakeRun) -> list[RunFolder]:
    one, other = make_run("one"), make_run("other", seed=1, trials=30, finished=False)
    other.write_config(replace(other.read_config(), agent="random"), {})
    return [one, other]


def haq(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_each_run_is_a_row(runs: list[RunFolder]) -> None:
    table = comparison(compared(runs))
    assert table.header == ("run", "agent", "budget", "trials", "test top-1", "latency", "size")
    first, second = table.rows
    assert first[:2] == ("one", "predictor")
    assert first[3:5] == ("60 of 60", "93.1 %")
    assert second[:2] == ("other", "random")
    assert second[3:5] == ("30 of 60", "–")
    assert table.marked == 0


def test_what_cannot_be_compared_is_said(runs: list[RunFolder]) -> None:
    assert len(comparison(compared(runs)).notes) == 1
    runs[1].write_config(replace(runs[1].read_config(), data="npz:other", batch=1), {})
    notes = comparison(compared(runs)).notes
    assert notes[1:] == (
        "These runs are of different models or data: their scores are not comparable.",
        "Their costs are of different hardware or batch sizes.",
    )


def test_runs_of_one_name_are_numbered(make_run: MakeRun) -> None:
    run = make_run("same")
    assert [found.name for found in compared([run, run])] == ["same (1)", "same (2)"]


def test_the_overlay_draws_each_run(browser: Browser, runs: list[RunFolder]) -> None:
    printed = haq("report", *(str(run.path) for run in runs))
    assert "report-overlay.html" in printed
    assert "random" in printed
    path = runs[0].path / "report-overlay.html"
    assert path.stat().st_size < 6_000_000
    with opened(browser, path) as (page, complaints):
        page.wait_for_selector("#scatter .main-svg")
        shown = (
            "document.getElementById('scatter').data.filter((t) => t.showlegend).map((t) => [t.name, t.marker.symbol])"
        )
        (first, circle), (second, triangle) = page.evaluate(shown)
        assert (first, second) == ("one, predictor", "other, random")
        assert circle != triangle
        page.check("input[name=axis][value=size_bytes]", force=True)
        page.check("input[name=level][value=ptq]", force=True)
        assert page.locator("#scatter .xtitle").text_content() == "Size"
    assert complaints == []


def test_the_page_goes_where_it_is_asked_to(runs: list[RunFolder], tmp_path: Path) -> None:
    both, alone = tmp_path / "both.html", tmp_path / "alone.html"
    haq("report", *(str(run.path) for run in runs), "--out", str(both))
    haq("report", str(runs[0].path), "--out", str(alone))
    assert "2 searches compared" in both.read_text(encoding="utf-8")
    assert "Bits per layer" in alone.read_text(encoding="utf-8")
    assert not runs[0].page.exists()


def test_open_shows_it_in_the_browser(runs: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or True)
    haq("report", str(runs[0].path), "--open")
    assert shown == [runs[0].page.resolve().as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "no browser was found" in haq("report", str(runs[0].path), "--open")


def test_mistakes_are_one_line(
    runs: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, torn = str(runs[0].path), runs[1]
    (torn.path / "baselines.json").write_text("{", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([good, str(tmp_path / "none")], "does not exist; give the folder that `haq search` wrote"),
        ([good, str(tmp_path / "empty")], "is not a run folder"),
        ([good, str(torn.path)], "baselines.json"),
        ([good, "--out", str(tmp_path / "none" / "page.html")], "does not exist; make it first"),
        ([], "Missing argument"),
    ):
        monkeypatch.setattr("sys.argv", ["haq", "report", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        errors = capsys.readouterr().err.strip().splitlines()
        assert (stopped.value.code, len(errors)) == (2, 1), errors
        assert message in errors[0]
