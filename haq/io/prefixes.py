"""Where models and data come from: prefixes such as `hf:`, and the optional packages behind them."""

from __future__ import annotations

import importlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from haq.errors import HaqError
from haq.io.files import writable

__all__ = [
    "MODEL_SOURCES",
    "hugging_face",
    "need",
    "one_line",
    "refuse_object",
    "short_name",
    "source_of",
    "split_path",
    "verbosity_restored",
]

MODEL_SOURCES = ("hf", "timm", "torchvision")
"""Prefixes of models from other packages."""

_HUB = "huggingface.co"
_OFFLINE = "HF_HUB_OFFLINE"


def source_of(spec: str) -> tuple[str, str]:
    """Splits `hf:NAME` into the prefix and the rest; the prefix is empty if there is none, as in `file.py:function`.

    Examples:
        >>> source_of("hf:microsoft/resnet-50")
        ('hf', 'microsoft/resnet-50')
        >>> source_of("my_net.py:build")
        ('', 'my_net.py:build')
    """
    prefix, colon, name = spec.partition(":")
    known = colon and prefix in (*MODEL_SOURCES, "imagefolder", "npz", "object", "text")
    return (prefix, os.path.expanduser(name)) if known else ("", spec)


def refuse_object(option: str, text: str, error: type[HaqError]) -> None:
    """Refuses `object:NAME`, which stands for an object that only a script can give again.

    Args:
        option: The option, such as `model`.
        text: What a run or a user names.
        error: Raised for an object.
    """
    source, name = source_of(text)
    if source == "object":
        raise error(
            f"{option} {name!r} was given as an object; give it again with named=Named({option}=...), or name it with "
            f"--{option}"
        )


def split_path(text: str) -> tuple[str, str, str]:
    """Splits `npz:FOLDER`, `file.py:function` and the like into the text before the path, the path, and the rest."""
    prefix, path = source_of(text)
    if prefix in ("imagefolder", "npz", "text") or (prefix == "hf" and (os.path.isdir(path) or os.path.isabs(path))):
        return prefix + ":", path, ""
    if prefix:
        return text, "", ""
    if text.lower().endswith((".yaml", ".yml", ".parquet", ".csv")):
        return "", text, ""
    if match := re.fullmatch(r"(.+\.py)(:\w+)", text):
        return "", match[1], match[2]
    return text, "", ""


def short_name(spec: str) -> str:
    """Returns a short name of a model, for the names of files.

    Examples:
        >>> short_name("hf:microsoft/resnet-50"), short_name("nets/my_net.py:build"), short_name("resnet20")
        ('resnet-50', 'my_net', 'resnet20')
    """
    prefix, name = source_of(spec)
    return Path(name).name if prefix else Path(name.partition(":")[0]).stem


def need(package: str, extra: str, asked: str, error: type[HaqError]) -> Any:
    """Imports an optional package.

    Args:
        package: Name of the package.
        extra: Name of haq's extra that installs it.
        asked: What needs it, for the message.
        error: Raised if it is missing or does not load.
    """
    try:
        return importlib.import_module(package)
    except Exception as failure:  # a package built for another PyTorch raises errors other than ImportError
        missing = isinstance(failure, ModuleNotFoundError) and failure.name == package
        state = "is not installed" if missing else f"does not load ({one_line(failure)})"
        raise error(f"{asked} needs {package}, which {state}; pip install 'haq[{extra}]'") from None


@contextmanager
def hugging_face(package: str, asked: str, name: str, error: type[HaqError], fix: str) -> Iterator[Any]:
    """Yields `transformers` or `datasets`, and turns their exceptions inside the block into one line.

    Args:
        package: Name of the package.
        asked: What needs it, for messages, such as `model 'hf:resnet'`.
        name: A folder, or a name on the hub.
        error: Raised for anything that goes wrong.
        fix: The fix to suggest if the package and the network are not the problem.
    """
    online = os.path.isdir(name) or _reachable()
    with nullcontext() if online else _cache_only():
        library = need(package, "hf", asked, error)
        _silence(package, library)
        try:
            yield library
        except HaqError:
            raise
        except Exception as failure:  # they pass on the exceptions of their dependencies
            reason = one_line(failure)
            if "trust_remote_code" in str(failure):
                reason, fix = "it contains code, which haq does not run", "load it in a file.py:function"
            elif isinstance(failure, OSError) and not writable(cache := _hub_cache()):
                reason, fix = f"its cache, {str(cache)!r}, cannot be written", "set HF_HOME to a writable folder"
            elif not online:
                reason = f"{name!r} is neither a folder nor in the cache, and {_HUB} cannot be reached"
                fix = "give a folder, or go online once to fill the cache"
            raise error(f"cannot load {asked}: {reason}; {fix}") from None


_silenced: dict[str, tuple[Any, int, bool]] = {}
"""Package → the package, its verbosity, and whether it drew progress bars, before haq silenced it."""


def _silence(package: str, library: Any) -> None:
    """Keeps a package from printing bars and warnings, which would run into ours."""
    logs = library.utils.logging
    if package == "transformers":
        bars, hide = logs.is_progress_bar_enabled(), logs.disable_progress_bar
    else:
        bars, hide = not library.are_progress_bars_disabled(), library.disable_progress_bars
    _silenced.setdefault(package, (library, logs.get_verbosity(), bars))
    logs.set_verbosity_error()
    hide()


@contextmanager
def verbosity_restored() -> Iterator[None]:
    """Lets the packages that `hugging_face` gave print as before when the block ends."""
    try:
        yield
    finally:
        while _silenced:
            package, (library, verbosity, bars) = _silenced.popitem()
            logs = library.utils.logging
            logs.set_verbosity(verbosity)
            if bars:
                (logs.enable_progress_bar if package == "transformers" else library.enable_progress_bars)()


def one_line(failure: BaseException) -> str:
    """Returns the message of a failure in at most 200 characters, without the full stop."""
    return " ".join(str(failure).split())[:200].rstrip(". ") or type(failure).__name__


def _hub_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def _reachable() -> bool:
    """Whether the hub may be asked: its name resolves, or there is a proxy, behind which this cannot be checked."""
    from urllib.request import getproxies

    if _forbidden():
        return False
    try:
        return bool(getproxies() or socket.getaddrinfo(_HUB, 443))
    except OSError:
        return False


def _forbidden() -> bool:
    return os.environ.get(_OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _cache_only() -> Iterator[None]:
    """Makes libraries ask only the cache; otherwise they would look for each file online for half a minute."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    _set_offline(True)
    try:
        yield
    finally:
        os.environ.pop(_OFFLINE)
        if before is not None:
            os.environ[_OFFLINE] = before
        _set_offline(_forbidden())


def _set_offline(offline: bool) -> None:
    """Sets the flag in modules that are already imported, because they read the variable only on import."""
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], _OFFLINE, offline)
