"""`--time-limit`: no trial starts after it, what was found is kept, and the search can be resumed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.runs import RunFolder
from haq.runs.identity import settings_of
from haq.search import resume, run

from .conftest import Recorder, config_for

pytestmark = pytest.mark.usefixtures("one_ray")


def test_a_search_ends_in_time_with_what_was_found_and_can_be_resumed(tiny: Path, tmp_path: Path) -> None:
    config, recorder = replace(config_for(tiny), time_limit=0.001, trials=4, workers=1), Recorder()
    folder = RunFolder(run(**config.options(), out=tmp_path / "run", observer=recorder).path)
    said = " ".join(recorder.said)
    assert len(folder.read_trials()) == 1, "the first trial runs, however short the time is"
    assert "the time limit of 0.001 s was reached after 1 of 4 trials; `haq search --resume" in said
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["test_top1"] is None, "the test samples are not used"
    resume(tmp_path / "run")
    assert len(folder.read_trials()) == 2, "a resumed search goes on, for as long again"


def test_a_limit_that_is_not_reached_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    config = replace(config_for(tiny), trials=2, workers=1)
    policies = [
        [trial.policy for trial in RunFolder(run(**one.options(), out=tmp_path / str(number)).path).read_trials()]
        for number, one in enumerate((config, replace(config, time_limit=3600.0)))
    ]
    assert policies[0] == policies[1]


def test_the_limit_is_no_part_of_what_a_score_means() -> None:
    plain, limited = SearchConfig(("latency=50%",)), SearchConfig(("latency=50%",), time_limit="10m")  # type: ignore[arg-type]
    assert limited.time_limit == 600.0
    assert "time_limit" not in plain.to_dict(), "old run folders do not have it"
    assert settings_of(plain) == settings_of(limited)
    assert SearchConfig.from_dict(limited.to_dict()) == limited


@pytest.mark.parametrize("limit", ["soon", "0", -1.0, float("nan"), float("inf")])
def test_a_wrong_limit_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match=r"--time-limit .*such as 90s, 10m or 2h"):
        SearchConfig(("latency=50%",), time_limit=limit)  # type: ignore[arg-type]
