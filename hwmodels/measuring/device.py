"""This machine's name, features and versions, and its energy counter."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from haq.hwmodels.kernels.bitserial import cpu_features
from haq.hwmodels.measuring.gpu import describe_gpu

__all__ = ["EnergyCounter", "describe_device", "one_core"]

_POWERCAP = Path("/sys/class/powercap")
_LISTED = ("avx2", "avx512f", "avx512bw", "avx512vnni", "avx512vpopcntdq", "neon", "dotprod", "i8mm", "sve")


def describe_device(device: str = "cpu") -> dict[str, str]:
    """Returns the name, features and versions of `cpu` or `cuda`: the provenance of a measured table."""
    features = " ".join(feature for feature in _LISTED if feature in cpu_features())
    processor = {"device": _processor(), "features": features}
    return {
        **(describe_gpu() | {"processor": processor["device"]} if device == "cuda" else processor),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{package: version(package) for package in ("haq", "torch", "numba", "numpy")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process on one core, if the system allows it; another core would start with cold caches."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})  # the first core usually serves the interrupts
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class EnergyCounter:
    """Reads the energy that the processor package has used, from Intel's RAPL counters as Linux exposes them.

    Args:
        folder: Folder of the counters.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        # Other counters are for parts of a package, or for the whole platform, which includes the packages
        self._packages = [
            package
            for package in sorted(folder.glob("intel-rapl:*"))
            if _text(package / "name").startswith("package") and _number(package / "energy_uj") is not None
        ]
        self._last = self._read()
        self._joules = 0.0

    @property
    def available(self) -> bool:
        """Whether this machine has a counter that the user may read."""
        return bool(self._packages)

    def joules(self) -> float:
        """Returns the energy used since the counter was made, also when a counter wraps around."""
        now = self._read()
        for package, before, after in zip(self._packages, self._last, now, strict=True):
            used = after - before
            if used < 0:
                used += _number(package / "max_energy_range_uj") or 0.0
            self._joules += used / 1e6
        self._last = now
        return self._joules

    def _read(self) -> list[float]:
        return [_number(package / "energy_uj") or 0.0 for package in self._packages]


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
