"""Reading a hardware description: a YAML file in which every number has a unit and a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from importlib.resources.abc import Traversable
from typing import Any, get_type_hints

from haq.config import parse_bits
from haq.errors import ConfigError, HardwareError, did_you_mean
from haq.hwmodels.hardware import check_ties
from haq.io.safe_yaml import read_yaml
from haq.metrics import METRICS
from haq.policy import LayerBits

__all__ = ["Description", "Parameter", "build_hardware", "read_description"]

_KEYS = ("name", "kind", "summary", "pairs", "parameters")
_OPTIONAL = {"batch": 1, "limits": {}, "ties": []}
_MOST = 1e30  # in any unit: a product of several is still a finite float


@dataclass(frozen=True)
class Parameter:
    """A number of a hardware description, with its unit and its source."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Description:
    """The content of a hardware file.

    Attributes:
        name: Short and unique.
        kind: Name of the cost model that the parameters are for.
        summary: One line for people.
        batch: Samples at once, unless the user gives another number.
        pairs: Legal pairs of widths, ascending.
        ties: Which layers must have the same widths, some of `haq.hwmodels.hardware.TIES`.
        limits: Key of `haq.metrics.METRICS` → what the device holds.
        parameters: Field of the cost model → number.
    """

    name: str
    kind: str
    summary: str
    batch: int
    pairs: tuple[LayerBits, ...]
    ties: tuple[str, ...]
    limits: Mapping[str, Parameter]
    parameters: Mapping[str, Parameter]


def read_description(file: Traversable, kinds: Mapping[str, type[Any]]) -> Description:
    """Reads a hardware file.

    It holds `name`; `kind`, a key of `kinds`; `summary`; `pairs`, a list of legal widths such as `8/8` or `1-8/4,8`,
    weights before activations; and `parameters`, the fields of that dataclass that carry a `unit` in their metadata.
    It may hold `batch`, by default 1; `ties`, a list of `haq.hwmodels.hardware.TIES`; and `limits`, a mapping of keys
    of `haq.metrics.METRICS`. Each limit and parameter is a mapping of `value`, a positive number, `unit`, which must be
    the expected one, and `source`, which names where the number comes from.

    Args:
        file: The YAML file.
        kinds: Kind → cost model.

    Raises:
        HardwareError: The file cannot be read, a key is unknown or missing, or a value is wrong.
    """
    content = _mapping(file, "", read_yaml(file, f"hardware file {file}", HardwareError), _KEYS, _OPTIONAL)
    name = _text(file, "name", content["name"], "give the hardware a short name")
    kind = _text(file, "kind", content["kind"], f"use {' or '.join(kinds)}")
    if kind not in kinds:
        raise HardwareError(f"{file}: kind={kind!r}: unknown{did_you_mean(kind, kinds)}; known: {', '.join(kinds)}")
    summary = _text(file, "summary", content["summary"], "say in one line what the hardware is")
    batch = content["batch"]
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch < 2**31:
        raise HardwareError(f"{file}: batch={batch!r}: give the usual number of samples at once, at least 1")
    pairs = _pairs(file, content["pairs"])

    kept = {key: metric.kept_unit for key, metric in METRICS.items()}
    limits = _mapping(file, "limits", content["limits"], (), dict.fromkeys(kept))
    units = {field.name: field.metadata["unit"] for field in fields(kinds[kind]) if "unit" in field.metadata}
    types = get_type_hints(kinds[kind])
    parameters = _mapping(file, "parameters", content["parameters"], units)
    return Description(
        name, kind, summary, batch, pairs, check_ties(content["ties"], str(file)),
        {key: _number(file, f"limits.{key}", entry, float, kept[key]) for key, entry in limits.items()},
        {key: _number(file, f"parameters.{key}", parameters[key], types[key], units[key]) for key in units},
    )  # fmt: skip


def build_hardware(description: Description, kinds: Mapping[str, type[Any]]) -> Any:
    """Returns the cost model with the parameters of `description`."""
    limits = {key: limit.value for key, limit in description.limits.items()}
    parameters = {key: parameter.value for key, parameter in description.parameters.items()}
    return kinds[description.kind](name=description.name, pairs=description.pairs, limits=limits, **parameters)


def _pairs(file: Traversable, value: object) -> tuple[LayerBits, ...]:
    fix = "list legal widths, weights before activations, such as [8/8, 1-8/4,8]"
    if not isinstance(value, list) or not value:
        raise HardwareError(f"{file}: pairs={value!r}: {fix}")
    pairs = set()
    for text in value:
        w_bits, _, a_bits = str(text).partition("/")
        try:
            pairs |= {LayerBits(w, a) for w in parse_bits(w_bits) for a in parse_bits(a_bits)}
        except ConfigError:
            raise HardwareError(f"{file}: pairs: cannot read {text!r}; {fix}") from None
    return tuple(sorted(pairs, key=lambda pair: (pair.w_bits or 0, pair.a_bits or 0)))


def _mapping(
    file: Traversable, path: str, value: object, keys: Collection[str], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns `value`, a mapping of all `keys` and some `optional` ones; missing ones get their defaults."""
    where = path or "the file"
    defaults = optional or {}
    known = (*keys, *defaults)
    if not isinstance(value, dict):
        raise HardwareError(f"{file}: {where} must be a mapping of {', '.join(known)}, but got {value!r}")
    dotted = f"{path}." if path else ""
    if unknown := [key for key in value if key not in known]:
        meant = did_you_mean(str(unknown[0]), known)
        raise HardwareError(f"{file}: unknown key {f'{dotted}{unknown[0]}'!r}{meant}; known: {', '.join(known)}")
    if missing := [key for key in keys if key not in value]:
        raise HardwareError(f"{file}: missing key {f'{dotted}{missing[0]}'!r}; {where} must hold {', '.join(keys)}")
    return {**{key: default for key, default in defaults.items() if default is not None}, **value}


def _text(file: Traversable, path: str, value: object, fix: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise HardwareError(f"{file}: {path}={value!r}: {fix}")
    return value


def _number(file: Traversable, path: str, entry: object, number: type, unit: str) -> Parameter:
    content = _mapping(file, path, entry, ("value", "unit", "source"))
    value = content["value"]
    whole = number is int
    # bool is an int, and `yes` in YAML is a bool
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (right_type and 0 < value <= _MOST):  # an integer may be too large for `math.isfinite`
        raise HardwareError(f"{file}: {path}.value={value!r}: must be a positive {'whole ' if whole else ''}number")
    if content["unit"] != unit:
        raise HardwareError(f"{file}: {path}.unit={content['unit']!r}: must be {unit!r}; convert the value")
    source = _text(file, f"{path}.source", content["source"], "say where the number comes from, or 'chosen: ' and why")
    return Parameter(int(value) if whole else float(value), unit, source)
