"""What no layer covers is part of every total."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConstraintError
from haq.hwmodels import CostTable, get_hardware, list_hardware
from haq.hwmodels.pricing import Pricing, excess, open_hardware
from haq.hwmodels.rest_costs import rest_costs, widest
from haq.layers.rest import Left, Rest
from haq.policy import BitPolicy, LayerBits

LSTM = Left("lstm", "LSTM", 50_000, 200_000, 200_400, "no kind of layer covers LSTM")
REST = Rest((LSTM,), covered=1, macs=5_000_000, multiplied=50_000)


def costs(table: CostTable, bits: int = 8) -> dict[str, float]:
    return table.cost(BitPolicy.uniform(table.layers, bits))


@pytest.mark.parametrize("rest", [None, Rest(covered=7)])
def test_nothing_left_changes_nothing(layers, rest) -> None:
    edge = get_hardware("edge")
    found, before = (CostTable.build(edge, layers, (2, 8), (8,), 4, None, given) for given in (rest, None))
    assert found.rest == {}
    assert all(np.array_equal(found.metrics[field], before.metrics[field]) for field in before.metrics)


@pytest.mark.parametrize("name", list_hardware())
def test_the_whole_network_is_priced_on_all_hardware(name, layers) -> None:
    hardware = get_hardware(name)
    whole, part = (CostTable.build(hardware, layers, (8,), (8,), 1, None, given) for given in (REST, None))
    added = {field: costs(whole)[field] - costs(part)[field] for field in costs(part)}
    assert added["size_bytes"] == 200_400
    assert added["bops"] == 5_000_000 * 32 * 32
    assert added["latency_ms"] > 0
    assert added["energy_mj"] > 0


def test_the_average_width_is_over_all_weights(layers) -> None:
    weights = sum(layer.params for layer in layers)
    for table in (
        CostTable.build(get_hardware("edge"), layers, (4, 8), (8,), 1, None, REST),
        CostTable.footprint(layers, (4, 8), REST),
    ):
        bits = {name: LayerBits(4, table.a_bits[0]) for name in table.layers}
        expected = (4 * weights + 32 * 50_000) / (weights + 50_000)
        assert table.cost(BitPolicy(bits))["bits_per_weight"] == pytest.approx(expected)


def test_estimates_have_the_arithmetic_and_the_weights_of_the_rest(layers) -> None:
    edge = get_hardware("edge")
    once, twice = (rest_costs(edge, layers, replace(REST, macs=macs), 1) for macs in (5_000_000, 10_000_000))
    assert twice["latency_ms"] == pytest.approx(2 * once["latency_ms"], rel=0.1)
    attention = rest_costs(edge, layers, replace(REST, multiplied=0), 1)  # a product of two activations
    assert attention["latency_ms"] == pytest.approx(once["latency_ms"], rel=0.5)


@pytest.mark.parametrize("macs", [1, 2, 5, 7, 1000, 10**12])
def test_any_amount_of_arithmetic_has_a_price(macs, layers) -> None:
    assert rest_costs(get_hardware("edge"), layers, Rest(macs=macs), 1)["latency_ms"] > 0


def test_the_widest_pair_is_the_nearest_to_floating_point() -> None:
    assert widest(get_hardware("edge")) == LayerBits(8, 8)
    pairs = tuple(LayerBits(*pair) for pair in ((4, 8), (8, 8), (8, 16), (16, 4), (16, 16)))
    assert widest(replace(get_hardware("edge"), pairs=pairs)) == LayerBits(16, 16)  # type: ignore[type-var]


def test_a_relative_budget_is_of_the_whole(layers) -> None:
    table = CostTable.build(get_hardware("edge"), layers, (2, 4, 8), (2, 4, 8), 1, None, REST)
    budget = Budget(table, [Constraint("size", 0.999, relative=True)], (2, 4, 8), {})
    assert budget.constraints[0].limit == pytest.approx(0.999 * costs(table)["size_bytes"])
    with pytest.raises(
        ConstraintError, match=r"no policy meets size ≤ 101 kB: .* \(200 kB of it outside of the layers\)"
    ):
        Budget(table, [Constraint("size", 0.5, relative=True)], (2, 4, 8), {})


def test_limits_of_hardware_hold_for_the_whole(layers) -> None:
    board = replace(get_hardware("edge"), limits={"size": 100_000.0})  # type: ignore[type-var]
    assert excess(board, layers, LayerBits(8, 8), 1) == {}
    assert excess(board, layers, LayerBits(8, 8), 1, None, REST)["size_bytes"] > 200_000


def test_a_measured_table_keeps_its_own_time_between_layers(table, layers) -> None:
    latency = {"latency_ms": table.metrics["latency_ms"]}
    measured = replace(table, metrics=latency, origin="measured", rest={"latency_ms": 0.25})
    priced = Pricing("mine", measured, 4).price(layers, (), 4, rest=REST)
    assert priced.rest["latency_ms"] == 0.25
    assert priced.rest["size_bytes"] == 200_400
    assert Pricing("mine", measured, 4).price(layers, (), 4).rest == {"latency_ms": 0.25}


def test_files_hold_it(layers, tmp_path: Path) -> None:
    table = CostTable.build(get_hardware("edge"), layers, (2, 8), (8,), 4, None, REST)
    table.save(tmp_path / "costs.parquet")
    opened = open_hardware(tmp_path / "costs.parquet").price(layers, (), 4)
    assert costs(opened)["size_bytes"] == costs(table)["size_bytes"]
