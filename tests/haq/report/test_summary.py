from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.errors import ConfigError, printable
from haq.report import Summary, summarize
from haq.report.details import detail
from haq.report.payload import payload
from haq.report.summary import Level
from haq.report.summary_text import comparison, facts, front, progress, verdict
from haq.runs import RunFolder
from haq.scores import QUALITIES, RankBy

MakeRun = Callable[..., RunFolder]


def retested(run: RunFolder, ours: float | None, same: float | None) -> Summary:
    best = run.read_best()
    baselines = {**best.baselines, "uniform_same_budget": {"test_top1": same, "cost": best.cost}}
    run.write_best(replace(best, test_top1=ours, baselines=baselines))  # type: ignore[arg-type]
    return summarize(run)


def test_the_numbers_are_those_of_the_run(make_run: MakeRun) -> None:
    run = make_run()
    best, trials, baselines = run.read_best(), run.read_trials(), run.read_baselines()
    summary = summarize(run)
    assert (summary.trials_asked, summary.trials_done) == (60, 60)
    assert summary.failures == (("OutOfMemoryError: no memory left", 3), ("the loss became nan", 1))
    assert summary.policies_scored == len({trial.policy for trial in trials if trial.error is None})
    assert summary.elapsed_s == trials[-1].elapsed_s
    rows = {network.key: network for network in summary.networks}
    assert list(rows) == ["float", "uniform8", "uniform_same_budget", "ours"]
    assert rows["ours"].test_top1 == best.test_top1
    assert rows["ours"].cost == best.cost
    assert rows["float"].cost["latency_ms"] is None
    same = baselines["uniform_same_budget"]
    assert same is not None
    assert rows["uniform_same_budget"].val_top1 == same.score.top1
    assert summary.tuned_val_top1 == best.top1
    assert {layer.name: (layer.w_bits, layer.a_bits) for layer in summary.layers} == {
        name: (bits.w_bits, bits.a_bits) for name, bits in best.policy.items()
    }
    assert sum(layer.latency_share or 0 for layer in summary.layers) == pytest.approx(1)


def test_a_column_never_mixes_scores_of_different_training(make_run: MakeRun) -> None:
    run = make_run()
    summary = summarize(run)
    chosen = next(trial for trial in run.read_trials() if trial.number == summary.chosen)
    assert chosen.policy == run.read_best().policy
    assert summary.networks[-1].val_top1 == chosen.scores[0].top1
    assert chosen.scores[0].fidelity == "ptq"


def test_the_front_is_that_of_the_longest_trained(make_run: MakeRun) -> None:
    run = make_run()
    summary = summarize(run)
    assert {point.level for point in summary.front} == {Level(24, "qat")}
    assert {point.number for point in summary.front} == {trial.number for trial in run.read_front()}
    latencies = [point.cost["latency_ms"] or 0.0 for point in summary.front]
    assert latencies == sorted(latencies)


def test_every_scored_policy_is_a_point_at_each_level_it_is_shown_at(make_run: MakeRun) -> None:
    run = make_run()
    trials = [trial for trial in run.read_trials() if trial.error is None]
    points = summarize(run).points
    assert {p.number for p in points if p.level == Level(0, "ptq")} == {trial.number for trial in trials}
    assert {(p.number, p.level) for p in points} >= {(t.number, Level.of(t.scores[-1])) for t in trials}


def test_a_win_a_tie_and_a_loss_are_told_apart(make_run: MakeRun) -> None:
    run = make_run()
    assert verdict(retested(run, 0.931, 0.913)) == (
        "Beats the uniform 4-bit network at equal budget by +1.8 points (93.1 % against 91.3 % test top-1)."
    )
    assert verdict(retested(run, 0.9, 0.9001)) == (
        "The search did not beat the uniform 4-bit network at equal budget: both reach 90.0 % test top-1."
    )
    assert verdict(retested(run, 0.9, 0.92)) == (
        "The search did not beat the uniform 4-bit network at equal budget: -2.0 points (90.0 % against 92.0 % test "
        "top-1)."
    )


def test_no_uniform_width_may_fit(make_run: MakeRun) -> None:
    run = make_run()
    best = run.read_best()
    run.write_baselines({**run.read_baselines(), "uniform_same_budget": None})
    run.write_best(replace(best, baselines={**best.baselines, "uniform_same_budget": None}))
    summary = summarize(run)
    assert (
        verdict(summary) == "No uniform width fits the budget; the mixed-precision network reaches 93.1 % test top-1."
    )
    row = comparison(summary).rows[2]
    assert row == ("uniform, same budget: none fits", "–", "–", "–", "–", "–")
    assert "The last network was fine-tuned" in comparison(summary).notes[0]


@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_run_shows_its_best_so_far(make_run: MakeRun, written: bool) -> None:
    run = make_run(trials=30, finished=written)
    if written:
        run.write_best(replace(run.read_best(), test_top1=None))
    summary = summarize(run)
    assert not summary.finished
    assert (summary.trials_done, summary.trials_asked) == (30, 60)
    best = max((point for point in summary.points if point.level.steps == 24), key=lambda point: point.top1)
    chosen = next(point for point in summary.front if point.number == summary.chosen)
    assert chosen.top1 == best.top1
    assert verdict(summary) == (
        f"The search has not ended; its best policy so far is that of trial {summary.chosen}, not yet tested."
    )
    assert {row[1] for row in comparison(summary).rows} == {"–"}
    assert comparison(summary).notes[0] == "Test top-1: the test samples have not been used yet."
    assert len(summary.layers) == 24


def test_a_run_whose_trials_all_failed_says_so(make_run: MakeRun) -> None:
    run = make_run(trials=0, finished=False)
    summary = summarize(run)
    assert verdict(summary) == "The search stopped before any trial was scored."
    assert front(summary).rows == summary.layers == ()
    assert front(summary).notes == ("No trial has been scored yet.",)


def test_a_run_that_stopped_before_its_baselines_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config(SearchConfig(("latency=10ms",)), {})
    with pytest.raises(ConfigError, match="stopped before its first trial"):
        summarize(run)


def test_a_relative_budget_is_resolved_with_the_8_bit_network(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    run.write_config(SearchConfig(("size=60%", "latency=20ms")), {})
    uniform8 = run.read_baselines()["uniform8"]
    assert uniform8 is not None
    summary = summarize(run)
    assert summary.limits["size_bytes"] == pytest.approx(0.6 * (uniform8.cost["size_bytes"] or 0))
    assert summary.constraints == ("size ≤ 211 kB (0.6 of uniform 8-bit)", "latency ≤ 20.0 ms")
    assert summary.axis == "latency_ms"


def test_accuracy_is_drawn_against_what_is_limited(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    run.write_config(SearchConfig(("size=200kB",)), {})
    assert summarize(run).axis == "size_bytes"


@pytest.mark.parametrize("ranked_by", ["loss", "kl"])
def test_what_policies_were_ranked_by_is_noticed(make_run: MakeRun, ranked_by: RankBy) -> None:
    run = make_run(trials=0, finished=False)
    for trial in make_run("other").read_trials():
        scores = [replace(score, kl=score.loss / 3 if ranked_by == "kl" else None) for score in trial.scores]
        objective = scores[-1].objective(ranked_by) if scores else 0.0
        run.append_trial(replace(trial, scores=tuple(scores), objective=objective))
    summary = summarize(run)
    assert summary.ranked_by == ranked_by
    name = QUALITIES[ranked_by]
    table = front(summary)
    assert f"validation {name}" in table.notes[0]
    best = summary.front[-1].quality(ranked_by)
    assert best is not None
    assert table.rows[-1][2] == f"{best:.3f}"
    assert f"the best of them, {name} " in progress(summary)
    shown = payload(summary, detail(run))
    assert shown["quality"] == ranked_by
    assert any(value is not None for value in shown["scores"][ranked_by])
    assert summarize(make_run("third")).ranked_by == "top1"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_latency_shares_need_a_table(make_run: MakeRun, damage: str) -> None:
    run = make_run()
    if damage == "missing":
        run.costs.unlink()
    else:
        run.costs.write_text("nonsense")
    assert {layer.latency_share for layer in summarize(run).layers} == {None}


def test_names_are_made_printable(make_run: MakeRun) -> None:
    assert printable("conv\x1b[2J\n‮x") == "conv\\x1b[2J\\n\\u202ex"
    assert summarize(make_run(names=["a\x07b"])).layers[0].name == "a\\x07b"


def test_the_facts_name_failures_by_reason(make_run: MakeRun) -> None:
    assert dict(facts(summarize(make_run()))) == {
        "model": "digits-resnet",
        "data": "digits",
        "hardware": "edge, batch 16",
        "scheme": "linear",
        "budget": "latency ≤ 2.00 ms",
        "trials": "60 of 60, 4 failed (3 × OutOfMemoryError: no memory left; 1 × the loss became nan)",
        "policies": "56 scored",
        "time": "6 min 18 s",
    }
