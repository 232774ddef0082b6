"""A metric that haq does not know, from a cost model to the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from haq.config import SearchConfig
from haq.constraints import Constraint, parse_constraint
from haq.envs import Budget
from haq.errors import ConfigError, ConstraintError, HardwareError
from haq.hwmodels import CostTable, LayerCost
from haq.hwmodels.roofline import roofline
from haq.hwmodels.tables.formats import load_table, write_csv
from haq.layers import LayerSpec
from haq.metrics import METRICS, Metric, format_cost
from haq.policy import BitPolicy, LayerBits
from haq.report import detail, summarize, write_overlay, write_report
from haq.report.overlay import compared, comparison
from haq.report.payload import payload
from haq.report.summary_text import comparison as networks_of
from haq.report.summary_text import front as front_of
from haq.runs import RunFolder
from haq.runs.archive import cost_fields, pareto_front

MakeRun = Callable[..., RunFolder]

AREA = Metric("area", "area_mm2", {"mm2": 1.0, "um2": 1e-6})
PEAK = Metric("power", "power_mw", {"mW": 1.0, "W": 1e3}, combine="peak")
MEAN = Metric("wear", "wear", {"": 1.0}, combine="mean")
SPEED = Metric("speed", "speed", {"": 1.0}, direction="max")


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METRICS, "_added", {})
        for metric in (AREA, PEAK, MEAN, SPEED):
            METRICS.register(metric.name, metric)
        yield


class Chip:
    """Has latency, area and power, and leaves what depends on the network alone to the table."""

    name = "chip"
    pairs = tuple(LayerBits(w, a) for w in (2, 4, 8) for a in (4, 8))
    limits: ClassVar = {"power": 1e3}
    bytes_per_second = 1e9

    def macs_per_second(self, bits: LayerBits) -> float:
        return 1e9

    def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
        w_bits, a_bits = bits.w_bits or 0, bits.a_bits or 0
        values = {"latency_ms": w_bits * a_bits / 64, "area_mm2": w_bits / 8, "power_mw": 10.0 * a_bits, "wear": w_bits}
        return LayerCost(values, compute_ms=1e-3, memory_ms=2e-3, memory_bytes=2e3)


@pytest.fixture
def layers(make_run: MakeRun) -> list[LayerSpec]:
    return list(make_run().read_layers())


@pytest.fixture
def table(layers: list[LayerSpec]) -> CostTable:
    return CostTable.build(Chip(), layers, (2, 4, 8), (4, 8), 16)


def test_a_table_combines_it_as_it_says(table: CostTable, layers: list[LayerSpec]) -> None:
    names = list(table.layers)
    policy = BitPolicy({**BitPolicy.uniform(names, 4), names[3]: LayerBits(2, 8)})
    cost = table.cost(policy)
    assert cost["area_mm2"] == pytest.approx((len(names) - 1) * 0.5 + 0.25)
    assert cost["power_mw"] == 80.0
    assert cost["wear"] == pytest.approx(cost["bits_per_weight"])
    assert cost["size_bytes"] > 0
    assert table.bounds("power_mw", {names[0]: LayerBits(8, 8)}) == (80.0, 80.0)
    assert set(table.fields) - set(table.additive) == {"power_mw"}
    drawn = roofline(Chip(), layers, [Chip().cost(layer, LayerBits(8, 8)) for layer in layers], LayerBits(8, 8), 16)
    assert len(drawn.marks) == len(layers)


def test_a_table_with_it_lasts_in_a_file(table: CostTable, tmp_path: Path) -> None:
    write_csv(table, tmp_path / "costs.csv")
    table.save(tmp_path / "costs.parquet")
    policy = BitPolicy.uniform(list(table.layers), 4)
    for name in ("costs.csv", "costs.parquet"):
        assert load_table(tmp_path / name).cost(policy) == table.cost(policy)


@pytest.mark.parametrize("text", ["area<=8mm2", "power=40mW", "wear=3"])
def test_a_budget_keeps_it(table: CostTable, text: str) -> None:
    limit = parse_constraint(text)
    budget = Budget(table, [limit], (2, 4, 8), {})
    fitted = budget.decrease(budget.uniform(8))
    for policy in (fitted, budget.spend(fitted)):
        assert table.cost(policy)[limit.field] <= limit.limit
        assert budget.allows(policy)
    with pytest.raises(ConstraintError, match=f"no policy meets {limit.metric} ≤ "):
        Budget(table, [Constraint(limit.metric, 1e-3)], (2, 4, 8), {})


def test_what_is_better_the_more_there_is_cannot_be_limited() -> None:
    with pytest.raises(ConstraintError, match="speed: more is better, but a limit is a maximum"):
        parse_constraint("speed=3")
    assert [SPEED.minimised(value) for value in (2.0, None)] == [-2.0, float("inf")]


def test_a_cost_model_that_gives_something_else_is_refused(layers: list[LayerSpec]) -> None:
    class Odd(Chip):
        def cost(self, layer: LayerSpec, bits: LayerBits, batch: int = 16) -> LayerCost:
            return LayerCost({"area_mm": 1.0} if self.wrong else {"latency_ms": 1.0} | self.sometimes(layer))

        wrong = False

        def sometimes(self, layer: LayerSpec) -> dict[str, float]:
            return {} if layer is layers[2] else {"area_mm2": 1.0}

    with pytest.raises(HardwareError, match=f"gives no 'area_mm2' for layer '{layers[2].name}', but for others"):
        CostTable.build(Odd(), layers, (4,), (4,))
    Odd.wrong = True
    with pytest.raises(HardwareError, match=r"'area_mm', which is not a cost \(did you mean 'area_mm2'\?\)"):
        CostTable.build(Odd(), layers, (4,), (4,))


def with_area(run: RunFolder, *constraints: str) -> RunFolder:
    """Adds areas to a run: of its trials, its baselines and its result, as a search with such hardware does."""
    trials, best, front = run.read_trials(), run.read_best(), run.read_front()
    (run.path / "trials.jsonl").unlink()

    def area(policy: BitPolicy) -> dict[str, float]:
        return {"area_mm2": sum((bits.w_bits or 0) / 8 for bits in policy.values())}

    for trial in trials:
        run.append_trial(replace(trial, cost={**trial.cost, **area(trial.policy)}))
    run.write_front([replace(trial, cost={**trial.cost, **area(trial.policy)}) for trial in front])
    run.write_best(
        replace(best, cost={**best.cost, **area(best.policy)}, constraints={**best.constraints, "area_mm2": 20.0})
    )
    config = run.read_config()
    run.write_config(replace(config, constraints=(*constraints, *config.constraints)), {})
    return run


def test_a_run_with_it_is_ranked_and_reported(make_run: MakeRun, tmp_path: Path) -> None:
    run = with_area(make_run(), "area=20mm2")
    assert run.read_best().cost["area_mm2"] is not None
    summary, details = summarize(run), detail(run)
    assert summary.constraints[0] == "area ≤ 20.0 mm2"
    assert summary.fields[:2] == ("area_mm2", "latency_ms")
    asked = [METRICS[name].field for name in run.read_config().metrics]
    trials = [trial for trial in run.read_trials() if trial.error is None]
    expected = pareto_front(trials, cost_fields((trial.cost for trial in trials), asked))
    assert [point.number for point in summary.front] == [trial.number for trial in expected]
    assert len(expected) > len(pareto_front(trials, ["latency_ms", "energy_mj", "size_bytes", "bops"]))
    for content in (networks_of(summary), front_of(summary)):
        assert "area" in content.header
        assert any(cell.endswith(" mm2") for row in content.rows for cell in row)
    data = json.loads(json.dumps(payload(summary, details)))
    assert {"field": "area_mm2", "name": "area", "limit": 20.0} in data["metrics"]
    assert data["looks"]["area_mm2"]["title"] == "Area"
    assert data["looks"]["area_mm2"]["ticks"] == {"ticksuffix": " mm2"}
    assert "≤ 20.0 mm2" in comparison(compared([run])).rows[0][2]
    console = Console(file=(tmp_path / "printed").open("w"), width=80)
    write_report(run, console)
    write_overlay([run, make_run("other")], console)
    assert "area ≤ 20.0 mm2" in run.page.read_text(encoding="utf-8")


def test_a_run_is_read_where_nobody_registered_it(make_run: MakeRun) -> None:
    run = with_area(make_run())
    del METRICS._added["area"]
    assert "area_mm2" in summarize(run).fields
    looks = payload(summarize(run), detail(run))["looks"]
    assert (looks["area_mm2"]["title"], format_cost("area_mm2", 3.14159)) == ("Area_mm2", "3.14")
    assert SearchConfig(("latency=1ms",)).cost_fields == tuple(metric.field for metric in METRICS.values())


def test_a_run_brings_its_metrics_along(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_area(make_run())
    run.write_metrics([AREA, PEAK])
    monkeypatch.setattr(METRICS, "_added", {})
    opened = RunFolder.open(run.path)
    assert (METRICS["area"], METRICS["power"]) == (AREA, PEAK)
    assert summarize(opened).fields
    assert "mm2" in METRICS["area"].format(2.0)
    RunFolder.open(run.path)  # again: nothing changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"metrics\.json"),
        ('[{"name": "area"}]', r"metrics\.json .*'field' is missing"),
        ('[{"name": "a b", "field": "x", "units": {"": 1}}]', r"metrics\.json .*must be letters"),
        ('[{"name": "area", "field": "other", "units": {"": 1}}]', r"metrics\.json: metric 'area' .*known already"),
        ('[{"name": "latency", "field": "l", "units": {"": 1}}]', r"metrics\.json: metric 'latency' .*known already"),
    ],
)
def test_metrics_of_a_run_that_are_wrong_are_refused(make_run: MakeRun, text: str, message: str) -> None:
    run = make_run()
    (run.path / "metrics.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as found:
        RunFolder.open(run.path)
    assert "\n" not in str(found.value)
