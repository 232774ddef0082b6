import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from haq.errors import HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.accelerators.footprint import bops, size_bytes
from haq.hwmodels.kernels.deployment import BitSerialModule, random_module
from haq.hwmodels.measuring import Plan, measure
from haq.hwmodels.tables.formats import load_table, save_table
from haq.layers import trace
from haq.policy import LayerBits

BITS = (1, 2, 4)
SLEEP_S = 0.03
module = importlib.import_module("haq.hwmodels.measuring.measure")  # the package has a function of this name

Floats = npt.NDArray[np.float64]


class Tiny(nn.Module):
    """Two convolutions of one shape, one of them called twice; layers are not registered in the order of their calls.

    A branch that depends on values cannot be traced symbolically.
    """

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.branches = branches
        self.linear = nn.Linear(8, 3)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.once = nn.Conv2d(8, 8, 3, padding=1)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        y = self.twice(torch.relu(self.twice(torch.relu(self.once(y)))))
        if self.branches and y.sum() > 0:
            y = y + 1
        return self.linear(torch.relu(y).mean((2, 3)))


NAMES = ("stem", "depthwise", "once", "twice", "linear")
Measure = Callable[..., CostTable]


@pytest.fixture
def measured(tmp_path: Path) -> Measure:
    def run(model: nn.Module | None = None, progress: Any = lambda done, total: None, **changed: Any) -> CostTable:
        model, x = model or Tiny().eval(), torch.rand(1, 3, 12, 10)
        plan = replace(Plan(trace(model, x), BITS, BITS, repeats=3), **changed)
        return measure(plan, model, x, tmp_path / "partial", progress)

    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CostTable:
    model, x = Tiny().eval(), torch.rand(1, 3, 12, 10)
    journal = tmp_path_factory.mktemp("measured") / "partial"
    return measure(Plan(trace(model, x), BITS, (2, 3), 2, 4), model, x, journal, lambda done, total: None)


def test_the_table_says_what_was_measured(table: CostTable) -> None:
    assert (table.layers, table.w_bits, table.a_bits, table.batch) == (NAMES, BITS, (2, 3), 2)
    assert table.origin == "measured"
    assert table.hardware == table.provenance["device"]
    assert {"features", "system", "haq", "torch", "numba", "numpy", "date", "energy"} <= set(table.provenance)
    assert table.version.endswith(" kernels")
    assert table.provenance["threads"] == "1"
    assert int(table.provenance["repeats"]) >= 4
    assert set(table.details) == {"raw_latency_ms", "spread", "outliers"}


def test_every_cell_is_measured_and_wider_is_never_cheaper(table: CostTable) -> None:
    assert table.rest["latency_ms"] > 0
    for name in ("latency_ms", "energy_mj"):
        if name in table.metrics:
            costs = table.metrics[name]
            assert np.isfinite(costs).all()
            assert (costs > 0).all()
            assert (np.diff(costs, axis=1) >= 0).all()
            assert (np.diff(costs, axis=2) >= 0).all()
    raw, spread, outliers = (table.details[name] for name in ("raw_latency_ms", "spread", "outliers"))
    assert np.isfinite(raw).all()
    assert (raw > 0).all()
    assert (spread >= 0).all()
    assert ((outliers >= 0) & (outliers < 0.5)).all()


def test_the_fit_keeps_the_geometric_mean(table: CostTable) -> None:
    """Isotonic regression keeps the mean, here that of logarithms."""
    fitted, raw = table.metrics["latency_ms"], table.details["raw_latency_ms"]
    np.testing.assert_allclose(np.log(fitted).mean((1, 2)), np.log(raw).mean((1, 2)), atol=1e-6)


def test_layers_of_one_shape_share_costs(table: CostTable) -> None:
    for costs in (table.metrics["latency_ms"], table.details["raw_latency_ms"]):
        once, twice = costs[NAMES.index("once")], costs[NAMES.index("twice")]
        np.testing.assert_array_equal(twice, 2 * once)
    np.testing.assert_array_equal(table.details["spread"][2], table.details["spread"][3])
    assert (table.metrics["latency_ms"][0] != table.metrics["latency_ms"][1]).all()


def test_size_and_bit_operations_are_counted(table: CostTable) -> None:
    for row, layer in enumerate(trace(Tiny(), torch.rand(1, 3, 12, 10))):
        for w, w_bits in enumerate(table.w_bits):
            for a, a_bits in enumerate(table.a_bits):
                bits = LayerBits(w_bits, a_bits)
                assert table.metrics["size_bytes"][row, w, a] == size_bytes(layer, bits)
                assert table.metrics["bops"][row, w, a] == bops(layer, bits)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_round_trip(table: CostTable, tmp_path: Path, suffix: str) -> None:
    save_table(table, tmp_path / f"cpu{suffix}")
    again = load_table(tmp_path / f"cpu{suffix}")
    for field in ("hardware", "batch", "layers", "w_bits", "a_bits", "origin", "version", "memory"):
        assert getattr(again, field) == getattr(table, field)
    for field in ("rest", "provenance"):
        assert dict(getattr(again, field)) == dict(getattr(table, field))
    for field in ("metrics", "details"):
        assert set(getattr(again, field)) == set(getattr(table, field))
        for name, values in getattr(table, field).items():
            np.testing.assert_array_equal(getattr(again, field)[name], values)


def test_working_memory_is_planned_where_the_network_can_be_traced(table: CostTable, measured: Measure) -> None:
    assert table.memory is not None
    assert "ram_bytes" in table.fields
    assert measured(Tiny(branches=True).eval(), w_bits=(2,), a_bits=(2,)).memory is None


@pytest.mark.parametrize("group_bytes", [2**30, 1], ids=["all pairs at once", "pair by pair"])
def test_times_belong_to_their_pairs(measured: Measure, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    """A layer that sleeps at one pair of widths is slow there and nowhere else."""
    slow = {"stem": LayerBits(1, 4), "depthwise": LayerBits(4, 2), "linear": LayerBits(2, 2)}

    def with_sleep(layer: Any, bits: LayerBits, *rest: Any) -> BitSerialModule:
        made = random_module(layer, bits, *rest)
        if slow.get(layer.name) == bits:
            kernel = made.kernel

            def sleeping(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
                time.sleep(SLEEP_S)
                return kernel(x)

            made.kernel = sleeping  # type: ignore[assignment]
        return made

    monkeypatch.setattr(module, "random_module", with_sleep)
    monkeypatch.setattr(module, "_GROUP_BYTES", group_bytes)
    assert len(Plan(trace(Tiny(), torch.rand(1, 3, 12, 10)), BITS, BITS).groups) == (9 if group_bytes == 1 else 1)
    raw = measured().details["raw_latency_ms"]
    found = {
        (name, LayerBits(BITS[w], BITS[a]))
        for name, costs in zip(NAMES, raw, strict=True)
        for w, a in np.argwhere(costs >= 1e3 * SLEEP_S)
    }
    assert found == set(slow.items())


def test_groups_hold_every_pair_once() -> None:
    layers = trace(Tiny(), torch.rand(1, 3, 12, 10))
    small, large = (Plan(layers, (1, 2, 8), (3, 8), batch) for batch in (1, 2**20))
    assert len(small.groups) == 1
    assert len(large.groups) > 1, "buffers grow with the batch"
    for plan in (small, large):
        assert [bits for group in plan.groups for bits in group] == plan.cells
    assert plan.cells[:3] == [LayerBits(1, 3), LayerBits(1, 8), LayerBits(2, 3)]


def test_energy_is_measured_where_there_is_a_counter(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        """Uses a millijoule from one reading to the next."""

        available = True

        def __init__(self) -> None:
            self.used = 0.0

        def joules(self) -> float:
            self.used += 1e-3
            return self.used

    monkeypatch.setattr(module, "EnergyCounter", Meter)
    table = measured(w_bits=(2,), a_bits=(1, 4))
    energy = table.metrics["energy_mj"]
    assert energy.shape == (5, 1, 2)
    assert ((energy > 0) & (energy <= 2)).all(), "a millijoule over the calls between two readings; one layer has two"
    assert (np.diff(energy, axis=2) >= 0).all()
    np.testing.assert_array_equal(energy[NAMES.index("twice")], 2 * energy[NAMES.index("once")])
    assert "RAPL" in table.provenance["energy"]


# Interruption


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_measurement_resumes(
    measured: Measure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    """Three passes over three groups of four, four and one pair."""
    made: list[LayerBits] = []

    def counted(layer: Any, bits: LayerBits, *rest: Any) -> BitSerialModule:
        made.append(bits)
        return random_module(layer, bits, *rest)

    def stop(done: int, total: int) -> None:
        assert total == 9
        if done == after:
            raise KeyboardInterrupt

    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    monkeypatch.setattr(module, "random_module", counted)
    monkeypatch.setattr(Plan, "groups", property(lambda plan: [plan.cells[:4], plan.cells[4:8], plan.cells[8:]]))
    with pytest.raises(KeyboardInterrupt):
        measured(progress=stop)
    assert torch.get_num_threads() == threads
    assert cores is None or os.sched_getaffinity(0) == cores

    before = (tmp_path / "partial").read_text()
    assert before.count("\n") == 1 + after
    made.clear()
    seen: list[tuple[int, int]] = []
    table = measured(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(10)]
    journal = (tmp_path / "partial").read_text()
    assert journal.startswith(before)
    assert [json.loads(line)["key"] for line in journal.splitlines()[1:]] == [f"{n // 3}:{n % 3}" for n in range(9)]
    pairs = [4, 4, 1] * 3
    assert len(made) == len(NAMES) * sum(pairs[after:])

    made.clear()
    again = measured()
    assert not made, "everything is in the journal"
    np.testing.assert_array_equal(again.metrics["latency_ms"], table.metrics["latency_ms"])
    assert again.rest == table.rest


@pytest.mark.parametrize("changed", [{"w_bits": (1, 2)}, {"batch": 2}, {"repeats": 6}])
def test_the_journal_of_another_plan_is_refused(measured: Measure, changed: dict[str, Any]) -> None:
    measured(a_bits=(1,))
    with pytest.raises(HardwareError, match="holds another measurement"):
        measured(**{"a_bits": (1,), **changed})


def test_the_model_is_not_changed(measured: Measure) -> None:
    model = Tiny().train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    measured(model, w_bits=(2,), a_bits=(2,))
    assert model.training
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())


def test_a_layer_that_the_kernels_cannot_run_is_refused(measured: Measure) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"))
    with pytest.raises(HardwareError, match="layer '0' pads with"):
        measured(model)
