"""Match images with labels by their names, and images of one place by their dates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from segkit.errors import DataError
from segkit.io.file_search import folder_key
from segkit.io.name_pattern import NamePattern, normalize_name
from segkit.recipe.sources import Dates


class FileKey(NamedTuple):
    """What identifies a file: its name, or the part of it that a pattern names; and what a glob says of its folder."""

    name: str
    folder: str = ""


def file_key(file: Path, path: Path, pattern: NamePattern | None) -> FileKey:
    """Return the key of a file that was found by a path.

    Raises
    ------
    DataError
        The name of the file does not match the pattern.
    """
    if pattern is None:
        return FileKey(normalize_name(file.stem), normalize_name(folder_key(path, file)))
    parts = pattern.match(file)
    if parts is None:
        raise DataError(
            f"{file}: its name does not match the pattern {pattern.text!r}; correct the pattern, or the list"
        )
    return FileKey(parts.key, normalize_name(folder_key(path, file)))


def pair_keys(images: Sequence[FileKey], labels: Sequence[FileKey]) -> tuple[list[str], list[str]]:
    """Return keys for images and for labels that are unique on each side; a pair has the same key.

    These are the names if they are unique; otherwise the names with what the wildcards of the globs' folders stand for.

    Raises
    ------
    DataError
        Two files have the same key.
    """
    names = [[key.name for key in side] for side in (images, labels)]
    if any(len({*side}) < len(side) for side in names):
        names = [[f"{key.folder}/{key.name}" for key in side] for side in (images, labels)]
    for side in names:
        name, number = next(iter(Counter(side).most_common(1)), ("", 0))
        if number > 1:
            raise DataError(
                f"two files have the name {name.strip('/')!r}, but labels are paired by name; rename one, use globs "
                "that tell them apart by their folders (images/**/*.tif), or use a table"
            )
    return names[0], names[1]


def stack_dates(
    places: Mapping[FileKey, Sequence[tuple[datetime, Path]]], series: Dates
) -> dict[FileKey, tuple[Path, ...]]:
    """Return the files of each place in the order of their dates, with as many dates as `series` says.

    Parameters
    ----------
    places
        (date, file) of each place, sorted. A date may have several files, such as one per band: each date as many.

    Raises
    ------
    DataError
        A place has too many dates, or too few and `series.missing` is "error"; or dates have different numbers of
        files.
    """
    dates = {place: sorted({date for date, _ in files}) for place, files in places.items()}
    number = series.number or max(map(len, dates.values()))
    for wrong, what in (
        ([place for place in dates if len(dates[place]) > number], "more"),
        ([place for place in dates if len(dates[place]) < number and series.missing == "error"], "fewer"),
    ):
        if wrong:
            some = ", ".join(f"{place.name} ({_list_dates(dates[place])})" for place in wrong[:3])
            advice = (
                "make the pattern or images narrower, or raise dates.number"
                if what == "more"
                else "add images, or set dates.missing: skip (leave such places out) or repeat (their last date again)"
            )
            raise DataError(f"{len(wrong)} of {len(dates)} places have {what} than {number} dates: {some}; {advice}")
    stacks = {}
    for place, files in places.items():
        if len(dates[place]) < number and series.missing == "skip":
            continue
        wanted = dates[place] + dates[place][-1:] * (number - len(dates[place]))
        of_date = [tuple(file for date, file in files if date == each) for each in wanted]
        if len({len(each) for each in of_date}) > 1:
            found = ", ".join(f"{date:%Y-%m-%d}: {len(each)}" for date, each in zip(wanted, of_date, strict=True))
            raise DataError(
                f"{files[0][1]}: dates of {place.name} have different numbers of files ({found}); complete them, or "
                "make the pattern narrower"
            )
        stacks[place] = tuple(file for each in of_date for file in each)
    if not stacks:
        raise DataError(f"no place has {number} dates; lower dates.number, or set dates.missing: repeat")
    return stacks


def _list_dates(dates: Sequence[datetime]) -> str:
    return ", ".join(f"{date:%Y-%m-%d}" for date in dates[:6]) + (", ..." if len(dates) > 6 else "")
