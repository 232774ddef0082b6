from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.policy import BitPolicy, LayerBits
from haq.runs import Baseline, Best, RunFolder, Trial, ranked_by
from haq.scores import RankBy, Score

POLICY = BitPolicy({"scheme": LayerBits(8, 8), "fc": LayerBits(4, None)}, scheme="kmeans")
COST = {"latency_ms": 1.25, "energy_mj": None, "size_bytes": 4096.0}
SCORES = (Score(0.5, 1.5, 100, 0.2, "ptq"), Score(0.75, 0.7, 100, 1.2, "qat", 24))
TRIAL = Trial(3, POLICY, "agent", COST, SCORES, 0.75, 12.5)
BEST = Best(
    BitPolicy.uniform(["conv", "fc"], 4),
    0.75,
    0.7,
    0.74,
    COST,
    {"latency_ms": 1.5},
    {"float": {"test_top1": 0.8, "cost": COST}},
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.write_config(SearchConfig(("latency=1.5ms",)), {"haq": "0.1.0"})
    return folder


def test_everything_comes_back_as_it_was_written(run: RunFolder, make_run: Callable[..., RunFolder]) -> None:
    baselines = {"float": Baseline(None, SCORES[0], COST), "uniform8": Baseline(8, SCORES[0], COST)}
    run.write_baselines({**baselines, "uniform_same_budget": None})
    run.append_trial(TRIAL)
    run.append_trial(replace(TRIAL, number=4, scores=(), error="it\nfailed"))
    run.write_front([TRIAL])
    run.write_best(BEST)

    opened = RunFolder.open(run.path)
    assert opened.read_config() == SearchConfig(("latency=1.5ms",))
    assert opened.read_environment() == {"haq": "0.1.0"}
    assert opened.read_baselines() == {**baselines, "uniform_same_budget": None}
    assert [trial.number for trial in opened.read_trials()] == [3, 4]
    assert opened.read_trials()[0] == TRIAL
    assert opened.read_front() == [TRIAL]
    assert opened.read_best() == BEST
    layers = make_run().read_layers()
    opened.write_layers(layers)
    assert opened.read_layers() == layers


def test_the_last_score_is_the_trials_score() -> None:
    assert TRIAL.score == SCORES[1]
    assert replace(TRIAL, scores=()).score is None


def test_a_run_is_finished_when_it_was_tested(run: RunFolder) -> None:
    assert not run.finished
    run.write_best(replace(BEST, test_top1=None))
    assert not run.finished
    run.write_best(BEST)
    assert run.finished


def test_a_run_without_trials_has_none(run: RunFolder) -> None:
    assert run.read_trials() == []


@pytest.mark.parametrize("torn", ['{"number": 4, "ori', '{"number": 4, "origin": "�'])
def test_a_line_that_a_crash_cut_short_is_dropped_and_never_swallows_the_next(run: RunFolder, torn: str) -> None:
    run.append_trial(TRIAL)
    with (run.path / "trials.jsonl").open("ab") as file:
        file.write(torn.encode()[:-1])
    assert run.read_trials() == [TRIAL]
    run.append_trial(replace(TRIAL, number=5))
    assert [trial.number for trial in run.read_trials()] == [3, 5]


def test_a_first_line_that_was_cut_short_makes_way(run: RunFolder) -> None:
    (run.path / "trials.jsonl").write_text('{"numb')
    run.append_trial(TRIAL)
    assert run.read_trials() == [TRIAL]


@pytest.mark.parametrize("line", ["nonsense", "{}", "[]", "\xff"])
def test_a_damaged_line_is_named(run: RunFolder, line: str) -> None:
    (run.path / "trials.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(ConfigError, match=r"trials\.jsonl, line 1, is not a trial"):
        run.read_trials()


@pytest.mark.parametrize("content", ["nonsense", "[1]", "[[]]", '{"float": 3}', "3"])
@pytest.mark.parametrize("name", ["layers.json", "baselines.json", "best.json", "pareto.json"])
def test_a_damaged_file_is_named(run: RunFolder, name: str, content: str) -> None:
    (run.path / name).write_text(content)
    read = {
        "layers.json": run.read_layers,
        "baselines.json": run.read_baselines,
        "best.json": run.read_best,
        "pareto.json": run.read_front,
    }[name]
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        read()


def test_what_is_missing_is_named(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"lacks baselines\.json"):
        run.read_baselines()
    with pytest.raises(ConfigError, match=r"has no result yet; finish it with `haq search --resume"):
        run.read_best()


@pytest.mark.parametrize("content", ["search: [", "search: 3", "- x", "", "\x00"])
def test_a_damaged_configuration_is_named(run: RunFolder, content: str) -> None:
    (run.path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run.read_config()


def test_only_a_run_folder_opens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml, so it is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        RunFolder.open(tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", ["top1", "loss", "kl"])
def test_objectives_tell_what_trials_were_ranked_by(kind: RankBy) -> None:
    scores = [Score(0.9, 0.3, 10, 1.0, "ptq", kl=0.1), Score(0.8, 0.4, 10, 1.0, "ptq", kl=0.2)]
    policy = BitPolicy({"conv": LayerBits(4, 4)})
    trials = [Trial(i, policy, "guided", {}, (score,), score.objective(kind), 1.0) for i, score in enumerate(scores, 1)]
    failed = Trial(9, policy, "guided", {}, (), 0.0, 1.0, "out of memory")
    assert ranked_by([failed, *trials]) == kind
    assert ranked_by([failed]) is None
