"""The run folder: every file that a search writes and a report reads."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from haq.config import SearchConfig
from haq.errors import ConfigError, HaqError
from haq.io.files import write_text
from haq.io.safe_yaml import read_yaml
from haq.layers import LayerSpec
from haq.layers.rest import Rest
from haq.metrics import METRICS, Metric
from haq.runs.identity import Identity, file_fingerprint
from haq.runs.outcome import Baseline, BaselineName, Best
from haq.runs.trial import Trial

__all__ = ["RunFolder"]

T = TypeVar("T")


class RunFolder:
    """Reads and writes `runs/NAME`; files are written whole, and `trials.jsonl` grows by whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.costs = path / "costs.parquet"
        self.model = path / "model.pt"
        self.float = path / "float.pt"
        self.page = path / "report.html"
        self.tune = path / "tune"
        self.searcher = path / "searcher.pt"
        self.sensitivity = path / "sensitivity.json"
        self.training, self.start = path / "finetune.yaml", path / "start.pt"
        self.checkpoint, self.tensorboard = path / "checkpoint.pt", path / "tensorboard"
        self.bench = path / "bench.json"
        self._config, self._layers, self._identity = (
            path / name for name in ("config.yaml", "layers.json", "fingerprints.json")
        )
        self._trials, self._baselines = path / "trials.jsonl", path / "baselines.json"
        self._best, self._pareto = path / "best.json", path / "pareto.json"
        self._metrics, self._rest = path / "metrics.json", path / "rest.json"
        self._known: tuple[tuple[int, int] | None, list[Trial]] = (None, [])

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens an existing run folder.

        Raises:
            ConfigError: `path` is not a run folder.
        """
        if not (path / "config.yaml").is_file():
            what = "has no config.yaml, so it is not a run folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"run folder {str(path)!r} {what}; give the folder that `haq search` wrote")
        home = path.resolve()
        for file in path.rglob("*"):  # or a folder from someone else could make haq read and write any file
            if file.is_symlink() and not file.resolve().is_relative_to(home):
                raise ConfigError(
                    f"{str(file)!r} is a link that leads out of the run folder; put the file itself there"
                )
        run = cls(path)
        run.register_metrics()
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from working in this folder; the lock of a process that dies is released.

        Raises:
            ConfigError: Another process is working in it.
        """
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise ConfigError(
                f"another haq is working in {str(self.path)!r}; wait until it has ended, or stop it first"
            ) from None

    @property
    def finished(self) -> bool:
        """Whether the search is complete, including the test."""
        return self._best.is_file() and self.read_best().test_top1 is not None

    def copy_to(self, path: Path) -> RunFolder:
        """Copies the search's settings, baselines and trials, but not its result, into an empty folder."""
        copy = RunFolder(path)
        kept = (
            self._config, self._layers, self.costs, self.float, self.sensitivity, self._baselines, self._trials,
            self._pareto, self._metrics, self._rest,
        )  # fmt: skip
        for file in kept:
            if file.is_file():
                shutil.copy2(file, path / file.name)
        if (identity := self.read_identity()) is not None:
            copy.write_identity(identity)
        return copy

    # What a search was asked to do, and what it found before its first trial

    def write_config(self, config: SearchConfig, environment: Mapping[str, Any], place: Path | None = None) -> None:
        """Writes the options, the versions of packages, and the path of the run folder.

        Args:
            config: Options, with absolute paths.
            environment: See `read_environment`.
            place: Future path of the folder, if it will be moved.
        """
        folder = str((place or self.path).resolve())
        content = {"search": config.to_dict(), "environment": dict(environment), "folder": folder}
        write_text(self._config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def read_config(self) -> SearchConfig:
        """Returns the options of the search."""
        content = self._content()["search"]
        try:
            return SearchConfig.from_dict(content)
        except HaqError as error:
            raise ConfigError(f"{self._config}: {error}") from None

    def read_environment(self) -> dict[str, Any]:
        """Returns the versions, git commit and machine of the search."""
        environment = self._content().get("environment", {})
        return environment if isinstance(environment, dict) else {}

    def read_place(self) -> Path | None:
        """Returns the path of the run folder when its options were written, or `None` if an older haq wrote them."""
        place = self._content().get("folder")
        return Path(place) if isinstance(place, str) and "\0" not in place else None

    def write_identity(self, identity: Identity) -> None:
        """Writes `fingerprints.json`: the run's identity, with digests of the files that are not written again."""
        files = {file.name: file_fingerprint(file) for file in self._unchanging if file.is_file()}
        self._write(self._identity, replace(identity, files=files).to_dict())

    def read_identity(self) -> Identity | None:
        """Reads `fingerprints.json`; `None` for a run folder from before this file existed."""
        return self._read(self._identity, Identity.from_dict) if self._identity.is_file() else None

    def seal(self, file: Path) -> None:
        """Stores the digest of a file of this folder, so that another run's file is not mistaken for it."""
        if (identity := self.read_identity()) is not None:
            files = {**identity.files, file.name: file_fingerprint(file)}
            self._write(self._identity, replace(identity, files=files).to_dict())

    def check(self) -> None:
        """Raises `ConfigError` if options, layers or prices are not those of the search."""
        if (identity := self.read_identity()) is not None:
            identity.check_settings(self.read_config(), self.path)
            for file in self._unchanging:
                identity.check_file(file)

    @property
    def _unchanging(self) -> tuple[Path, ...]:
        """Files that are written once, with the options."""
        return self._layers, self.costs, self._rest

    def check_file(self, file: Path) -> None:
        """Raises `ConfigError` if a file is not the one that was sealed."""
        if (identity := self.read_identity()) is not None:
            identity.check_file(file)

    def network_file(self) -> Path:
        """Returns `model.pt`.

        Raises:
            ConfigError: The run has none yet, or the file belongs to another run.
        """
        if not self.model.is_file():
            raise ConfigError(f"{self.path} has no model.pt; finish it with `haq search --resume {self.path}`")
        self.check_file(self.model)
        return self.model

    def _content(self) -> dict[str, Any]:
        content = read_yaml(self._config, str(self._config), ConfigError)
        if not isinstance(content, dict) or not isinstance(content.get("search"), dict):
            raise ConfigError(f"{self._config} has no 'search' section; it was not written by `haq search`")
        return content

    def write_metrics(self, metrics: Sequence[Metric]) -> None:
        """Writes `metrics.json`: the metrics of the run that do not ship with haq; no file if there are none."""
        if metrics:
            self._write(self._metrics, [metric.to_dict() for metric in metrics])

    def register_metrics(self) -> None:
        """Registers the metrics of `metrics.json`, so that the run can be read without the code that brought them.

        Raises:
            ConfigError: The file is damaged, or this process knows another metric of that name or field.
        """
        if not self._metrics.is_file():
            return
        for metric in self._read(self._metrics, lambda content: [Metric.from_dict(data) for data in content]):
            try:
                METRICS.register(metric.name, metric)
            except HaqError as error:
                raise ConfigError(f"{self._metrics}: {error}") from None

    def write_layers(self, layers: list[LayerSpec]) -> None:
        """Writes `layers.json`."""
        self._write(self._layers, [layer.to_dict() for layer in layers])

    @property
    def knows_layers(self) -> bool:
        """Whether the layers have been written."""
        return self._layers.is_file()

    def read_layers(self) -> list[LayerSpec]:
        """Reads `layers.json`."""
        return self._read(self._layers, lambda content: [LayerSpec.from_dict(layer) for layer in content])

    def write_rest(self, rest: Rest) -> None:
        """Writes `rest.json`: what the network reads beside its layers; no file if there is nothing."""
        if rest:
            self._write(self._rest, rest.to_dict())

    def read_rest(self) -> Rest:
        """Reads `rest.json`; older run folders, and those of networks with nothing else, have none."""
        return self._read(self._rest, Rest.from_dict) if self._rest.is_file() else Rest()

    def write_baselines(self, baselines: Mapping[BaselineName, Baseline | None]) -> None:
        """Writes `baselines.json`: the comparison networks before fine-tuning, on the validation images."""
        self._write(self._baselines, {name: value.to_dict() if value else None for name, value in baselines.items()})

    def read_baselines(self) -> dict[BaselineName, Baseline | None]:
        """Reads `baselines.json`."""
        return self._read(
            self._baselines,
            lambda content: {name: Baseline.from_dict(value) if value else None for name, value in content.items()},
        )

    # What the search found

    def append_trial(self, trial: Trial) -> None:
        """Adds one line to `trials.jsonl` and flushes it; overwrites a last line that a crash cut short."""
        with self._trials.open("ab+") as file:
            if end := file.tell():
                file.seek(end - 1)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(trial.to_dict()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_trials(self) -> list[Trial]:
        """Reads all finished trials; a last line that a crash cut short is dropped."""
        if not self._trials.exists():
            return []
        found = self._trials.stat()
        if self._known[0] != (found.st_size, found.st_mtime_ns):  # a report asks for them several times
            self._known = (found.st_size, found.st_mtime_ns), self._parsed_trials()
        return list(self._known[1])

    def _parsed_trials(self) -> list[Trial]:
        try:
            *complete, _ = self._trials.read_bytes().split(b"\n")  # the rest is empty or incomplete
        except OSError as error:
            raise ConfigError(f"cannot read {self._trials}: {error.strerror}") from None
        trials = []
        with _uncollected():
            for number, line in enumerate(complete, 1):
                try:
                    trials.append(Trial.from_dict(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError, HaqError) as error:
                    raise ConfigError(
                        f"{self._trials}, line {number}, is not a trial: {_reason(error)}; remove that line"
                    ) from None
        return trials

    def write_best(self, best: Best) -> None:
        """Writes `best.json`."""
        self._write(self._best, best.to_dict())

    def read_best(self) -> Best:
        """Reads `best.json`.

        Raises:
            ConfigError: The search has not finished, or the file is damaged.
        """
        if not self._best.is_file():
            raise ConfigError(
                f"run {str(self.path)!r} has no result yet; finish it with `haq search --resume {self.path}`"
            )
        best = self._read(self._best, Best.from_dict)
        return replace(best, policy=best.policy.with_scheme(self.read_config().scheme))

    def write_front(self, front: list[Trial]) -> None:
        """Writes `pareto.json`: the trials that no other trial beats in both objective and cost."""
        self._write(self._pareto, [trial.to_dict() for trial in front])

    def read_front(self) -> list[Trial]:
        """Reads `pareto.json`."""
        return self._read(self._pareto, lambda content: [Trial.from_dict(trial) for trial in content])

    def _write(self, path: Path, content: object) -> None:
        write_text(path, json.dumps(content, indent=1) + "\n")

    def _read(self, path: Path, parse: Callable[[Any], T]) -> T:
        try:
            return parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"run {str(self.path)!r} lacks {path.name}; it stopped before its first trial") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read {path}: {error}; copy the run folder again") from None
        except (AttributeError, KeyError, TypeError, HaqError) as error:
            raise ConfigError(
                f"{path} was not written by `haq search`: {_reason(error)}; copy the run folder again"
            ) from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switches off the search for reference cycles: among millions of new objects without any, it doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
