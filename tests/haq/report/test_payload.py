from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from haq.errors import ConfigError
from haq.hwmodels import CostTable
from haq.policy import BitPolicy, LayerBits
from haq.report import detail, summarize
from haq.report.payload import embedded, payload
from haq.runs import RunFolder
from tests.haq.report_files import add_bench, add_sensitivity

MakeRun = Callable[..., RunFolder]


def content_of(run: RunFolder) -> dict[str, object]:
    content: dict[str, object] = json.loads(embedded(payload(summarize(run), detail(run))))
    return content


def test_every_scored_policy_is_there_with_its_widths_and_costs(make_run: MakeRun) -> None:
    run = make_run()
    content = payload(summarize(run), detail(run))
    policies = content["policies"]
    trials = {trial.number: trial for trial in run.read_trials() if trial.error is None}
    assert {number for number in policies["number"] if number is not None} == set(trials)
    for index, number in enumerate(policies["number"]):
        if number is None:
            continue
        widths = [content["pairs"][content["alphabet"].index(letter)] for letter in policies["bits"][index]]
        assert widths == [[bits.w_bits, bits.a_bits] for bits in trials[number].policy.values()]
        assert policies["cost"]["latency_ms"][index] == pytest.approx(trials[number].cost["latency_ms"], rel=1e-4)
        assert content["origins"][policies["origin"][index]] == trials[number].origin


def test_scores_carry_their_level_and_diverged_ones_no_loss(make_run: MakeRun) -> None:
    run = make_run()
    content = payload(summarize(run), detail(run))
    assert [level["name"] for level in content["levels"]] == [
        "calibrated only", "fine-tuned for 12 steps", "fine-tuned for 24 steps"
    ]  # fmt: skip
    trials = {trial.number: trial for trial in run.read_trials()}
    scores, steps = content["scores"], [level["steps"] for level in content["levels"]]
    for policy, level, top1 in zip(scores["policy"], scores["level"], scores["top1"], strict=True):
        if (number := content["policies"]["number"][policy]) is not None:
            assert (steps[level], top1) in {(score.steps, score.top1) for score in trials[number].scores}
    assert content["policies"]["number"][content["chosen"]] == summarize(run).chosen


def test_widths_of_the_uniform_networks_are_found_again(make_run: MakeRun) -> None:
    found = [policy for policy in detail(make_run()).policies if policy.number is None]
    assert [policy.origin for policy in found] == ["uniform 8-bit", "uniform 4-bit"]
    four = found[1].bits
    assert four is not None
    assert (four[0], four[1], four[-1]) == (LayerBits(8, 8), LayerBits(4, 4), LayerBits(8, 8))


def test_widths_that_cost_something_else_are_not_claimed(make_run: MakeRun) -> None:
    run = make_run()
    run.write_config(replace(run.read_config(), pin_ends=False), {})
    assert [policy.bits is None for policy in detail(run).policies if policy.number is None] == [False, True]


def test_layers_cost_what_the_table_says_and_its_bounds_are_told(make_run: MakeRun) -> None:
    run = make_run()
    table = CostTable.load(run.costs)
    bound = np.zeros_like(table.metrics["latency_ms"])
    bound[3] = 1
    replace(table, details={"memory_bound": bound}).save(run.costs)
    content, trial = payload(summarize(run), detail(run)), run.read_trials()[0]
    costs = table.layer_costs(trial.policy, "energy_mj")
    pairs = [content["alphabet"].index(letter) for letter in content["policies"]["bits"][0]]
    shown = [content["costs"]["by"]["energy_mj"][row][pair] for row, pair in enumerate(pairs)]
    assert shown == pytest.approx(list(costs), rel=1e-4)
    assert [row[pairs[0]] for row in content["costs"]["memory_bound"]][2:5] == [0, 1, 0]


@pytest.mark.parametrize("damage", ["missing", "of other layers"])
def test_a_page_needs_no_table(make_run: MakeRun, damage: str) -> None:
    run = make_run()
    if damage == "missing":
        run.costs.unlink()
    else:
        table = CostTable.load(run.costs)
        replace(table, layers=tuple(f"x{name}" for name in table.layers)).save(run.costs)
    assert payload(summarize(run), detail(run))["costs"] is None


def test_measurements_are_shown_when_they_are_there(make_run: MakeRun) -> None:
    run = make_run()
    assert (detail(run).heat_maps, detail(run).bench) == ((), None)
    add_sensitivity(run)
    add_bench(run)
    content = content_of(run)
    assert [heat_map["measure"] for heat_map in content["heat_maps"]] == ["kl", "sqnr"]  # type: ignore[attr-defined]
    bench = detail(run).bench
    assert bench is not None
    assert dict(bench.networks) == {"float32 (PyTorch)": 8.0, "this network": 4.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"measures": 3}', '{"measures": {"kl": {"layers": ["a"]}}}'])
def test_a_damaged_measurement_is_named(make_run: MakeRun, text: str) -> None:
    run = make_run()
    run.sensitivity.write_text(text)
    with pytest.raises(ConfigError, match="sensitivity.json"):
        detail(run)
    run.sensitivity.unlink()
    run.bench.write_text(text)
    with pytest.raises(ConfigError, match="bench.json"):
        detail(run)


def test_nothing_ends_the_element_that_holds_the_data() -> None:
    text = embedded({"name": "</script><!-- & \u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": "</script><!-- & \u2028"}


def test_every_pair_of_widths_has_a_letter(make_run: MakeRun) -> None:
    run, widths = make_run(trials=0, finished=False), (1, 2, 3, 4, 5, 6, 7, 8, 16, None)
    trial = make_run("other").read_trials()[0]
    for number, w_bits in enumerate(widths, 1):
        for a_bits in widths:
            policy = BitPolicy({name: LayerBits(w_bits, a_bits) for name in trial.policy})
            run.append_trial(replace(trial, number=100 * number + (a_bits or 0), policy=policy))
    content = payload(summarize(run), detail(run))
    assert len(set(content["alphabet"])) == len(content["pairs"]) == 100
    assert content["alphabet"].isprintable()
    assert not set('"<>&\\') & set(content["alphabet"])
