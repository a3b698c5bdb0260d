"""Patterns of file names: the part that identifies a place, and the date."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath

_TOKENS = re.compile(r"(\{\})|\{date:([^{}]+)\}|(\*)|(\?)|([^{}*?]+)|(.)")
# Widths of the parts of a date, as in Python's strftime.
_DATE_PARTS = {
    **dict.fromkeys("mdyHMS", "[0-9]{2}"), "Y": "[0-9]{4}", "j": "[0-9]{3}", "b": "[A-Za-z]{3}",
}  # fmt: skip
_SEPARATORS = " ._-"


@dataclass(frozen=True)
class NameParts:
    """What a name that matches a pattern says: the place, and the date if the pattern has one."""

    key: str
    date: datetime | None = None


@dataclass(frozen=True)
class NamePattern:
    """A pattern of file names without their extension.

    Parameters
    ----------
    text
        ``{}`` stands for the place, ``{date:%Y%m%d}`` for a date in the codes of Python's strftime, ``*`` for any
        characters, ``?`` for one. Without ``{}``, the place is what the pattern leaves of the name. A pattern with
        slashes is about as many of the last folders, too.

    Raises
    ------
    ValueError
        There are other braces, two places or dates, or an unknown code of a date.
    """

    text: str

    def __post_init__(self) -> None:
        self._regex()  # raises

    @property
    def has_date(self) -> bool:
        """Whether the pattern has a date."""
        return self._regex()[1] is not None

    @property
    def has_place(self) -> bool:
        """Whether the pattern says which part of the name identifies the place."""
        return "{}" in self.text

    def match(self, path: PurePath) -> NameParts | None:
        """Return the parts of a file's name; None if it does not match, or its digits are no date."""
        parts = [*path.parts[:-1], path.stem][-1 - self.text.count("/") :]
        name = normalize_name("/".join(parts))
        regex, date_format = self._regex()
        for found in [regex.fullmatch(name)] if self.has_place else regex.finditer(name):
            if found is None:
                continue
            date = None
            if date_format is not None:
                try:
                    date = datetime.strptime(found["date"], date_format)  # noqa: DTZ007 - only compared with others
                except ValueError:
                    continue
            key = found["place"] if self.has_place else name[: found.start()] + name[found.end() :]
            return NameParts(key.strip(_SEPARATORS) or "scene", date)
        return None

    def _regex(self) -> tuple[re.Pattern[str], str | None]:
        return _compile(self.text)


@functools.lru_cache(maxsize=64)
def _compile(text: str) -> tuple[re.Pattern[str], str | None]:
    """Return a regular expression with the groups `place` and `date`, and the format of the date."""
    parts: list[str] = []
    date_format = None
    for place, date, star, question, literal, other in _TOKENS.findall(normalize_name(text)):
        if other:
            raise ValueError(f"{text!r} has a brace that is neither {{}} nor {{date:%Y%m%d}}; correct it")
        if (place and any("P<place>" in part for part in parts)) or (date and date_format):
            raise ValueError(f"{text!r} has two places {{}} or two dates; keep one, and write * for the other")
        if date:
            date_format = date
            # Not inside of a longer number, unless the pattern goes on.
            parts.append(f"(?P<date>{_date_regex(date, text)})")
        else:
            parts.append("(?P<place>.+?)" if place else ".*?" if star else "." if question else re.escape(literal))
    regex = "".join(parts)
    if "(?P<place>" not in regex and date_format:
        regex = f"(?<![0-9]){regex}(?![0-9])"
    return re.compile(regex), date_format


def _date_regex(date_format: str, text: str) -> str:
    def width(code: re.Match[str]) -> str:
        if code[1] not in _DATE_PARTS:
            raise ValueError(f"{text!r}: %{code[1]} is not a part of a date; use %{', %'.join(sorted(_DATE_PARTS))}")
        return _DATE_PARTS[code[1]]

    return "".join(
        re.sub("%(.)", width, part) if part.startswith("%") else re.escape(part)
        for part in re.split("(%.)", date_format)
    )


def normalize_name(name: str) -> str:
    """Return a name in the form in which names that look alike are equal (Unicode NFC)."""
    return unicodedata.normalize("NFC", name)


def suggest_patterns(images: Sequence[Path], labels: Sequence[Path]) -> tuple[str, str] | None:
    """Return patterns with which images and labels pair, if their names have a common start or end each."""
    names = [[normalize_name(path.stem) for path in paths] for paths in (images, labels)]
    if min(map(len, names)) < 2:
        return None
    ends = [(_common_start(each), _common_end(each)) for each in names]
    if ends[0] == ends[1]:
        return None
    keys = [
        {name[len(start) : len(name) - len(end)] for name in each}
        for each, (start, end) in zip(names, ends, strict=True)
    ]
    if not {*keys[0]} & {*keys[1]} - {""}:
        return None
    first, second = (f"{start}{{}}{end}" for start, end in ends)
    return first, second


def _common_start(names: Sequence[str]) -> str:
    """Return the common start of names up to its last separator."""
    common = _common_prefix(names)
    return common[: max((common.rfind(each) for each in _SEPARATORS), default=-1) + 1]


def _common_end(names: Sequence[str]) -> str:
    """Return the common end of names from its first separator."""
    common = _common_prefix([name[::-1] for name in names])[::-1]
    starts = [common.find(each) for each in _SEPARATORS if each in common]
    return common[min(starts) :] if starts else ""


def _common_prefix(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:length]
