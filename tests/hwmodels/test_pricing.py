from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from haq.errors import HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.hardware import LayerCost
from haq.hwmodels.pricing import open_hardware
from haq.hwmodels.tables.formats import write_csv
from haq.policy import BitPolicy, LayerBits

NAMES = ["conv1", "conv2.dw", "fc"]


class Npu:
    """Runs three pairs of widths, and costs what their product is."""

    name = "npu"
    pairs = (LayerBits(4, 8), LayerBits(8, 8), LayerBits(8, 16))
    limits: ClassVar = {"size": 1000.0}
    bytes_per_second = 1e9

    def macs_per_second(self, bits: LayerBits) -> float:
        return 1e9

    def cost(self, layer, bits, batch=16):
        assert bits in self.pairs
        values = {"energy_mj": 1.0, "size_bytes": 2.0, "bops": 3.0, "buffer_bytes": bits.a_bits}
        return LayerCost({"latency_ms": bits.w_bits * bits.a_bits, **values})


@pytest.fixture
def npu(layers) -> CostTable:
    return CostTable.build(Npu(), layers, range(1, 9), (*range(1, 9), 16))


def test_only_legal_pairs_are_priced(npu, layers):
    assert (npu.w_bits, npu.a_bits, npu.pairs) == ((4, 8), (8, 16), Npu.pairs)
    policy = BitPolicy({layer.name: LayerBits(4, 8) for layer in layers})
    assert npu.cost(policy)["latency_ms"] == 3 * 32
    with pytest.raises(HardwareError, match=r"4/16 bits .* for layer 'conv1': .* covers 4/8 and 8/8,16; give"):
        npu.cost(BitPolicy({**policy, "conv1": LayerBits(4, 16)}))
    assert npu.bounds("latency_ms") == (3 * 32, 3 * 128)


def test_no_legal_pair_is_refused(layers):
    with pytest.raises(HardwareError, match=r"'npu' runs 4/8 and 8/8,16 bits .*, none of 2,3/2,3; choose"):
        CostTable.build(Npu(), layers, (2, 3), (2, 3))


def test_illegal_pairs_survive_a_file(npu, tmp_path):
    npu.save(tmp_path / "npu.parquet")
    loaded = CostTable.load(tmp_path / "npu.parquet")
    assert loaded.pairs == npu.pairs
    for metric, costs in npu.metrics.items():
        np.testing.assert_array_equal(loaded.metrics[metric], costs)


def test_a_table_prices_the_network_it_was_made_for(table, layers, tmp_path):
    file = tmp_path / "own.parquet"
    table.save(file)
    pricing = open_hardware(file)
    np.testing.assert_array_equal(
        pricing.price(layers, (8,), batch=4).metrics["latency_ms"], table.metrics["latency_ms"]
    )
    assert dict(pricing.limits) == {}


def test_what_a_table_lacks_is_counted(table, layers, tmp_path):
    file = tmp_path / "own.parquet"
    replace(table, metrics={"latency_ms": table.metrics["latency_ms"]}).save(file)
    counted = open_hardware(file).price(layers, (8,), batch=4)
    for metric in ("size_bytes", "bops", "bits_per_weight"):
        np.testing.assert_array_equal(counted.metrics[metric], table.metrics[metric])


def test_pairs_that_a_table_lacks_cost_infinity_in_what_is_counted(npu, layers, tmp_path):
    file = tmp_path / "npu.parquet"
    replace(npu, metrics={"latency_ms": npu.metrics["latency_ms"]}).save(file)
    counted = open_hardware(file).price(layers, (8,), batch=16)
    assert counted.pairs == npu.pairs
    for metric in ("size_bytes", "bops", "bits_per_weight"):
        np.testing.assert_array_equal(np.isfinite(counted.metrics[metric]), np.isfinite(npu.metrics["latency_ms"]))


@pytest.mark.parametrize("spoil", [lambda text: f"{float(text):.4g}", lambda text: "0.5"])
def test_average_widths_are_those_of_the_network_whatever_a_file_says(table, layers, tmp_path, spoil):
    """A spreadsheet cuts fractions short, and their sum would then be no average."""
    file = tmp_path / "own.csv"
    write_csv(table, file)
    head, (names, *rows) = [], file.read_text().splitlines()
    while names.startswith("#"):
        head, names, rows = [*head, names], rows[0], rows[1:]
    column = names.split(",").index("bits_per_weight")
    cells = [row.split(",") for row in rows]
    spoilt = [",".join([*row[:column], spoil(row[column]), *row[column + 1 :]]) for row in cells]
    file.write_text("\n".join([*head, names, *spoilt]))
    assert open_hardware(file).price(layers, (8,), batch=4).cost(BitPolicy.uniform(NAMES, 8))["bits_per_weight"] == 8.0


def test_a_table_of_another_network_is_refused(table, layers, make_layer, tmp_path):
    file = tmp_path / "own.parquet"
    table.save(file)
    wider = [*layers[:2], make_layer("fc", 32, 20, 1, 1)]
    for others, batch, said in (
        (layers[:2], 4, "layer 'fc' of the cost table is not in the network; measure or build the table for this"),
        ([*layers, make_layer("extra")], 4, "layer 'extra' of the network is not in the cost table"),
        (wider, 4, "in the network: the layer has another shape; measure or build"),
        (layers, 16, "the costs are for a batch of 4, not 16; give --batch 4"),
    ):
        with pytest.raises(HardwareError) as error:
            open_hardware(file).price(others, (8,), batch=batch)
        assert str(error.value).startswith(f"{file}: ")
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda *_: 1 / 0, "hardware 'npu' raised ZeroDivisionError: division by zero"),
        (lambda *_: 3.0, "hardware 'npu' returned float; return a LayerCost from cost"),
    ],
)
def test_a_cost_model_that_fails_is_named(layers, monkeypatch, cost, message):
    monkeypatch.setattr(Npu, "cost", cost)
    with pytest.raises(HardwareError, match=message):
        open_hardware(Npu()).price(layers, (4, 8), 1)


def test_ties_of_a_cost_model_travel_with_its_table(layers, tmp_path):
    class Tied(Npu):
        ties = ("shared-input",)

    assert open_hardware(Npu()).ties == ()
    opened = open_hardware(Tied())
    assert opened.ties == ("shared-input",)
    write_csv(opened.price(layers, (4, 8), 1), tmp_path / "costs.csv")
    assert open_hardware(tmp_path / "costs.csv").ties == ("shared-input",)
    Tied.ties = ("shared-inptu",)
    with pytest.raises(HardwareError, match="ties=.*: must be a list of shared-input"):
        open_hardware(Tied())
