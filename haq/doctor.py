"""What this machine has, and what would cause problems in a search; Ray is not started."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from haq import __version__
from haq.io.files import cache_folder, writable
from haq.metrics import METRICS, format_cost
from haq.registry import REGISTRIES
from haq.threads import cores

__all__ = ["Finding", "examine"]

_SHOWN = ("torch", "ray", "stable-baselines3", "gymnasium", "numpy", "numba", "pandas", "pyarrow", "click", "rich")
_WORKER_BYTES = 0.6e9  # 0.44e9 in the default search, whose network is small
_SHARED_BYTES = 0.5e9  # with less, Ray keeps shared objects on disk, unless the machine has very little memory
_FULL = 0.95  # Ray refuses to write to a disk that is fuller


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        text: What was found, for people.
        data: The same as plain JSON types.
        problem: What will go wrong, and the fix; empty if there is no problem.
        fatal: Whether haq cannot be used at all.
    """

    name: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    fatal: bool = False


def examine() -> Iterator[Finding]:
    """Runs all checks, one after the other; takes about as long as importing PyTorch."""
    yield Finding(
        "haq",
        f"{__version__} on Python {platform.python_version()}, {sys.executable}",
        {"version": __version__, "python": platform.python_version(), "executable": sys.executable},
    )
    yield _packages()
    yield _extras()
    yield _plugins()
    yield _cores()
    yield _memory()
    yield _processor()
    yield _gpu()
    yield _shared_memory()
    yield _temporary()
    yield _home()
    yield _cache()
    yield _current_folder()


# Packages


def _requirements(extra: str = "") -> list[Requirement]:
    """Returns the requirements of haq or of an extra; empty if haq is not installed, but only on the path."""
    try:
        every = [Requirement(text) for text in requires("haq") or ()]
    except PackageNotFoundError:
        return []
    return [
        requirement
        for requirement in every
        if (requirement.marker is None) == (not extra)
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lacking(requirements: list[Requirement]) -> list[str]:
    """Returns the requirements that are missing, too old or too new."""
    found = {requirement: _installed(requirement.name) for requirement in requirements}
    return [
        str(requirement.name) if present is None else f"{requirement.name} {present}, not {requirement.specifier}"
        for requirement, present in found.items()
        if present is None or not requirement.specifier.contains(present, prereleases=True)
    ]


def _packages() -> Finding:
    required = _requirements()
    found = {requirement.name: _installed(requirement.name) for requirement in required}
    shown = {name: found.get(name) or _installed(name) for name in _SHOWN}
    text = ", ".join(f"{name} {present}" for name, present in shown.items() if present)
    problem = ""
    if lacking := _lacking(required):
        problem = f"required: {'; '.join(lacking)}; run `pip install --upgrade haq`"
    missing = any(present is None for present in found.values())
    return Finding("packages", text, {**shown, **found}, problem, fatal=missing)


def _plugins() -> Finding:
    registries = (*REGISTRIES, METRICS)
    brought = {registry.group: registry.plugins for registry in registries if registry.plugins}
    listed = [f"{name} ({package})" for plugins in brought.values() for name, package in plugins.items()]
    problems = [problem for registry in registries for problem in registry.plugin_problems()]
    return Finding("plugins", ", ".join(listed) or "none", brought, "; ".join(problems))


def _extras() -> Finding:
    try:
        names = [name for name in metadata("haq").get_all("Provides-Extra") or () if name != "dev"]
    except PackageNotFoundError:
        names = []
    lacking = {name: _lacking(_requirements(name)) for name in names}
    parts = [f"{name} installed" for name, lacks in lacking.items() if not lacks]
    parts += [f"{name} missing: pip install 'haq[{name}]'" for name, lacks in lacking.items() if lacks]
    return Finding("extras", "\n".join(parts), {name: {"missing": lacks} for name, lacks in lacking.items()})


# The machine


def _cores() -> Finding:
    count = os.cpu_count() or 1
    usable = cores()
    if (quota := _quota()) is not None:
        usable = max(1, min(usable, int(quota)))
    problem = ""
    if usable < count:
        problem = f"a search starts a worker for each of {count} cores; give it --workers {usable}"
    return Finding("cores", f"{usable} of {count} usable", {"usable": usable, "there": count}, problem)


def _quota() -> float | None:
    """Returns how many cores the container may use at a time, or `None` if it has no such limit."""
    limit, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not limit:  # the first version of control groups
        limit, period = (_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except ValueError:
        return None


def _memory() -> Finding:
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    known = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdigit()}
    total, free = known.get("MemTotal"), known.get("MemAvailable")
    if total is None or free is None:
        return Finding("memory", "unknown", {"total_bytes": total, "available_bytes": free})
    if (limit := _read("/sys/fs/cgroup/memory.max")).isdigit() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current")
        total, free = int(limit), min(free, max(0, int(limit) - int(used or 0)))
    workers = int(free / _WORKER_BYTES)
    problem = ""
    if workers < (os.cpu_count() or 1):
        problem = f"a worker takes about {_bytes(_WORKER_BYTES)}; give a search --workers {max(1, workers)}"
    text = f"{_bytes(free)} of {_bytes(total)} free"
    return Finding("memory", text, {"total_bytes": total, "available_bytes": free}, problem)


def _processor() -> Finding:
    try:
        from haq.compiling import keeps_code
        from haq.hwmodels.kernels.bitserial import backends
        from haq.hwmodels.measuring.device import describe_device

        found, kernels, kept = describe_device(), backends()[0], keeps_code()
    except ImportError as error:
        return Finding("processor", platform.machine(), problem=_not_loading(error), fatal=True)
    text = f"{found['device']}, {found['features'] or platform.machine()}; kernels: {kernels}"
    data = {"name": found["device"], "features": found["features"].split(), "kernels": kernels, "code_is_kept": kept}
    problem = "" if kept else "kernels are compiled at every start; set NUMBA_CACHE_DIR to a writable folder"
    return Finding("processor", text, data, problem)


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("GPU", "unknown", problem=_not_loading(error), fatal=True)
    driver = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a driver that does not answer, which the finding reports
        available = torch.cuda.is_available()
    data: dict[str, Any] = {"cuda": torch.version.cuda, "devices": []}
    if not available:
        problem = ""
        if driver and torch.version.cuda is None:
            problem = "there is a GPU, but PyTorch was built without CUDA; see https://pytorch.org/get-started"
        elif driver:
            problem = "there is a GPU, but its driver does not answer; see `nvidia-smi`"
        return Finding("GPU", "none that PyTorch can use", data, problem)
    counter = _installed("nvidia-ml-py") is not None
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        data["devices"].append(
            {"name": found.name, "memory_bytes": found.total_memory, "capability": f"{found.major}.{found.minor}"}
        )
    text = ", ".join(f"{device['name']} ({_bytes(device['memory_bytes'])})" for device in data["devices"])
    text += f"; CUDA {torch.version.cuda}; "
    text += "energy is measured" if counter else "to measure energy: pip install nvidia-ml-py"
    return Finding("GPU", text, {**data, "nvidia_ml_py": counter})


def _not_loading(error: Exception) -> str:
    return f"{' '.join(str(error).split())[:200]}; run `pip install --upgrade --force-reinstall haq`"


# Folders


def _shared_memory() -> Finding:
    path = Path("/dev/shm")  # nosec B108  # a mount point, whose size is read
    if not path.is_dir():
        return Finding("shared memory", "no /dev/shm; Ray uses the temporary folder", {"total_bytes": None})
    usage = shutil.disk_usage(path)
    problem = ""
    if usage.free < _SHARED_BYTES:
        problem = "Ray will keep shared objects on disk, which is slow; in a container use `docker run --shm-size=2g`"
    text = f"{_bytes(usage.free)} of {_bytes(usage.total)} free in {path}"
    return Finding("shared memory", text, {"total_bytes": usage.total, "free_bytes": usage.free}, problem)


def _temporary() -> Finding:
    fix = "set TMPDIR to a writable folder on a disk with free space"
    try:
        # Ray uses these variables unchecked, whereas Python looks for another folder
        named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") if sys.platform == "linux" else None
        path = Path(named or tempfile.gettempdir())
    except FileNotFoundError:
        return Finding("temporary files", "no writable folder", problem=fix, fatal=True)
    if not os.path.isdir(path):
        return Finding("temporary files", f"{path} is not a folder", problem=f"{path} cannot be written; {fix}")
    return _folder("temporary files", path, fix)


def _home() -> Finding:
    path = Path.home()
    can = writable(path)
    problem = ""
    if not can:
        problem = "libraries cannot write to it; set HOME to a folder of yours, or HF_HOME for Hugging Face models"
    return Finding(
        "home", f"{path}{'' if can else ', cannot be written'}", {"path": str(path), "writable": can}, problem
    )


def _cache() -> Finding:
    path = cache_folder()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if os.path.isdir(path) else 0
    can = writable(path)
    problem = "" if can else "the built-in network is trained every time; set HAQ_CACHE to a folder of yours"
    data = {"path": str(path), "size_bytes": size, "writable": can}
    return Finding("cache", f"{path}, {_bytes(size)}", data, problem)


def _current_folder() -> Finding:
    fix = "change to a folder of yours, or give --out"
    try:
        return _folder("current folder", Path.cwd(), fix)
    except FileNotFoundError:
        return Finding("current folder", "no longer exists", problem=fix)


def _folder(name: str, path: Path, fix: str) -> Finding:
    usage, can = shutil.disk_usage(path), writable(path)
    full = usage.used / (usage.used + usage.free) if usage.used + usage.free else 1.0
    problem = ""
    if not can:
        problem = f"{path} cannot be written; {fix}"
    elif full > _FULL:
        problem = f"the disk of {path} is {full:.0%} full, and Ray stops at {_FULL:.0%}; free some space, or {fix}"
    data = {"path": str(path), "writable": can, "free_bytes": usage.free}
    return Finding(name, f"{path}, {_bytes(usage.free)} free", data, problem)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _bytes(number: float) -> str:
    return format_cost("size_bytes", number)
