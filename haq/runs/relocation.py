"""Finds the model, data and hardware of a run after a project has moved, or takes replacements for them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from haq.config import PATHS, SearchConfig
from haq.errors import ConfigError
from haq.io.prefixes import split_path
from haq.io.validation import check_fields
from haq.runs import RunFolder

__all__ = ["Named", "config_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Named:
    """Replacements for what a run names; `None` keeps what the run names. The content must be the same.

    Attributes:
        model: As in `SearchConfig`, or the network itself, a `torch.nn.Module`.
        weights: File of a state dict.
        data: Name, or prefix and path; or the data itself, see `haq.data.taken`.
        hardware: Name or file; or a `haq.hwmodels.Hardware` or `CostTable`.
        agent: The agent that proposes, in any form that `AgentKind.of` takes.
        scheme: A `haq.quant.schemes.Scheme`.

    Raises:
        ConfigError: The model is neither text nor a network, or the weights are not a path.
    """

    model: Any = None
    weights: str | None = None
    data: Any = None
    hardware: Any = None
    agent: Any = None
    scheme: Any = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.model, str | None):
            from torch import nn  # a caller with a network has already imported PyTorch

            if not isinstance(self.model, nn.Module):
                raise ConfigError(
                    f"model={type(self.model).__name__}: must be text or a torch.nn.Module; give other options by "
                    "name, such as constraints="
                )

    def texts(self) -> dict[str, str]:
        """Returns what was given as text for options; an object is `object:NAME`, which only `Named` can open again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _text(value) for name, value in values.items() if value is not None}

    def object(self, name: str) -> Any:
        """Returns the object that was given for an option; `None` if the option is text or was not given."""
        value = getattr(self, name)
        return None if isinstance(value, str) else value


def _text(value: Any) -> str:
    """Returns text as it is, and for an object `object:` with its own name or that of its class."""
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return value if isinstance(value, str) else f"object:{name if isinstance(name, str) else type(value).__name__}"


def config_of(run: RunFolder, named: Named | None = None) -> SearchConfig:
    """Returns the options of a run, with absolute paths to where its files are now.

    A path that no longer exists is looked up at the same place relative to the run folder; if it is found there, a
    warning is logged.

    Args:
        run: The run whose options are read.
        named: Replacements for what the run names.

    Raises:
        ConfigError: The options are damaged.
    """
    given: dict[str, Any] = (named or Named()).texts()
    config = replace(run.read_config(), **given).with_absolute_paths()
    was = run.read_place()
    if was is None:
        return config
    now = run.path.resolve()
    moved: dict[str, Any] = {name: _found(getattr(config, name), was, now) for name in PATHS}
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
    logger.warning("%s does not exist; using %s, at the same place relative to the run folder", path, other)
    return str(other)
