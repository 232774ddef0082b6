"""Text tables as people keep them in spreadsheets.

Spreadsheets save text in forms of their own: every row padded to the widest, cells in quotes, blank rows after the
last, UTF-16 with tabs ("Unicode text"), and semicolons where the decimal mark is a comma. This module reads all of
them. It refuses a file that can be read in two ways, such as `1,234`: it does not guess.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from haq.errors import HardwareError

__all__ = ["Sheet", "decode", "is_number", "read_sheet"]

_DELIMITERS = (",", ";", "\t")
_BLANKS = ' ,;\t\r\n"'
_MARKS = {  # the longer ones first: UTF-32 starts as UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
"""Can be thousands or a fraction: 1,234."""
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([.,' \u00a0\u2009\u202f’]\d{3})+([.,]\d*)?", re.ASCII)

Cells = list[str]


@dataclass(frozen=True)
class Sheet:
    """The content of a file.

    Attributes:
        notes: Cells of the rows above the columns that start with #.
        names: Names of the R columns.
        rows: Number of each row in the file, and its R cells.
        delimiter: Character between cells.
    """

    notes: list[Cells]
    names: Cells
    rows: list[tuple[int, Cells]]
    delimiter: str

    def numbers(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Returns the numbers of these columns; an empty cell is NaN.

        Raises:
            HardwareError: A cell is not a number, or can be read as two.
        """
        indices = {name: self.names.index(name) for name in names}
        cells = [(name, row, row[1][index]) for row in self.rows for name, index in indices.items()]
        for name, (number, _), text in cells:
            if text and not is_number(text):
                reason = "is no number"
                if _THOUSANDS.fullmatch(text):
                    reason = "has marks between thousands; save the column without them"
                raise HardwareError(f"row {number}: {name}={text!r} {reason}")
        self._check_decimals(cells)
        return {
            name: [float(row[index].replace(",", ".") or "nan") for _, row in self.rows]
            for name, index in indices.items()
        }

    def _check_decimals(self, cells: Sequence[tuple[str, tuple[int, Cells], str]]) -> None:
        """Checks that there is one decimal mark, and that a number shows that it does not separate thousands."""
        marked = {
            mark: [(name, number, text) for name, (number, _), text in cells if mark in text] for mark in (",", ".")
        }
        if all(marked.values()):
            (comma, *_), (point, *_) = marked.values()
            raise HardwareError(
                f"has numbers with a comma ({comma[0]}={comma[2]!r} in row {comma[1]}) and with a point "
                f"({point[0]}={point[2]!r} in row {point[1]}); use one decimal mark, and none between thousands"
            )
        for mark, found in marked.items():
            # haq writes commas between cells and decimal points
            sure = mark == "." and self.delimiter == ","
            if found and not sure and all(_GROUPED.fullmatch(text) for _, _, text in found):
                name, number, text = found[0]
                digits = text.replace(mark, "")
                raise HardwareError(
                    f"row {number}: {name}={text!r} may be {text.replace(mark, '.')} or {digits}; save the file with "
                    "commas between cells and decimal points, without marks between thousands"
                )


def is_number(text: str) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return _NUMBER.fullmatch(text) is not None


def decode(content: bytes) -> str:
    """Returns the text of a file in UTF-8, or in the encoding that its first bytes name.

    Raises:
        ValueError: The file is in another encoding.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as failure:
        found = "UTF-8 text" if encoding == "utf-8-sig" else f"whole {encoding.upper()} text"
        raise ValueError(f"it is not {found} (byte {failure.start}); save it as UTF-8") from None


def read_sheet(text: str, known: Sequence[str]) -> Sheet:
    """Reads the cells of a table; leaves out blanks around them, blank rows and blank columns.

    Args:
        text: The content of the file.
        known: Columns that it may have. Their names are found in any case and with blanks for underscores. The
            character between cells is the one that separates these names.

    Raises:
        HardwareError: The text is not a table.
    """
    lines = StringIO(text, newline="").readlines()  # `splitlines` would split at characters that cells may hold
    first = next((line for line in lines if line.strip()), "")
    told = re.fullmatch(r'"?sep=(.)"?[,;\t]*', first.strip("\r\n"), re.IGNORECASE)
    if told:  # for spreadsheets, which do not show this line
        lines[lines.index(first)] = "\n"
    above = next((i for i, line in enumerate(lines) if line.strip(_BLANKS) and not _is_note(line)), len(lines))
    head = "".join(lines[above : above + 1])
    if "\0" in head:
        raise HardwareError("holds NUL characters, as UTF-16 does without a mark at its start; save it as UTF-8")
    delimiter = told[1] if told else _delimiter(head, known)
    notes = [cells for _, cells in _cells(lines[:above], 0, delimiter)]
    body = _cells(lines[above:], above, delimiter, skipinitialspace=True)
    _, columns = next(body, (0, []))
    names = [_name(column, known) for column in columns]
    rows = [(number, [cell.strip() for cell in cells]) for number, cells in body]
    return Sheet(notes, [name for name in names if name], [_whole(row, names) for row in rows], delimiter)


def _is_note(text: str) -> bool:
    return text.lstrip(' "').startswith("#")


def _name(cell: str, known: Sequence[str]) -> str:
    plain = "_".join(cell.split()).lower()
    return plain if plain in known else cell.strip()


def _delimiter(head: str, known: Sequence[str]) -> str:
    """Returns the character that splits the head into the most known columns."""
    found = {
        mark: sum(_name(cell.strip(' "\r\n'), known) in known for cell in head.split(mark)) for mark in _DELIMITERS
    }
    most = [mark for mark, count in found.items() if count and count == max(found.values())]
    return most[0] if most else ","


def _cells(
    lines: Sequence[str], above: int, delimiter: str, skipinitialspace: bool = False
) -> Iterator[tuple[int, Cells]]:
    """Yields the number in the file and the cells of each row that is not blank; `above` rows come before these."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skipinitialspace)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield above + reader.line_num, cells
    except csv.Error as error:
        raise HardwareError(f"cannot be read as CSV: row {above + reader.line_num}: {error}") from None


def _whole(row: tuple[int, Cells], names: Sequence[str]) -> tuple[int, Cells]:
    """Returns the row with a cell for each column that has a name."""
    number, cells = row
    surplus = any(cells[len(names) :]) or any(cell for cell, name in zip(cells, names, strict=False) if not name)
    if surplus or len(cells) < len(names):
        raise HardwareError(
            f"cannot be read as CSV: row {number} has {len(cells)} cells for {len(names)} columns; put a cell that "
            "holds the delimiter into quotes, and name every column"
        )
    return number, [cell for cell, name in zip(cells, names, strict=False) if name]
