"""The result of a sensitivity measurement, and its file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.errors import ConfigError
from haq.io.files import write_text

__all__ = ["MEASURES", "Sensitivity", "cached", "load_sensitivity", "save_sensitivity"]

logger = logging.getLogger(__name__)

MEASURES = ("fisher", "kl", "loss", "sqnr", "hessian")
"""Names of the measures; `haq.search.sensitivity.measure` defines them."""

Array = NDArray[np.float64]
Rows = list[list[float | None]]

_VERSION = 1  # of the file's layout and of what its numbers mean


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One measure for every layer and width.

    Attributes:
        measure: One of `MEASURES`.
        layers: Names.
        widths: Ascending.
        weights: `(layers, widths)`; the layer's weights are quantized alone.
        activations: The same for the layer's input; `None` where the scheme leaves activations in floating point.
    """

    measure: str
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    weights: Array
    activations: Array | None

    @property
    def weight_costs(self) -> Array:
        """`weights` as costs, which are high for sensitive layers: SQNR becomes noise over signal."""
        return self._costs(self.weights)

    @property
    def activation_costs(self) -> Array | None:
        """The same for `activations`."""
        return None if self.activations is None else self._costs(self.activations)

    def _costs(self, values: Array) -> Array:
        return np.power(10.0, -values / 10) if self.measure == "sqnr" else values

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types. An infinite SQNR, of a change that no output shows, becomes null."""
        return {
            "measure": self.measure,
            "layers": list(self.layers),
            "widths": list(self.widths),
            "weights": _rows(self.weights),
            "activations": None if self.activations is None else _rows(self.activations),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Restores what `to_dict` gave.

        Raises:
            ConfigError: It is something else.
        """
        try:
            layers, widths = tuple(map(str, data["layers"])), tuple(map(int, data["widths"]))
            shape = len(layers), len(widths)
            activations = None if data["activations"] is None else _array(data["activations"], shape)
            return cls(str(data["measure"]), layers, widths, _array(data["weights"], shape), activations)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a sensitivity: {error!r}; measure again with `haq sensitivity`") from None


def _rows(values: Array) -> Rows:
    return [[float(value) if math.isfinite(value) else None for value in row] for row in values]


def _array(rows: Rows, shape: tuple[int, int]) -> Array:
    return np.array([[math.inf if value is None else value for value in row] for row in rows], float).reshape(shape)


def save_sensitivity(path: Path, measured: Mapping[str, Sensitivity], key: Mapping[str, Any]) -> None:
    """Writes measures, and a key of what they were measured for.

    Args:
        path: JSON file to write.
        measured: Measure → values.
        key: Plain JSON types; see `fingerprint`.
    """
    measures = {name: values.to_dict() for name, values in measured.items()}
    write_text(path, json.dumps({"version": _VERSION, "key": dict(key), "measures": measures}) + "\n")


def load_sensitivity(path: Path, key: Mapping[str, Any] | None = None) -> dict[str, Sensitivity]:
    """Reads what `save_sensitivity` wrote.

    Args:
        path: File to read.
        key: The key that the file must have; by default any.

    Raises:
        ConfigError: The file is missing, damaged, or was written for another key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, found, measures = content["version"], content["key"], dict(content["measures"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"cannot read {str(path)!r} as a sensitivity: {error!r}; measure again") from None
    if version != _VERSION or (key is not None and found != json.loads(json.dumps(dict(key)))):
        raise ConfigError(f"{str(path)!r} is of another network, other data or options; measure again")
    return {name: Sensitivity.from_dict(values) for name, values in measures.items()}


def cached(
    path: Path, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Sensitivity]]
) -> dict[str, Sensitivity]:
    """Returns the measures in `path` if they have this key; otherwise measures and writes them there.

    Args:
        path: Such as `RUN/sensitivity.json`.
        key: Everything that the result depends on, as plain JSON types; see `fingerprint`.
        compute: Measures; called without arguments.
    """
    try:
        return load_sensitivity(path, key)
    except ConfigError as error:
        logger.debug("measuring: %s", error)
    measured = dict(compute())
    save_sensitivity(path, measured, key)
    return measured
