import os
from pathlib import Path

import pytest

from haq.hwmodels.kernels.bitserial import cpu_features
from haq.hwmodels.measuring.device import EnergyCounter, describe_device, one_core

RANGE = 262_143_328_850


def zone(folder: Path, number: str, name: str, energy: int) -> Path:
    """A counter as Linux exposes it, see Documentation/power/powercap/powercap.rst."""
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    return path / "energy_uj"


def test_energy_of_all_packages(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 5_000_000), zone(tmp_path, "1", "package-1", 0)
    counter = EnergyCounter(tmp_path)
    assert counter.available
    assert counter.joules() == 0
    first.write_text("7500000\n")
    second.write_text("250000\n")
    assert counter.joules() == pytest.approx(2.75)
    first.write_text("8500000\n")
    assert counter.joules() == pytest.approx(3.75)


def test_nothing_is_counted_twice(tmp_path: Path) -> None:
    """Cores and memory are parts of the package, and the package of the platform."""
    (tmp_path / "intel-rapl").mkdir()
    package = zone(tmp_path, "0", "package-0", 0)
    parts = [
        zone(tmp_path, "0:0", "core", 0), zone(tmp_path, "0:1", "dram", 0), zone(tmp_path, "1", "psys", 0),
        zone(tmp_path, "0/intel-rapl:0:2", "uncore", 0), zone(tmp_path / "mmio", "0", "package-0", 0),
    ]  # fmt: skip
    counter = EnergyCounter(tmp_path)
    for part in parts:
        part.write_text("9000000\n")
    package.write_text("1000000\n")
    assert counter.joules() == pytest.approx(1.0)


def test_a_counter_that_wraps_around_is_followed(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", RANGE - 1_000_000)
    counter = EnergyCounter(tmp_path)
    package.write_text("2000000\n")
    assert counter.joules() == pytest.approx(3.0)
    package.write_text("2500000\n")
    assert counter.joules() == pytest.approx(3.5)


def test_a_machine_without_counters(tmp_path: Path) -> None:
    assert not EnergyCounter(tmp_path / "none").available
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "0", "package-0", 0).unlink()
    zone(tmp_path, "1", "package-1", 0).write_text("busy")
    counter = EnergyCounter(tmp_path)
    assert not counter.available
    assert counter.joules() == 0


def test_a_counter_that_may_not_be_read(tmp_path: Path) -> None:
    """Since 2020, Linux lets only root read them."""
    energy = zone(tmp_path, "0", "package-0", 0)
    energy.unlink()
    energy.mkdir()  # not readable, even as root
    assert not EnergyCounter(tmp_path).available


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinities")
def test_one_core_and_back() -> None:
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) <= before
    assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyboardInterrupt), one_core():
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


def test_the_device_says_what_tables_need() -> None:
    device = describe_device()
    assert set(device) == {"device", "features", "system", "haq", "torch", "numba", "numpy", "date"}
    assert all(isinstance(value, str) and "\n" not in value for value in device.values())
    assert device["device"]
    assert set(device["features"].split()) <= cpu_features()
