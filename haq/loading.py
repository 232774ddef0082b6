"""Finding the code that a user names; it is run, with all rights of the user."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from haq.errors import HaqError, did_you_mean

__all__ = ["call_named", "is_reference"]

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    """Whether `text` has the form `file.py:function` or `package.module:function`."""
    return _REFERENCE.fullmatch(text) is not None


def call_named(text: str, what: str, error: type[HaqError]) -> Any:
    """Imports the module that `text` names and returns what its function returns.

    Args:
        text: `file.py:function` or `package.module:function`; the function takes no arguments.
        what: The kind of thing it makes, for messages.
        error: Raised, with one line, for anything that goes wrong.
    """
    match = _REFERENCE.fullmatch(text)
    assert match is not None, "callers ask is_reference first"
    function = _function(match["module"], match["function"], what, error)
    try:
        return function()
    except Exception as failure:  # the user's code may raise anything
        raise error(f"{what} function {text!r} raised {type(failure).__name__}: {_line(failure)}") from failure


def _function(source: str, name: str, what: str, error: type[HaqError]) -> Callable[[], Any]:
    if source.endswith(".py") and not Path(source).is_file():
        raise error(f"{what} file {source!r} does not exist; give an existing file.py:function")
    try:
        module = _file_module(Path(source)) if source.endswith(".py") else _named_module(source)
    except Exception as failure:  # likewise
        raise error(f"cannot import {what} {source!r}: {type(failure).__name__}: {_line(failure)}") from failure
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise error(f"{what} {source!r} has no function {name!r}{did_you_mean(name, known)}")
    found: Callable[[], Any] = function
    return found


def _file_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"haq_user_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    _travel_by_value(module)
    return module


def _named_module(name: str) -> ModuleType:
    if "" not in sys.path:  # an installed command does not look in the current directory by itself
        sys.path.insert(0, "")
    module = importlib.import_module(name)
    _travel_by_value(module)
    return module


def _travel_by_value(module: ModuleType) -> None:
    """Lets objects of the module's classes reach Ray's workers, which may not be able to import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]


def _line(failure: Exception) -> str:
    return " ".join(str(failure).split())[:300]
