"""Where the model, data and hardware of a run are now: projects move, and files get other names."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from haq.config import SearchConfig
from haq.io.prefixes import split_path
from haq.io.validation import check_fields
from haq.runs import RunFolder

__all__ = ["Named", "config_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """What takes the place of what a run names; `None` leaves that as it is. The content must be the same.

    Attributes:
        model: As in `SearchConfig`, as are the others.
        weights: File of a state dict.
        data: Name or prefix and path.
        hardware: Name or file.

    Raises:
        ConfigError: A value is no text.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    hardware: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def config_of(run: RunFolder, named: Named | None = None) -> SearchConfig:
    """Returns the options of a run, with absolute paths of what is there now.

    A path that is no longer there is looked for where it lies as seen from the run folder; that it was found is logged.

    Args:
        run: Its options are read.
        named: What was named anew.

    Raises:
        ConfigError: The options are damaged.
    """
    given = {name: value for name, value in asdict(named or Named()).items() if value is not None}
    config = replace(run.read_config(), **given).with_absolute_paths()
    was = run.read_place()
    if was is None:
        return config
    now = run.path.resolve()
    moved: dict[str, Any] = {name: _found(getattr(config, name), was, now) for name in ("model", "data", "hardware")}
    weights = _moved(config.weights, was, now) if config.weights is not None else None
    return replace(config, **moved, weights=weights)


def _found(text: str, was: Path, now: Path) -> str:
    prefix, path, suffix = split_path(text)
    return prefix + _moved(path, was, now) + suffix if path else text


def _moved(path: str, was: Path, now: Path) -> str:
    if os.path.exists(path):
        return path
    other = (now / os.path.relpath(path, was)).resolve()
    if str(other) == path or not other.exists():
        return path
    logger.warning("%s is not there; found %s, at the same place as seen from the run folder", path, other)
    return str(other)
