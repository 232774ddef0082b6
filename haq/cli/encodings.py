"""Output for streams that lack some characters, as in the locale C, in Latin-1 or on an old Windows."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper

import click

__all__ = ["echo_exactly", "show_what_can_be_shown"]

_ERRORS = "haq.replace"
_ALIKE = {
    **dict.fromkeys("–−─—", "-"), **dict.fromkeys("│┤", "|"), **dict.fromkeys("┬└", "+"), **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("●◆■▲█▓", "#"), **dict.fromkeys("○◇□△▒░", "o"), **dict.fromkeys("µμ", "u"), "·": ".", "…": "...",
    "×": "x", "≤": "<=", "≥": ">=", "→": "->", "±": "+-", "²": "2", "∞": "inf", "λ": "lambda", "\u00a0": " ", "⠀": " ",
}  # fmt: skip
_BRAILLE = range(0x2801, 0x2900)  # charts are drawn with these


def show_what_can_be_shown() -> None:
    """Makes standard output and standard error replace characters that they lack, instead of raising an error."""
    codecs.register_error(_ERRORS, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def echo_exactly(text: str) -> None:
    """Prints text for a program, such as a path; if the stream's encoding lacks a character, writes UTF-8 instead."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        codecs.register_error(_ERRORS, _replacement)
        click.echo(text.encode("utf-8", _ERRORS))  # bytes of a file name that are not text stay as they are
    else:
        click.echo(text)


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replaces one character; a byte of a file name that is not text stays as it is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), after
    return _ALIKE.get(character, "." if ord(character) in _BRAILLE else "?"), after
