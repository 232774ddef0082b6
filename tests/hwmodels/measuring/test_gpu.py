import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from haq.hwmodels.measuring import gpu
from haq.hwmodels.measuring.device import describe_device
from haq.hwmodels.measuring.gpu import GpuEnergyCounter

UUID = "6f1f1a4a-0000-0000-0000-000000000000"


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """NVIDIA's library, as the package nvidia-ml-py exposes it, with one board."""

    NVMLError = NVMLError

    def __init__(self, counts: bool = True) -> None:
        self.millijoules, self.counts, self.started = 1_000_000, counts, False

    def nvmlInit(self) -> None:
        self.started = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.started
        if uuid != f"GPU-{UUID}":
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise NVMLError("Not Supported")
        return self.millijoules


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A GPU; holds an entry for each time that it was waited for."""
    waits: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid=UUID))
    return waits


def test_energy_since_the_counter_was_made(monkeypatch: pytest.MonkeyPatch, waits: list[None]) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = GpuEnergyCounter()
    assert counter.available
    assert counter.joules() == 0
    nvml.millijoules += 2500
    assert counter.joules() == pytest.approx(2.5)
    assert len(waits) == 2


@pytest.mark.parametrize("nvml", [None, Nvml(counts=False)], ids=["no library", "no counter"])
def test_no_counter(monkeypatch: pytest.MonkeyPatch, waits: list[None], nvml: Nvml | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = GpuEnergyCounter()
    assert not counter.available
    assert counter.joules() == 0


def test_the_gpu_says_what_tables_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "version")
    assert describe_device("cuda")["driver"] == "unknown"
    (tmp_path / "version").write_text("570.86.15\n")
    device = describe_device("cuda")
    facts = {"device": "NVIDIA H200", "features": "compute capability 9.0", "cuda": "12.8", "driver": "570.86.15"}
    processor = describe_device()
    assert device == {**processor, **facts, "processor": processor["device"], "date": device["date"]}
