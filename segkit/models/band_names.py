"""Names of bands: their spelling, and whether they tell which bands they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import digits


def canonical_name(name: str) -> str:
    """Return a band's name without differences in spelling: "b04" or "B4, red" -> "B4".

    Bands of a scene of several files are called FILE:BAND (see `Scene.from_files`); the file is left out if the band
    has a name of its own.
    """
    file, _, band = name.rpartition(":")
    text = file if file and band.isdecimal() else band
    return re.sub(r"\bB0+(?=\d)", "B", text.split(",")[0].strip().upper())


def are_named(bands: Sequence[str]) -> bool:
    """Return whether bands have names that distinguish them; a band without a name has its number."""
    names = {canonical_name(name) for name in bands}
    return len(names) == len(bands) and not any(name.isdecimal() for name in names)


def distinct_parts(bands: Sequence[str]) -> tuple[str, ...] | None:
    """Return what the names of bands have not in common, such as 2, 3, 8 of B02, B03, B08.

    What they have in common may come from a file, as in tile7_red and tile7_green.

    Returns
    -------
    None if the names do not tell which bands they are, whatever the files are called: they do not distinguish the
    bands, are those of files, or are numbers from 0 or 1 on.
    """
    if len(bands) < 2 or not are_named(bands) or any(_is_of_file(name) for name in bands):
        return None
    own = [canonical_name(name) for name in bands]
    start = _common_start(own).rstrip(digits)
    own = [name.removeprefix(start) for name in own]
    end = _common_start([name[::-1] for name in own])[::-1].lstrip(digits)
    own = [name.removesuffix(end).lstrip("0") or "0" for name in own]
    is_count = any(own == [str(number) for number in range(first, first + len(own))] for first in (0, 1))
    return None if is_count or len({*own}) < len(own) else tuple(own)


def _is_of_file(name: str) -> bool:
    """Return whether a band is called FILE:NUMBER, since it has no name."""
    file, _, band = name.rpartition(":")
    return bool(file) and band.isdecimal()


def _common_start(texts: Sequence[str]) -> str:
    """Return the longest text with which all texts start."""
    first, last = min(texts), max(texts)  # in between, texts have at least their common start
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (one, other) in pairs if one != other), len(first))]
