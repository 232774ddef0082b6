"""How commands output their result: prose for people, only the result with `--quiet`, a document with `--json`.

A command prints prose on `console`, reports progress to a `TerminalObserver`, and returns a `Result`; the decorator
`output_options` does the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from math import isfinite
from os import PathLike, fspath
from typing import Any

import click
from rich.console import RenderableType

from haq.cli.encodings import echo_exactly
from haq.cli.terminal import console, notes

__all__ = ["Result", "output_options", "plain"]

_QUIET, _JSON = "haq.quiet", "haq.json"  # keys of the context's `meta`


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        data: Returns the document of `--json`, to which `plain` is applied; called only for `--json`.
        brief: What `--quiet` prints: lines, such as the path of a written file, or tables.
        exit_code: Exit code of the process, for a command that gives a verdict; mistakes are exceptions.
    """

    data: Callable[[], Mapping[str, Any]]
    brief: tuple[str | RenderableType, ...] = ()
    exit_code: int = 0


def output_options(command: Callable[..., Result]) -> Callable[..., None]:
    """Adds --quiet and --json to a command that returns a `Result`; apply it below the command's own options.

    With either option, `console` is silent, and everything else that is printed to standard output goes to standard
    error. Mistakes are exceptions and look the same with and without these options.
    """

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        meta = click.get_current_context().meta
        quiet, as_json = meta.get(_QUIET, False), meta.get(_JSON, False)
        with _hushed(quiet, as_json):
            result = command(*arguments, **options)
        if as_json:
            click.echo(json.dumps(plain(result.data()), indent=1, allow_nan=False))
        elif quiet:
            for part in result.brief:
                if isinstance(part, str):
                    echo_exactly(part)
                else:
                    console.print(part)
        if result.exit_code:
            click.get_current_context().exit(result.exit_code)

    return _option("--quiet", "-q", key=_QUIET, help="Print only the result: no progress, no prose.")(
        _option("--json", key=_JSON, help="Print the result as one JSON document; progress goes to standard error.")(
            run
        )
    )


def _option(*names: str, key: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[key] = value

    return click.option(*names, is_flag=True, expose_value=False, callback=keep, help=help)


@contextmanager
def _hushed(quiet: bool, as_json: bool) -> Iterator[None]:
    if not (quiet or as_json):
        yield
        return
    before = console.quiet, notes.quiet
    console.quiet, notes.quiet = True, quiet
    try:
        with redirect_stdout(sys.stderr):  # the user's own network may print too
            yield
    finally:
        console.quiet, notes.quiet = before


def plain(value: Any) -> Any:
    """Returns a value as plain JSON types; numbers that are not finite become null, because JSON has no `NaN`.

    Examples:
        >>> plain({"size_bytes": 12, "loss": float("nan"), "bits": (2, 4)})
        {'size_bytes': 12, 'loss': None, 'bits': [2, 4]}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(map(plain, value), key=str)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, Iterable) else str(value)
