"""Tables in CSV files: with commas, semicolons or tabs, in UTF-8."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segkit.errors import DataError
from segkit.io.files import require_file

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class CsvRow:
    """A row of a table.

    Parameters
    ----------
    place
        File and line, for messages.
    cells
        {column: text}, without spaces around it; "" for cells that are missing.
    decimal_comma
        Whether 12,5 is a number.
    """

    place: str
    cells: Mapping[str, str]
    decimal_comma: bool = False

    def number(self, column: str, rule: str = "it must be a number") -> float:
        """Return a cell as a finite number.

        Raises
        ------
        DataError
            It is not one; `rule` says what is expected.
        """
        text = self.cells[column]
        plain = text.replace(",", ".") if self.decimal_comma and "." not in text else text
        try:
            value = float(plain)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{self.place}: {column} is {text!r}; {rule}")
        return value


@dataclass(frozen=True)
class CsvTable:
    """A table with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[CsvRow, ...]


def read_csv(path: Path, what: str) -> CsvTable:
    """Read a CSV file; the character that separates most columns in its first line separates them everywhere.

    Parameters
    ----------
    what
        What the file is, for messages.

    Raises
    ------
    MissingFileError
        It does not exist.
    DataError
        It is not UTF-8 or no table, two columns have the same name, or a row has more cells than there are columns.
    """
    text = decode_utf8(require_file(path, what).read_bytes(), path)
    try:
        return _parse(text, path)
    except csv.Error as error:
        raise DataError(
            f"{path}: cannot be read as a table ({error}); a quotation mark without its counterpart makes one cell of "
            "all lines after it: remove it"
        ) from error


def _parse(text: str, path: Path) -> CsvTable:
    # Lines end as in files: str.splitlines would also cut cells at form feeds and other separators.
    header = io.StringIO(text, newline=None).readline()
    delimiter = max(_DELIMITERS, key=lambda each: len(next(csv.reader([header], delimiter=each), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = tuple(cell.strip() for cell in next(reader, []))
    named = [column for column in columns if column]
    if twice := next((column for column in named if named.count(column) > 1), None):
        raise DataError(f"{path}: two columns have the name {twice!r}; rename one")
    rows = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            place = f"{path}: line {reader.line_num}"
            padded = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
            if any(padded[len(columns) :]):
                raise DataError(
                    f"{place}: has {len(cells)} cells, but the header names {len(columns)} columns; put a cell that "
                    f"holds {delimiter!r} into quotation marks, and write numbers with a decimal point"
                )
            # Where semicolons separate cells, spreadsheets write the comma as the decimal sign.
            rows.append(CsvRow(place, dict(zip(columns, padded, strict=False)), delimiter == ";"))
    return CsvTable(path, columns, tuple(rows))


def decode_utf8(content: bytes, path: object) -> str:
    """Decode the content of a text file; a byte order mark is left out.

    Raises
    ------
    DataError
        It is not UTF-8; the message names the first line that is not, and shows it.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(describe_wrong_encoding(content, path, error)) from error


def describe_wrong_encoding(content: bytes, path: object, error: UnicodeDecodeError) -> str:
    """Return the message about a text file that is not UTF-8, with its first line that is not."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{path}: is encoded as UTF-16; save it as UTF-8"
    number = content.count(b"\n", 0, error.start) + 1
    line = content.splitlines()[number - 1].decode("cp1252", errors="replace").strip()
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return (
        f"{path}: line {number} is not UTF-8 (byte 0x{content[error.start]:02x}; in Windows-1252 it reads {shown!r}); "
        "save the file as UTF-8"
    )
