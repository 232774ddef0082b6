"""Where results may be written: found out before hours of work, not after."""

from __future__ import annotations

import os
from pathlib import Path

from haq.config import SearchConfig
from haq.constraints import parse_constraint
from haq.errors import ConfigError
from haq.files import is_stream, writable
from haq.sources import short_name

__all__ = ["check_file", "check_folder", "free_folder", "free_path"]


def check_folder(path: Path, resume: str | None = None) -> None:
    """Raises `ConfigError` unless a run folder can be made there.

    Args:
        path: The folder; it must not exist.
        resume: Command that goes on with one that does.
    """
    if os.path.lexists(path):
        mend = f"go on with `{resume} --resume {path}`, or give another --out" if resume else "give another --out"
        raise ConfigError(f"{str(path)!r} exists; {mend}")
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
        raise ConfigError(f"{option} {path}: {str(parent)!r} is no folder that can be written; give another {option}")


def free_folder(config: SearchConfig, parent: Path = Path("runs")) -> Path:
    """Returns `PARENT/MODEL-HARDWARE-CONSTRAINT`, with a number behind it when that exists."""
    limits = [f"pareto-{metric}" for metric in config.pareto]
    limits += [parse_constraint(text).metric + "-" + text.partition("=")[2].strip() for text in config.constraints]
    name = "-".join([short_name(config.model), Path(config.hardware).stem, *limits])
    return free_path(parent / "".join(c if c.isalnum() or c in "-_." else "pct" if c == "%" else "-" for c in name))


def free_path(base: Path) -> Path:
    """Returns the path, with a number behind it when that exists."""
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
