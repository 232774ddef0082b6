"""The identity of a run: the network, data, prices and settings of its scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.io.validation import restored

__all__ = ["Identity", "file_fingerprint", "settings_of", "short"]

_FREE = {"trials", "finetune_steps", "workers", "address", "gpus_per_trial", "trial_timeout", "time_limit"}
"""Options that may be changed in `config.yaml`, for more trials or another machine."""
_PLACES = {"model", "weights", "data", "hardware"}  # their content counts, not their path


@dataclass(frozen=True)
class Identity:
    """Fingerprints of what a search began with, `fingerprints.json`.

    Attributes:
        weights: Digest of the float network's weights; see `haq.runs.fingerprints`.
        outputs: Some outputs of the float network for one sample, which identify its code. Empty for a network whose
            outputs differ each time.
        data: Digest of the samples and labels of all splits.
        rounding: The scheme's results for fixed numbers.
        settings: The options that decide what a score means.
        files: Name of a file of the run folder → digest of its content when it was written.
    """

    weights: str
    outputs: tuple[float, ...]
    data: str
    rounding: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Identity:
        """Restores an identity from the result of `to_dict`."""
        return restored(cls, data)

    def check_settings(self, config: SearchConfig, run: Path) -> None:
        """Raises `ConfigError` if an option in `config.yaml` is not that of the search."""
        found = settings_of(config)
        for name, value in self.settings.items():
            if name in found and found[name] != value:
                raise ConfigError(
                    f"config.yaml of run {str(run)!r} has {name}: {_shown(found[name])}, but it was searched with "
                    f"{name}: {_shown(value)}; undo the edit, or start a new search"
                )

    def check_file(self, path: Path) -> None:
        """Raises `ConfigError` if a file of the run folder is not the one that was written."""
        known = self.files.get(path.name)
        if known is not None and path.is_file() and (found := file_fingerprint(path)) != known:
            raise ConfigError(
                f"{path} is not the file that this run wrote: its fingerprint is {short(found)}, and the run has "
                f"{short(known)}; copy the run folder again, or start a new search"
            )


def settings_of(config: SearchConfig) -> dict[str, Any]:
    """Returns the options that decide what a score of the search means, in the form that JSON restores."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _FREE | _PLACES}
    for name in ("agent", "scheme"):  # of a user's file, wherever it lies now
        settings[name] = Path(settings[name]).name
    return settings


def file_fingerprint(path: Path) -> str:
    """Returns a digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short(fingerprint: str) -> str:
    """Returns the start of a fingerprint, for people to compare."""
    return fingerprint[:8]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
