"""What the names of files say: images and labels in one folder, dates, bands in separate files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from segkit.io.name_pattern import normalize_name

_LABEL_WORDS = (
    *("mask", "masks", "label", "labels", "lbl", "gt", "groundtruth", "truth", "annotation", "annotations", "ann"),
    *("seg", "segmentation", "target", "class", "classes", "lulc", "landcover", "y"),
)
# Forms of a date in a name, and how a pattern of `dates` writes them.
_DATES = (
    (re.compile(r"(?<!\d)((?:19|20)\d\d)(\d\d)(\d\d)(?!\d)"), "{date:%Y%m%d}"),
    (re.compile(r"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)(?!\d)"), "{date:%Y-%m-%d}"),
    (re.compile(r"(?<!\d)((?:19|20)\d\d)_(\d\d)_(\d\d)(?!\d)"), "{date:%Y_%m_%d}"),
)
_BAND = re.compile(
    r"(?<![a-z0-9])(?:sr_|st_)?(?:b(?:and)?[_-]?(\d{1,2}a?)|coastal|blue|green|red|rededge\d*|nir\d*|swir\d*|pan|vv|vh|hh|hv)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)


class NamedPairs(NamedTuple):
    """Images and labels that lie in one folder: the patterns of their names ("{}_sat", "{}_mask")."""

    images: str
    labels: str


class DatedName(NamedTuple):
    """The date in a name, the pattern that finds it, and the rest of the name."""

    day: date
    pattern: str
    place: str


def find_named_pairs(files: Sequence[Path]) -> NamedPairs | None:
    """Return how the names of images and labels in one folder differ; None if no name speaks of labels.

    Names are compared by their first or last word: 7_sat and 7_mask, image_7 and label_7, 7 and 7_mask.
    """
    stems = {normalize_name(file.stem) for file in files}
    for split in (_split_last, _split_first):
        keys: dict[str, set[str]] = defaultdict(set)
        for stem in stems:
            word, key = split(stem)
            keys[word].add(key)
        labels = max(
            (word for word in keys if _bare(word) in _LABEL_WORDS), key=lambda word: len(keys[word]), default=None
        )
        if labels is None:
            continue
        others = {word: len(found & keys[labels]) for word, found in keys.items() if word != labels}
        others[""] = len(stems & keys[labels])
        images = max(others, key=others.__getitem__)
        if others[images]:
            return NamedPairs(_pattern(images, split), _pattern(labels, split))
    return None


def _split_last(stem: str) -> tuple[str, str]:
    """Return the last word of a name with its separator, and the rest."""
    found = re.search(r"[_\-. ][^_\-. ]+$", stem)
    return (found[0], stem[: found.start()]) if found else (stem, "")


def _split_first(stem: str) -> tuple[str, str]:
    """Return the first word of a name with its separator, and the rest."""
    found = re.match(r"[^_\-. ]+[_\-. ]", stem)
    return (found[0], stem[found.end() :]) if found else (stem, "")


def _bare(word: str) -> str:
    return word.strip("_-. ").lower()


def _pattern(word: str, split: Callable[[str], tuple[str, str]]) -> str:
    return f"{{}}{word}" if split is _split_last else f"{word}{{}}"


def find_date(stem: str) -> DatedName | None:
    """Return the date in a name: 20150711, 2015-07-11 or 2015_07_11; None without one."""
    stem = normalize_name(stem)
    for regex, pattern in _DATES:
        for found in regex.finditer(stem):
            try:
                day = date(*map(int, found.groups()))
            except ValueError:
                continue
            rest = stem[: found.start()] + stem[found.end() :]
            return DatedName(day, pattern, rest.strip(" ._-") or "scene")
    return None


def band_stacks(files: Sequence[Path]) -> list[list[Path]]:
    """Return the files of each scene that has several files with a band in their names; B2 comes before B10."""
    stacks: dict[str, list[tuple[tuple[int, str], Path]]] = defaultdict(list)
    for file in files:
        if found := [*_BAND.finditer(file.stem)]:
            band = found[-1]
            number = re.match(r"\d+", band[1] or "")
            key = file.stem[: band.start()] + file.stem[band.end() :]
            stacks[key].append(((int(number[0]) if number else 99, band[0].lower()), file))
    return [[file for _, file in sorted(stack)] for stack in stacks.values() if len(stack) > 1]
