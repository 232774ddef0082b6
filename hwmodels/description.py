"""Reading a hardware description: a YAML file in which every number has a unit and a source."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib.resources.abc import Traversable
from typing import Any, get_type_hints

import yaml

from haq.errors import HardwareError, did_you_mean

__all__ = ["read_description"]


def read_description(file: Traversable, kinds: Mapping[str, type[Any]]) -> Any:
    """Builds the hardware that `file` describes.

    The file holds `name`, `kind` (a key of `kinds`) and `parameters`. These are the fields of that dataclass that carry
    a `unit` in their metadata, each a mapping of `value`, a positive number, `unit`, which must be the field's, and
    `source`, which says where the number comes from.

    Raises:
        HardwareError: The file cannot be read, a key is unknown or missing, or a value is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HardwareError(f"cannot read hardware file {file}: {' '.join(str(error).split())}") from None
    content = _mapping(file, "", content, ("name", "kind", "parameters"))
    name = _text(file, "name", content["name"], "give the hardware a short name")
    kind = _text(file, "kind", content["kind"], f"use {' or '.join(kinds)}")
    if kind not in kinds:
        raise HardwareError(f"{file}: kind={kind!r}: unknown{did_you_mean(kind, kinds)}; known: {', '.join(kinds)}")
    units = {field.name: field.metadata["unit"] for field in fields(kinds[kind]) if "unit" in field.metadata}
    types = get_type_hints(kinds[kind])
    parameters = _mapping(file, "parameters", content["parameters"], units)
    return kinds[kind](
        name=name, **{key: _number(file, f"parameters.{key}", parameters[key], types[key], units[key]) for key in units}
    )


def _mapping(file: Traversable, path: str, value: object, keys: Collection[str]) -> dict[str, Any]:
    """Returns `value` if it is a mapping of exactly `keys`."""
    where = path or "the file"
    if not isinstance(value, dict):
        raise HardwareError(f"{file}: {where} must be a mapping of {', '.join(keys)}, but got {value!r}")
    dotted = f"{path}." if path else ""
    if unknown := [key for key in value if key not in keys]:
        mend = did_you_mean(str(unknown[0]), keys)
        raise HardwareError(f"{file}: unknown key {f'{dotted}{unknown[0]}'!r}{mend}; known: {', '.join(keys)}")
    if missing := [key for key in keys if key not in value]:
        raise HardwareError(f"{file}: missing key {f'{dotted}{missing[0]}'!r}; {where} must hold {', '.join(keys)}")
    return value


def _text(file: Traversable, path: str, value: object, mend: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise HardwareError(f"{file}: {path}={value!r}: {mend}")
    return value


def _number(file: Traversable, path: str, entry: object, number: type, unit: str) -> float:
    content = _mapping(file, path, entry, ("value", "unit", "source"))
    value = content["value"]
    whole = number is int
    # bool is an int, and `yes` in YAML is a bool
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (right_type and math.isfinite(value) and value > 0):
        raise HardwareError(f"{file}: {path}.value={value!r}: must be a positive {'whole ' if whole else ''}number")
    if content["unit"] != unit:
        raise HardwareError(f"{file}: {path}.unit={content['unit']!r}: must be {unit!r}; convert the value")
    _text(file, f"{path}.source", content["source"], "say where the number comes from, or 'chosen: ' and why")
    return int(value) if whole else float(value)
