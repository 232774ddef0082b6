"""Bit policies: how many bits each layer's weights and input activations get."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from haq.errors import ConfigError
from haq.io.safe_yaml import read_yaml

__all__ = ["WIDTHS", "BitPolicy", "LayerBits", "Width", "check_width", "checked_bits", "parse_bits"]

Width = int | None
"""A number of bits, or `None` for floating point."""

WIDTHS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 16)
"""The integer widths a layer may have."""


def check_width(width: object, what: str) -> Width:
    """Returns `width` if it is one of `WIDTHS` or `None`; otherwise raises `ConfigError` naming `what`."""
    if width is None or (isinstance(width, int) and not isinstance(width, bool) and width in WIDTHS):
        return width
    raise ConfigError(f"{what}={width!r}: a width is 1 to 8, 16, or null for floating point")


def parse_bits(text: str, shown: str | None = None) -> tuple[int, ...]:
    """Reads candidate widths.

    Args:
        text: Comma-separated widths and ranges.
        shown: What holds them, for messages; by default `--bits`.

    Raises:
        ConfigError: A width is not one of 1 to 8 or 16.

    Examples:
        >>> parse_bits("2,3,4,6,8")
        (2, 3, 4, 6, 8)
        >>> parse_bits("2-5,8")
        (2, 3, 4, 5, 8)
    """
    widths: set[int] = set()
    option = shown or f"--bits {text}"
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})\s*(?:-\s*(\d{1,3})\s*)?", part)
        if match is None:
            raise ConfigError(f"{option}: cannot read {part!r}; write widths like 2,3,4,6,8 or 2-8")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise ConfigError(f"{option}: the range {part.strip()} is empty; write the smaller width first")
        widths.update(range(low, high + 1))
    return checked_bits(widths, shown)


def checked_bits(widths: set[int], shown: str | None = None) -> tuple[int, ...]:
    """Returns widths, ascending.

    Args:
        widths: To be searched.
        shown: What holds them, for messages; by default `--bits`.

    Raises:
        ConfigError: One of them is not 1 to 8 or 16.
    """
    if wrong := sorted(widths - set(WIDTHS)):
        raise ConfigError(f"{shown or '--bits'}: {wrong[0]} is not a width that can be searched; use 1 to 8, or 16")
    return tuple(sorted(widths))


@dataclass(frozen=True)
class LayerBits:
    """Widths of one layer: of its weights, and of the activations that it reads (HAQ, arXiv:1811.08886, section 3).

    Raises:
        ConfigError: A width is not 1 to 8, 16 or `None`.
    """

    w_bits: Width
    a_bits: Width

    def __post_init__(self) -> None:
        check_width(self.w_bits, "w_bits")
        check_width(self.a_bits, "a_bits")


_SIDES = {"w_bits", "a_bits"}


@lru_cache(typed=True)
def _shared(w_bits: Width, a_bits: Width) -> LayerBits:
    """Returns one object per pair, because even a large archive has few; `typed`, because `True` equals 1."""
    return LayerBits(w_bits, a_bits)


@dataclass(frozen=True, eq=False)
class BitPolicy(Mapping[str, LayerBits]):
    """An immutable, ordered mapping from layer name to `LayerBits`, with the scheme that implements the widths.

    Two policies are equal if their schemes, their widths, and the names and order of their layers are equal. Equal
    policies have equal hashes.

    Examples:
        >>> policy = BitPolicy({"conv1": LayerBits(8, 8), "fc": LayerBits(4, 6)})
        >>> policy["fc"].w_bits
        4
        >>> BitPolicy.from_dict(policy.to_dict()) == policy
        True
    """

    layers: Mapping[str, LayerBits]
    scheme: str = "linear"

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping) or not self.layers:
            raise ConfigError("a policy needs at least one layer: give a mapping of layer names to LayerBits")
        layers = dict(self.layers)
        for name, bits in layers.items():
            if not isinstance(name, str) or not isinstance(bits, LayerBits):
                raise ConfigError(f"policy layer {name!r}={bits!r}: must be a name and LayerBits(w_bits, a_bits)")
        if not isinstance(self.scheme, str):
            raise ConfigError(f"scheme={self.scheme!r}: must be text, such as 'linear'")
        object.__setattr__(self, "layers", layers)

    @cached_property
    def _items(self) -> tuple[tuple[str, LayerBits], ...]:
        return tuple(self.layers.items())

    def __getitem__(self, name: str) -> LayerBits:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitPolicy):
            return NotImplemented
        return self._items == other._items and self.scheme == other.scheme

    def __hash__(self) -> int:
        return hash((self._items, self.scheme))

    @classmethod
    def uniform(cls, names: list[str], bits: Width, pinned: Mapping[str, LayerBits] | None = None) -> BitPolicy:
        """Returns the policy with one width for weights and activations of all layers that are not pinned.

        Args:
            names: Names of the layers, in order.
            bits: The width.
            pinned: Widths of the pinned layers, by name.
        """
        return cls({name: (pinned or {}).get(name, LayerBits(bits, bits)) for name in names})

    def with_scheme(self, scheme: str) -> BitPolicy:
        """Returns the same widths with another scheme."""
        return BitPolicy(self.layers, scheme)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON and YAML types: `{"scheme": ..., "layers": {name: {"w_bits": ..., "a_bits": ...}}}`."""
        return {"scheme": self.scheme, "layers": self.widths()}

    def widths(self) -> dict[str, dict[str, Width]]:
        """Returns only the widths: `{name: {"w_bits": ..., "a_bits": ...}}`."""
        return {name: {"w_bits": bits.w_bits, "a_bits": bits.a_bits} for name, bits in self._items}

    @classmethod
    def load(cls, path: Path) -> BitPolicy:
        """Reads a JSON or YAML file: one from `haq export`, a bare mapping of widths, or a run's `best.json`.

        Raises:
            ConfigError: There is no such file, or it holds no policy.
        """
        if not path.exists():
            raise ConfigError(f"policy file {str(path)!r} does not exist; haq export writes one")
        content = read_yaml(path, f"policy {str(path)!r}", ConfigError)  # JSON is YAML too
        if isinstance(content, Mapping) and {"policy", "constraints", "baselines"} <= set(content):
            content = content["policy"]  # in a run's best.json
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: object) -> BitPolicy:
        """Restores a policy from the result of `to_dict`, or from a bare mapping of widths.

        Raises:
            ConfigError: The structure, a key or a width is wrong.
        """
        if not isinstance(data, Mapping) or not data:
            raise ConfigError("a policy is a mapping of layer names to {w_bits, a_bits}; haq export writes one")
        if isinstance(version := data.get("version"), int) and version != 1:
            raise ConfigError(f"policy.version={version}: this haq reads version 1; export the policy with this haq")
        scheme = data.get("scheme")
        # A bare mapping has no scheme, but the network may have a layer of that name
        layers = data.get("layers") if isinstance(scheme, str) else data
        if not isinstance(layers, Mapping):
            raise ConfigError(f"policy.layers must be a mapping, but got {type(layers).__name__}")
        parsed = {}
        for name, bits in layers.items():
            if not isinstance(name, str):
                raise ConfigError(f"policy layer {name!r} is {type(name).__name__}; write names of layers in quotes")
            if not isinstance(bits, dict | Mapping) or bits.keys() != _SIDES:
                raise ConfigError(f"policy layer {name!r} must hold exactly w_bits and a_bits, but got {bits!r}")
            try:
                parsed[name] = _shared(bits["w_bits"], bits["a_bits"])
            except TypeError:  # a value that cannot be hashed is not a width
                parsed[name] = LayerBits(bits["w_bits"], bits["a_bits"])
        return cls(parsed, scheme=scheme if isinstance(scheme, str) else "linear")
