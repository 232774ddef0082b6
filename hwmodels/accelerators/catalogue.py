"""Hardware by name: the descriptions that ship with the package, and the user's own."""

from __future__ import annotations

import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from haq.errors import HardwareError, did_you_mean
from haq.hwmodels.accelerators.description import Description, build_hardware, read_description
from haq.hwmodels.hardware import Hardware
from haq.registry import ACCELERATORS

__all__ = ["describe_hardware", "get_hardware", "list_hardware"]


def list_hardware() -> list[str]:
    """Returns the names of the hardware that ships with the package, sorted."""
    return sorted(_shipped())


def get_hardware(name_or_path: str | Path) -> Hardware:
    """Returns hardware that is described in YAML.

    Args:
        name_or_path: A name that `list_hardware` gives, or the path of a `.yaml` file.

    Raises:
        HardwareError: There is no such name or file, or the description is wrong.

    Examples:
        >>> get_hardware("edge").clock_mhz
        200.0
    """
    hardware: Hardware = build_hardware(describe_hardware(name_or_path), ACCELERATORS)
    return hardware


def describe_hardware(name_or_path: str | Path) -> Description:
    """Returns what the description says, with the sources of its numbers; takes and raises what `get_hardware` does."""
    name = str(name_or_path)
    if Path(name).suffix in (".yaml", ".yml"):
        path = Path(os.path.expanduser(name))
        if not path.exists():
            raise HardwareError(f"hardware file {name!r} does not exist; give a path, or one of {_known()}")
        file: Traversable = path
    elif name in (shipped := _shipped()):
        file = shipped[name]
    else:
        raise HardwareError(
            f"unknown hardware {name!r}{did_you_mean(name, shipped)}; known: {_known()}, or the path of a .yaml file"
        )
    return read_description(file, ACCELERATORS)


def _shipped() -> dict[str, Traversable]:
    folder = files("haq.configs") / "hardware"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _known() -> str:
    return ", ".join(list_hardware())
