"""The GPU's name, features and versions, and its energy counter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["GpuEnergyCounter", "describe_gpu"]

_DRIVER = Path("/sys/module/nvidia/version")


def describe_gpu() -> dict[str, str]:
    """Returns the name, features and versions of the current GPU."""
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    try:
        driver = _DRIVER.read_text(encoding="ascii").strip()
    except OSError:
        driver = "unknown"
    return {
        "device": torch.cuda.get_device_name(),
        "features": f"compute capability {capability}",
        "cuda": torch.version.cuda or "none",
        "driver": driver,
    }


class GpuEnergyCounter:
    """Reads the energy that the board of the current GPU has used, through NVML; needs the package nvidia-ml-py."""

    def __init__(self) -> None:
        self._millijoules = _counter()
        self._start = self._read()

    @property
    def available(self) -> bool:
        """Whether the GPU has a counter that can be read."""
        return self._millijoules is not None

    def joules(self) -> float:
        """Waits for the GPU to finish, and returns the energy used since the counter was made."""
        torch.cuda.synchronize()
        return (self._read() - self._start) / 1e3

    def _read(self) -> int:
        return self._millijoules() if self._millijoules else 0


def _counter() -> Callable[[], int] | None:
    """Returns a function that reads the counter, or `None` if there is none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By UUID, because NVML ignores CUDA_VISIBLE_DEVICES when it numbers devices
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
