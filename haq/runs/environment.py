"""Versions and machine that a search ran with, so that it can be repeated."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import haq

__all__ = ["describe_environment"]

_PACKAGES = ("torch", "ray", "stable-baselines3", "gymnasium", "numpy")


def describe_environment() -> dict[str, Any]:
    """Returns versions of haq and of packages that affect results, the commit of a checkout, and the machine."""
    return {
        "haq": haq.__version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{package: version(package) for package in _PACKAGES},
    }


def _git_commit() -> str | None:
    """Returns the commit of this source checkout; `None` for an installed package."""
    checkout = Path(haq.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
