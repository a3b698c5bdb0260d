"""Names of bands, and which names mean the same band: "B04" of Sentinel-2, "SR_B4" of Landsat 8, "red"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import digits

from rasterio.io import DatasetReader

from segkit.io.stac import read_stac_names

# Common names of STAC's eo extension (https://github.com/stac-extensions/eo, "Common Band Names"), with central
# wavelengths in nm (of Sentinel-2 where it has the band: ESA, "Sentinel-2 Spectral Response Functions").
WAVELENGTHS = {
    "coastal": 443, "blue": 490, "green": 560, "yellow": 600, "red": 665, "rededge": 720, "rededge071": 705,
    "rededge075": 740, "rededge078": 783, "nir": 842, "nir08": 865, "nir09": 945, "cirrus": 1375, "swir16": 1610,
    "swir22": 2190, "pan": 590, "lwir11": 10_900, "lwir12": 12_000,
}  # fmt: skip
OTHER_SPELLINGS = {
    "coastalaerosol": "coastal", "rededge1": "rededge071", "rededge2": "rededge075", "rededge3": "rededge078",
    "nearinfrared": "nir", "narrownir": "nir08", "nirnarrow": "nir08", "watervapour": "nir09", "watervapor": "nir09",
    "swir1": "swir16", "swir2": "swir22", "panchromatic": "pan",
}  # fmt: skip
# STAC common names of the bands of sensors. Sentinel-2: the catalogue of Element 84 (sentinel-2-l2a). Landsat 8 and 9,
# and 4 to 7: the catalogue of the USGS (landsat-c2l2-sr, landsat-c2l1).
SENTINEL_2 = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "rededge071", "B6": "rededge075",
    "B7": "rededge078", "B8": "nir", "B8A": "nir08", "B9": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
LANDSAT_8_9 = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "nir08", "B6": "swir16", "B7": "swir22",
    "B8": "pan", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12",
}  # fmt: skip
LANDSAT_4_7 = {"B1": "blue", "B2": "green", "B3": "red", "B4": "nir08", "B5": "swir16", "B7": "swir22"}
# What tells the sensor of a band: the start of its file's name, or a name that only this sensor has. "sur_refl_b01" is
# a band of MODIS, whose numbers mean other bands.
_EVIDENCE: tuple[tuple[str, Mapping[str, str]], ...] = (
    (r"S2[ABCD]_|T\d\d[A-Z]{3}_\d{8}T|B0\d\b|B0\d_|B8A\b|B8A_|B12\b|B\d.*central wavelength", SENTINEL_2),
    (r"L[COT]0?[89]_|LC8\d{13}|SR_B6\b|ST_B10\b", LANDSAT_8_9),
    (r"L[TE]0?[4-7]_|L[TE][4-7]\d{13}|ST_B6\b", LANDSAT_4_7),
)
_DESIGNATION = re.compile(r"(?:.*_)?B0?(\d{1,2}A?)(?![0-9A-Z])", re.IGNORECASE)
_NAME_TAGS = ("common_name", "eo:common_name", "bandname", "band_name", "name", "description")


def normalize_name(name: str) -> str:
    """Return a band's name without differences in spelling: "b04" -> "B4"."""
    return re.sub(r"\bB0+(?=\d)", "B", _own_name(name).split(",")[0].strip().upper())


def common_names(names: Sequence[str]) -> tuple[str | None, ...]:
    """Return the common names of the bands of a scene; None where a name does not tell it.

    "B5" is a red edge in Sentinel-2 and near-infrared in Landsat 8, so such names count only if one of the bands tells
    the sensor ("B8A", "B05", "SR_B6", a file called LC08_...), and none another one.
    """
    sensors = [
        table
        for pattern, table in _EVIDENCE
        if any(re.match(rf"(?:.*[_:])?(?<!refl_)(?:{pattern})", name, re.IGNORECASE) for name in names)
    ]
    sensor = sensors[0] if len(sensors) == 1 else {}
    return tuple(_common_name(name, sensor) for name in names)


def match_bands(wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...] | None:
    """Return where the bands of one scene are among those of another one, by name.

    Bands are the same if their common names are; if one of the two is not known, if their names are equal apart from
    spelling. Of several, that with exactly the same name is taken.

    Returns
    -------
    The index of each wanted band in `names`; None if one of them is not there, is there several times, or has only a
    number as its name.
    """
    if any(name.isdigit() for name in wanted):
        return None
    theirs, ours = common_names(wanted), common_names(names)
    found: list[int] = []
    for name, common in zip(wanted, theirs, strict=True):
        same = [at for at, each in enumerate(names) if are_same(name, common, each, ours[at])]
        same = [at for at in same if names[at] == name] or same
        if len(same) != 1:
            return None
        found += same
    return tuple(found) if len({*found}) == len(found) else None


def find_band(wanted: str, names: Sequence[str]) -> list[int]:
    """Return the indices of the bands that a user means by a name; as `match_bands`, but "nir" may also be "nir08"."""
    ours, (common,) = common_names(names), common_names([wanted])
    same = [at for at, each in enumerate(names) if are_same(wanted, common, each, ours[at])]
    same = [at for at in same if names[at] == wanted] or same
    return same or [at for at, each in enumerate(ours) if common == "nir" and each == "nir08"]


def read_names(path: Path, dataset: DatasetReader) -> list[str]:
    """Return the names by which the bands of an open raster are looked for.

    That is the description of a band, else its name in a STAC item beside the file, else a name in its metadata, else
    its colour interpretation, else its number.
    """
    names = []
    stac = read_stac_names(path, dataset.count)
    for index, description, colour in zip(dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True):
        tags = {key.casefold(): value for key, value in dataset.tags(index).items()}
        tagged = next((tags[key] for key in _NAME_TAGS if tags.get(key)), None)
        is_colour = colour.name in WAVELENGTHS
        names.append(description or stac[index - 1] or tagged or (colour.name if is_colour else str(index)))
    return names


def are_same(name: str, common: str | None, other: str, other_common: str | None) -> bool:
    """Return whether two names, whose common names are given, mean the same band; see `match_bands`."""
    if common is not None and other_common is not None:
        return common == other_common
    return name == other or normalize_name(name) == normalize_name(other)


def _common_name(name: str, sensor: Mapping[str, str]) -> str | None:
    own = _own_name(name)
    text = re.sub(r"[^a-z0-9]", "", own.casefold())
    if text in WAVELENGTHS or text in OTHER_SPELLINGS:
        return OTHER_SPELLINGS.get(text, text)
    match = _DESIGNATION.match(own)
    return None if match is None else sensor.get(f"B{match[1].upper()}")


def _own_name(name: str) -> str:
    """Return the name of a band in a scene of several files, where it is called FILE:BAND; FILE if BAND is a number."""
    file, _, band = name.rpartition(":")
    return file if file and band.isdecimal() else band


def are_named(bands: Sequence[str]) -> bool:
    """Return whether bands have names that distinguish them; a band without a name has its number."""
    names = {normalize_name(name) for name in bands}
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
    own = [normalize_name(name) for name in bands]
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
