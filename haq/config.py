"""All options of a search in one validated object."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from haq.constraints import Constraint, constrained_metric, parse_constraint
from haq.errors import ConfigError, HaqError, did_you_mean
from haq.io.durations import parse_duration
from haq.io.prefixes import short_name, split_path
from haq.io.safe_yaml import read_yaml
from haq.io.user_code import is_reference
from haq.io.validation import check_fields, check_names, restored
from haq.metrics import METRICS
from haq.policy import BitPolicy, checked_bits, parse_bits
from haq.registry import AGENTS
from haq.rules import RULES, Rule, listed_rules, parse_rule

__all__ = ["SearchConfig", "check_range", "checked_passes", "parse_bits", "parse_passes"]

PATHS = ("model", "data", "hardware", "agent", "scheme")
"""Options that can name a file."""

DEFAULT_WORKERS = os.cpu_count() or 1

Number = float  # an option of that name hides the type inside the class

RankByOption = Literal["auto", "top1", "loss", "kl"]

PASSES = ("cle", "sequential", "adaround", "bias-analytic", "bias")
"""Post-training passes, in the order in which they run; see `haq.quant.ptq.apply_passes`."""

AUTO_PASSES = ("sequential", "adaround")
"""The passes of `--ptq auto`, which need no labels."""


def parse_passes(text: str) -> tuple[str, ...]:
    """Reads post-training passes: names with commas, `auto` for `AUTO_PASSES`, or `none`.

    Examples:
        >>> parse_passes("bias, cle"), parse_passes("none"), parse_passes("auto")
        (('cle', 'bias'), (), ('sequential', 'adaround'))
    """
    if text.strip() == "none":
        return ()
    if text.strip() == "auto":
        return AUTO_PASSES
    return checked_passes(part.strip() for part in text.split(",") if part.strip())


def checked_passes(passes: Iterable[str]) -> tuple[str, ...]:
    """Returns the passes in the order in which they run, each once.

    Raises:
        ConfigError: One of them is unknown.
    """
    named = list(passes)
    for name in named:
        if name not in PASSES:
            known = ", ".join((*PASSES, "auto", "none"))
            raise ConfigError(f"unknown post-training pass {name!r}{did_you_mean(name, PASSES)}; use {known}")
    return tuple(name for name in PASSES if name in named)


def check_range(option: str, value: int, least: int) -> None:
    """Checks that the value of an option is at least `least`, and not too large for the integers of other libraries.

    Args:
        option: The option, such as `--seed`.
        value: Its value.
        least: The smallest valid value.

    Raises:
        ConfigError: The value is out of range.
    """
    most = 2**32 - 1 if option == "--seed" else 2**31 - 1  # seeds: what NumPy takes
    if value < least:
        raise ConfigError(f"{option} {value}: must be at least {least}")
    if value > most:
        raise ConfigError(f"{option} {value}: must be at most {most}")


@dataclass(frozen=True)
class SearchConfig:
    """Options of one search; `haq search --help` explains each.

    Widths, lists and times can also be text, as on the command line: `bits="2-8"`, `constraints="latency=10ms"` and
    `time_limit="10m"`. A batch of `None` stands for the hardware's usual batch size. Rules can also be mappings and
    lists; see `haq.rules`.

    Raises:
        ConfigError: A value is out of range.
        ConstraintError: A constraint cannot be read.
    """

    constraints: tuple[str, ...] = ()
    model: str = "digits-resnet"
    weights: str | None = None
    data: str = "digits"
    hardware: str = "edge"
    batch: int | None = None
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    a_bits: tuple[int, ...] | None = None
    trials: int = 60
    qat_steps: int = 24
    finetune_steps: int = 200
    ptq: tuple[str, ...] = ("sequential",)
    val_images: int = 1000
    pin_ends: bool = True
    rank_by: RankByOption = "auto"
    agent: str = "predictor"
    scheme: str = "linear"
    weights_only: bool = False
    workers: int = DEFAULT_WORKERS
    address: str | None = None
    gpus_per_trial: Number = 0.0
    trial_timeout: Number | None = None
    pareto: tuple[str, ...] = ()
    seed: int = 0
    start: BitPolicy | None = None
    pin: tuple[str, ...] = ()
    float: tuple[str, ...] = ()
    bits_of: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    time_limit: Number | None = None

    def __post_init__(self) -> None:
        self._read_text()
        check_fields(self)
        self._sort_widths()
        if not self.constraints and not self.pareto:
            raise ConfigError("no constraint: give at least one, such as --constraint latency=10ms")
        for name in ("model", "weights", "data", "hardware", "address", "agent", "scheme"):
            if "\0" in (getattr(self, name) or ""):
                raise ConfigError(f"--{name} {getattr(self, name)!r}: a name cannot have a NUL character; remove it")
        if self._metrics_known:
            self.check_metrics()
        else:  # a cost model of the user's own may bring more, once it is opened
            for text in self.constraints:
                constrained_metric(text)
        if self.weights_only and self.a_bits is not None:
            raise ConfigError("--a-bits with --weights-only: activations stay in floating point; give only one of them")
        for name, least in {
            "batch": 1, "trials": 1, "qat_steps": 0, "finetune_steps": 0, "val_images": 1, "workers": 1, "seed": 0
        }.items():  # fmt: skip
            if (value := getattr(self, name)) is not None:
                check_range("--" + name.replace("_", "-"), value, least)
        if not 0 <= self.gpus_per_trial <= 64:
            raise ConfigError(f"--gpus-per-trial {self.gpus_per_trial:g}: must be between 0 and 64, such as 0.25")
        object.__setattr__(self, "ptq", checked_passes(self.ptq))
        _ = self.rules  # read once, so that a wrong one is refused here
        if self.trial_timeout is not None and not 0 < self.trial_timeout < math.inf:
            raise ConfigError(f"--trial-timeout {self.trial_timeout:g}: must be more than 0 seconds, such as 600")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise ConfigError(f"--time-limit {self.time_limit:g}: write a time of more than 0, such as 90s, 10m or 2h")
        if self.rank_by not in get_args(RankByOption):
            raise ConfigError(f"--rank-by {self.rank_by}: use {', '.join(get_args(RankByOption))}")
        if not self.agent.startswith("object:"):
            AGENTS.check(self.agent, "--agent")

    def _read_text(self) -> None:
        """Parses widths, lists and times that are given as text, as on the command line."""
        if isinstance(limit := getattr(self, "time_limit"), str):  # noqa: B009  # by its type, it is already parsed
            object.__setattr__(self, "time_limit", parse_duration(limit, "--time-limit"))
        for name in ("bits", "a_bits"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, parse_bits(value))
        if isinstance(passes := getattr(self, "ptq"), str):  # noqa: B009  # by its type, it is already parsed
            object.__setattr__(self, "ptq", parse_passes(passes))
        for name in ("constraints", "pareto"):
            listed = getattr(self, name)
            if listed is None or isinstance(listed, str):
                parts = tuple(part.strip() for part in listed.split(",")) if listed else ()
                object.__setattr__(self, name, parts)
        for kind in RULES:
            object.__setattr__(self, kind, listed_rules(kind, getattr(self, kind)))

    def _sort_widths(self) -> None:
        for name in ("bits", "a_bits"):
            widths: tuple[int, ...] | None = getattr(self, name)
            if widths is not None:
                if not widths:
                    option = name.replace("_", "-")
                    raise ConfigError(f"no widths to search: give some, such as --{option} 2-8")
                object.__setattr__(self, name, checked_bits(set(widths)))

    def parsed_constraints(self) -> tuple[Constraint, ...]:
        """Returns the constraints as objects; relative ones are not resolved yet."""
        return tuple(parse_constraint(text) for text in self.constraints)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules for some of the layers, those of a kind in the order in which they were given."""
        return tuple(parse_rule(kind, text) for kind in RULES for text in getattr(self, kind))

    @property
    def tuned(self) -> bool:
        """Whether networks are fine-tuned."""
        return bool(self.qat_steps or self.finetune_steps)

    @property
    def _metrics_known(self) -> bool:
        """Whether all metrics are known before the hardware is opened."""
        return not (is_reference(self.hardware) or self.hardware.startswith("object:"))

    def check_metrics(self) -> None:
        """Checks what is limited and swept, once all metrics are registered.

        Raises:
            ConfigError: A metric to sweep is unknown, or not a sum over layers.
            ConstraintError: A constraint names an unknown metric or unit.
        """
        for metric in self.pareto:
            if metric not in METRICS or METRICS[metric].combine == "peak":
                sums = [name for name in METRICS if METRICS[name].combine != "peak"]
                raise ConfigError(f"--pareto {metric}{did_you_mean(metric, sums)}: use some of {', '.join(sums)}")
        self.parsed_constraints()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were asked for, swept ones first; without those that only the user's own code knows."""
        asked = dict.fromkeys((*self.pareto, *map(constrained_metric, self.constraints)))
        return tuple(name for name in asked if name in METRICS)

    @property
    def cost_fields(self) -> tuple[str, ...]:
        """Every cost field; those of the requested metrics come first."""
        return tuple(METRICS[name].field for name in dict.fromkeys((*self.metrics, *METRICS)))

    @property
    def run_name(self) -> str:
        """`MODEL-HARDWARE-CONSTRAINT`, what to call the run folder."""
        limits = [f"pareto-{metric}" for metric in self.pareto]
        limits += [constrained_metric(text) + "-" + text.partition("=")[2].strip() for text in self.constraints]
        return "-".join([short_name(self.model), Path(self.hardware).stem, *limits])

    def options(self) -> dict[str, Any]:
        """Returns the options by name, as `haq.search.run` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain YAML types."""
        content = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options().items()}
        if self.start is not None:
            content["start"] = self.start.widths()
        later = ("start", "time_limit", *RULES)  # options that older run folders do not have
        return {key: value for key, value in content.items() if value or key not in later}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchConfig:
        """Restores what `to_dict` gave.

        Raises:
            ConfigError: A key is unknown or missing, or a value is wrong.
        """
        if isinstance(data, Mapping) and isinstance(data.get("start"), dict):
            data = {**data, "start": BitPolicy.from_dict(data["start"])}
        return restored(cls, data)

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> SearchConfig:
        """Reads options from YAML: a run folder's `config.yaml`, or a mapping of options alone.

        Args:
            path: The file; relative paths in it start at its folder.
            changes: Options that replace those of the file.

        Raises:
            ConfigError: The file cannot be read, or an option is unknown or wrong.
            ConstraintError: A constraint cannot be read.
        """
        content = read_yaml(path, f"config file {str(path)!r}", ConfigError)
        options = content.get("search", content) if isinstance(content, Mapping) else content
        if not isinstance(options, Mapping):
            raise ConfigError(f"{path}: must be a mapping of options, such as `trials: 100`, or a run's config.yaml")
        try:
            check_names(cls, options)
            named = {name: options[name] for name in (*PATHS, "weights") if isinstance(options.get(name), str)}
            absolute = cls(("latency=100%",), **named).with_absolute_paths(path.resolve().parent)
            here = {name: getattr(absolute, name) for name in named}
            values = {**options, **here, **(changes or {})}
            if isinstance(values.get("start"), dict):  # a policy is also a mapping
                values["start"] = BitPolicy.from_dict(values["start"])
            return cls(**values)
        except HaqError as error:
            raise type(error)(f"{path}: {error}") from None

    def with_absolute_paths(self, base: Path | None = None) -> SearchConfig:
        """Returns the same options with absolute paths, so that the search can be resumed from any folder.

        Args:
            base: Folder at which relative paths start; by default the current one.
        """

        def absolute(text: str) -> str:
            prefix, path, suffix = split_path(text)
            return prefix + _absolute(path, base) + suffix if path else text

        paths: dict[str, Any] = {name: absolute(getattr(self, name)) for name in PATHS}
        return replace(self, **paths, weights=_absolute(self.weights, base) if self.weights is not None else None)


def _absolute(path: str, base: Path | None) -> str:
    return str((base or Path()).joinpath(os.path.expanduser(path)).resolve())
