"""What machine this is, and which of its counters can be read."""

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
_TELLING = ("avx2", "avx512f", "avx512bw", "avx512vnni", "avx512vpopcntdq", "neon", "dotprod", "i8mm", "sve")


def describe_device(device: str = "cpu") -> dict[str, str]:
    """Returns the name, features and versions of `cpu` or `cuda`: the provenance of a measured table."""
    features = " ".join(feature for feature in _TELLING if feature in cpu_features())
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
    """Keeps this process on one core, where the system allows it: a move to another one empties its caches."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})  # interrupts are usually served by the first one
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class EnergyCounter:
    """Reads the energy that the processor package has used, by Intel's RAPL as Linux shows it.

    Args:
        folder: Where the counters are.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        # Other counters are of a package's parts, or of the whole platform, which the packages are part of
        self._packages = [
            package
            for package in sorted(folder.glob("intel-rapl:*"))
            if _text(package / "name").startswith("package") and _number(package / "energy_uj") is not None
        ]
        self._last = self._read()
        self._joules = 0.0

    @property
    def available(self) -> bool:
        """Whether this machine exposes a counter that this user may read."""
        return bool(self._packages)

    def joules(self) -> float:
        """Returns the energy used since the counter was made; counters that wrap around are followed."""
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
