"""Running the code that a user names, with all rights of the user."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from haq.errors import HaqError, did_you_mean

__all__ = ["call_named", "guarded", "is_reference", "load_named"]

Result = TypeVar("Result")

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    """Whether `text` has the form `file.py:function` or `package.module:function`."""
    return _REFERENCE.fullmatch(text) is not None and not text.startswith("object:")  # what was given as an object


def guarded(what: str, error: type[HaqError], call: Callable[[], Result]) -> Result:
    """Calls code of a user's; what it raises becomes one line.

    Args:
        what: The code, for the message.
        error: Raised for anything but a `HaqError`.
        call: The call.
    """
    try:
        return call()
    except HaqError:
        raise
    except (Exception, SystemExit) as failure:  # the user's code may raise anything
        raise error(f"{what} raised {type(failure).__name__}: {_line(failure)}") from failure


def call_named(text: str, what: str, error: type[HaqError]) -> Any:
    """Imports the module that `text` names, calls its function and returns the result.

    Args:
        text: `file.py:function` or `package.module:function`; the function takes no arguments.
        what: Kind of the result for messages, `model` or `data`.
        error: Raised, with a message of one line, for anything that goes wrong.
    """
    with _importable(_folder(text)):
        function = _attribute(text, what, error, function=True)
        return guarded(f"{what} function {text!r}", error, function)


def load_named(text: str, what: str, error: type[HaqError]) -> Any:
    """Runs the module that `text` names and returns what has that name in it; takes what `call_named` does."""
    with _importable(_folder(text)):
        return _attribute(text, what, error, function=False)


def _folder(text: str) -> Path:
    """Returns where the module of a reference may import from."""
    source = _parts(text)[0]
    return Path(source).resolve().parent if source.endswith(".py") else Path.cwd().resolve()


def _parts(text: str) -> tuple[str, str]:
    match = _REFERENCE.fullmatch(text)
    assert match is not None, "callers ask is_reference first"
    return match["module"], match["function"]


def _attribute(text: str, what: str, error: type[HaqError], *, function: bool) -> Any:
    source, name = _parts(text)
    if source.endswith(".py") and not Path(source).is_file():
        raise error(f"{what} file {source!r} does not exist; give an existing file.py:function")
    try:
        module = _file_module(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as failure:  # the user's code may raise anything
        if isinstance(failure, ModuleNotFoundError) and failure.name == source:
            raise error(
                f"{what} {text!r}: {source!r} is neither a known prefix nor a module that can be imported; "
                f"haq search --help says what --{what} takes"
            ) from None
        raise error(f"cannot import {what} {source!r}: {type(failure).__name__}: {_line(failure)}") from failure
    found = getattr(module, name, None)
    if found is None or (function and not callable(found)):
        known = [key for key, value in vars(module).items() if callable(value) or not function]
        raise error(f"{what} {source!r} has no {'function ' if function else ''}{name!r}{did_you_mean(name, known)}")
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


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the block import from the user's folder, as `python file.py` would, and sends its imports to Ray's workers.

    Workers may not be able to import from the folder, so objects of those modules' classes are pickled by value.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if _found_in(folder, name, getattr(sys.modules[name], "__file__", None)):
            _travel_by_value(sys.modules[name])


def _found_in(folder: Path, name: str, file: str | None) -> bool:
    """Whether the module was imported from `folder` itself, not from a Python or environment inside it."""
    top = name.split(".")[0]
    if file is None or top == "haq":  # our own checkout: workers have it, and `isinstance` needs the same classes
        return False
    path = Path(file).resolve()
    return path == folder / f"{top}.py" or path.is_relative_to(folder / top)


def _travel_by_value(module: ModuleType) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]


def _line(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:300]
