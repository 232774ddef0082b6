"""Checks of output paths, before hours of work and not after them."""

from __future__ import annotations

import os
from pathlib import Path

from haq.errors import ConfigError
from haq.io.files import is_stream, writable

__all__ = ["check_file", "check_folder", "free_folder", "free_path"]


def check_folder(path: Path, resume: str | None = None) -> None:
    """Raises `ConfigError` unless a run folder can be made there.

    Args:
        path: The folder; it must not exist.
        resume: Command that resumes a folder that exists.
    """
    if os.path.lexists(path):
        fix = f"resume it with `{resume} --resume {path}`, or give another --out" if resume else "give another --out"
        raise ConfigError(f"{str(path)!r} exists; {fix}")
    _check_parent("--out", path)


def check_file(option: str, path: Path) -> None:
    """Raises `ConfigError` unless a file can be written there; one that exists is replaced."""
    if os.path.isdir(path):
        raise ConfigError(f"{option} {path}: it is a folder; give the name of a file")
    if not is_stream(path):
        _check_parent(option, path)


def _check_parent(option: str, path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not writable(parent):
        raise ConfigError(f"{option} {path}: {str(parent)!r} is not a writable folder; give another {option}")


def free_folder(name: str, parent: Path = Path("runs")) -> Path:
    """Returns `PARENT/NAME`, with a number appended if it exists; characters that are awkward in paths are replaced.

    Args:
        name: A name, such as `SearchConfig.run_name`.
        parent: The folder of run folders.
    """
    return free_path(parent / "".join(c if c.isalnum() or c in "-_." else "pct" if c == "%" else "-" for c in name))


def free_path(base: Path) -> Path:
    """Returns the path, with a number appended if it exists."""
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
