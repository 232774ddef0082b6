"""The per-layer bit config of a run, for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from haq.errors import ConfigError, did_you_mean
from haq.files import write_text
from haq.runs import Best, RunFolder

__all__ = ["FORMATS", "export_policy", "write_export"]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {"json": _json, "yaml": _yaml}
"""Name of a format → what writes it."""


def export_policy(best: Best, format: str) -> str:
    """Returns the chosen policy, and nothing else, as text that `BitPolicy.from_dict` restores.

    Args:
        best: Result of a search.
        format: Key of `FORMATS`.

    Raises:
        ConfigError: The format is not known.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}; known: {', '.join(FORMATS)}")
    return FORMATS[format](best.policy.to_dict())


def write_export(run: RunFolder, format: str, out: Path | None = None) -> str | Path:
    """Exports the policy of a run.

    Args:
        run: A run with a result.
        format: Key of `FORMATS`.
        out: File to write.

    Returns:
        The text, or the file when there is one.

    Raises:
        ConfigError: The format is not known, the run has no result, or the file cannot be written.
    """
    text = export_policy(run.read_best(), format)
    if out is None:
        return text
    try:
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"cannot write {str(out)!r}: {error.strerror}") from None
    return out
