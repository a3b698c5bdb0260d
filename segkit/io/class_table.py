"""Legend: which classes a map holds, as its own metadata or a file of names says."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from rasterio.io import DatasetReader

from segkit.errors import DataError, UsageError
from segkit.io.files import existing
from segkit.io.raster import PathLike, described

# How the columns of a file of names may be called.
_COLUMNS = {
    **dict.fromkeys(("value", "code", "class_id", "id"), "value"),
    **dict.fromkeys(("name", "class", "label"), "name"),
    **dict.fromkeys(("color", "colour"), "color"),
    "background": "background",
}
# What 0 is called in a raster where it is no class.
_NOTHING = {"background", "none", "nothing", "no data", "nodata", "unclassified", "unlabeled", "unlabelled", "unknown"}
_YES_OR_NO = dict.fromkeys(("yes", "true", "1"), True) | dict.fromkeys(("no", "false", "0"), False)
# What columns of a raster attribute table are for (GDALRATFieldUsage).
_RAT_NAME, _RAT_VALUE, _RAT_RGB = "2", "5", ("6", "7", "8")

# What one source tells about values: {value: {"name": ..., "color": ..., "background": ...}}, keys only where it does.
_Facts = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class MapClass:
    """A class of a map: its name, its value, whether it is what remains beside all others, its colour (#rrggbb)."""

    name: str
    value: int
    background: bool = False
    color: str | None = None


@dataclass(frozen=True)
class Legend:
    """The classes of a map.

    Parameters
    ----------
    map_name
        For messages.
    classes
        Those that the map lists, in its order; none for a map that segkit did not make. Of a multilabel map, those of
        its bands.
    multilabel
        Whether classes overlap: one 0/1 band per class instead of one band of values.
    known
        Also what else is known about values, whether or not the map has them.
    """

    map_name: str
    classes: tuple[MapClass, ...]
    multilabel: bool
    known: Mapping[int, MapClass] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: DatasetReader, names: PathLike | None = None) -> Legend:
        """Read the legend of an open map.

        A class's name and colour come from the first that has them: the file of names, segkit's own list in the map,
        the raster's attribute table, its category names, its colour table.

        Parameters
        ----------
        names
            A CSV file (comma, semicolon or tab) whose first line names its columns: value, name and, where wanted,
            color (#rrggbb) and background (yes for what remains beside all classes).

        Raises
        ------
        MissingFileError
            The file of names is not there.
        DataError
            The raster is no map: not of whole numbers, of several bands without being multilabel, or its list of
            classes cannot be read. Or the file of names cannot.
        """
        for band, dtype in zip(dataset.indexes, dataset.dtypes, strict=True):
            if np.dtype(dtype).kind not in "iu":
                raise DataError(
                    f"{dataset.name}: band {band} is {dtype}; a map holds class codes, which are whole numbers: "
                    "name the map and not its probabilities, or convert it (gdal_translate -ot Byte)"
                )
        tags = dataset.tags()
        multilabel = tags.get("segkit_type") == "multilabel"
        listed = _listed(dataset.name, tags["segkit_classes"]) if "segkit_classes" in tags else {}
        if multilabel and len(listed) != dataset.count:
            raise DataError(
                f"{dataset.name}: is a multilabel map of {dataset.count} bands but lists {len(listed)} classes; "
                "such a map has one band per class: predict it again"
            )
        if dataset.count > 1 and not multilabel:
            raise DataError(
                f"{dataset.name}: has {dataset.count} bands; a map has one band of class codes, or is marked as "
                "multilabel by segkit: pick a band (gdal_translate -b 1)"
            )
        given = {} if names is None else _read_names(existing(names, "file of names"))
        facts: _Facts = {}
        for source in (given, listed, *([] if listed else _in_raster(dataset))):
            for value, told in source.items():
                facts[value] = told | facts.get(value, {})
        known = {
            value: MapClass(
                told.get("name", str(value)),
                value,
                told.get("background", value == 0 and value not in given and _is_nothing(told.get("name"))),
                told.get("color"),
            )
            for value, told in facts.items()
        }
        return cls(dataset.name, tuple(known[value] for value in listed), multilabel, known)

    def class_of(self, band: int, code: int) -> MapClass:
        """Return what a code means in a band.

        Without a name it is called by its number, and 0 is taken for background where nothing is listed.
        """
        if self.multilabel:
            return self.classes[band - 1]
        return self.known.get(code) or MapClass(str(code), code, background=code == 0 and not self.classes)

    def guesses(self, one: MapClass) -> bool:
        """Whether a class is taken for background though nothing in the map says so: a 0 without a name."""
        return one.background and one.name == "0" and not self.classes

    def choose(self, wanted: Sequence[str | int] | None = None, *, background: bool = False) -> Choice:
        """Return which classes are kept: those whose name or value is wanted, by default all but background.

        Raises
        ------
        UsageError
            The map cannot have such a class. Where its code may still turn up, `Choice.check` raises it.
        """
        return Choice(self, wanted, background=background)


class Choice:
    """Which classes of a map are kept, asked as its codes turn up; made by `Legend.choose`."""

    def __init__(self, legend: Legend, wanted: Sequence[str | int] | None, *, background: bool) -> None:
        self._legend = legend
        self._wanted = None if wanted is None else {str(one) for one in wanted}
        self._background = background
        # A code that was met and left out as background though nothing in the map says so.
        self.guessed: int | None = None
        self._met = dict.fromkeys(
            (*legend.classes, *(one for one in legend.known.values() if one.name != str(one.value)))
        )
        self._refuse({one for one in self._missing() if legend.multilabel or not re.fullmatch(r"-?\d+", one)})

    def of(self, band: int, code: int) -> MapClass | None:
        """Return the class of a code that was met in a band, None where it is not kept."""
        one = self._legend.class_of(band, code)
        self._met.setdefault(one)
        if one.background and self._background:
            return one
        kept = not one.background if self._wanted is None else self._wanted & _aliases(one)
        if self._wanted is None and self._legend.guesses(one):
            self.guessed = code
        return one if kept else None

    def check(self) -> None:
        """Raise a UsageError where a class was wanted that the map does not have, after all its codes were met."""
        self._refuse(self._missing())

    def _missing(self) -> set[str]:
        return (self._wanted or set()).difference(*map(_aliases, self._met))

    def _refuse(self, missing: set[str]) -> None:
        if missing:
            raise UsageError(
                f"{self._legend.map_name} has no class {', '.join(sorted(missing))}; it has "
                + ", ".join(
                    f"{one.name} ({one.value})" if one.name != str(one.value) else one.name for one in self._met
                )
            )


def _is_nothing(name: str | None) -> bool:
    return name is None or name.strip().lower() in _NOTHING


def _aliases(one: MapClass) -> set[str]:
    return {one.name, str(one.value)}


def _listed(map_name: str, text: str) -> _Facts:
    """Read segkit's list of classes in a map."""
    try:
        return {
            int(row["value"]): _told(str(row["name"]), row.get("color")) | {"background": bool(row.get("background"))}
            for row in json.loads(text)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{map_name}: its tag segkit_classes is no list of classes with name and value ({error!r}); "
            "remove the tag (gdal_edit.py -unsetmd) or predict the map again"
        ) from error


def _told(name: str | None, color: str | None) -> dict[str, Any]:
    """Keep what is there.

    Raises
    ------
    ValueError
        The colour is none.
    """
    if color and not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise ValueError(f"{color} is no colour such as #1b7837")
    return {key: value for key, value in (("name", name), ("color", color)) if value}


def _read_names(path: Path) -> _Facts:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no text in UTF-8 ({error}); save the names as CSV in UTF-8") from error
    header = lines[0] if lines else ""
    rows = csv.reader(lines[1:], delimiter=max(",;\t", key=header.count))
    columns = [_COLUMNS.get(word.strip(' "').lower()) for word in header.split(max(",;\t", key=header.count))]
    if not {"value", "name"} <= set(columns):
        raise DataError(f"{path}: its first line is {header[:80]!r}; it names the columns, such as value,name,color")
    found: _Facts = {}
    for row in rows:
        told = {key: word.strip() for key, word in zip(columns, row, strict=False) if key and word.strip()}
        if not told:
            continue
        try:
            value = int(told["value"])
            if value in found:
                raise ValueError(f"{value} is there twice")
            found[value] = _told(told["name"], told.get("color"))
            if "background" in told:
                found[value]["background"] = _YES_OR_NO[told["background"].lower()]
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, line {rows.line_num + 1}: {','.join(row)!r} is no class ({error})") from error
    return found


def _in_raster(dataset: DatasetReader) -> Iterator[_Facts]:
    """Yield what GDAL knows about the values of the first band, the best source first."""
    # rasterio shows neither category names nor attribute tables.
    band = described(dataset).find("VRTRasterBand")
    assert band is not None
    table = band.find("GDALRasterAttributeTable")
    if table is not None:
        try:
            yield _attributes(table)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{dataset.name}: its attribute table cannot be read ({error}); remove it (from the .aux.xml beside it)"
            ) from error
    names = [name.text for name in band.iterfind("CategoryNames/Category")]
    # Where a classification of ENVI was converted, its names are metadata.
    names = names or re.split(r"\s*,\s*", dataset.tags(ns="ENVI").get("class_names", "").strip("{} "))
    yield {value: _told(name, None) for value, name in enumerate(names) if name}
    colors = band.iterfind("ColorTable/Entry")
    yield {
        value: _told(None, _hex(*(entry.get(f"c{i}", "0") for i in (1, 2, 3)))) for value, entry in enumerate(colors)
    }


def _attributes(table: ElementTree.Element) -> _Facts:
    """Read a raster attribute table; where no column holds the value, a row's number is it."""
    columns = list(table.iterfind("FieldDefn"))
    place = {column.findtext("Usage"): at for at, column in enumerate(columns)}
    title = {column.findtext("Name", "").lower(): at for at, column in enumerate(columns)}
    text = [at for at, column in enumerate(columns) if column.findtext("Type") == "2"]
    of_value = place.get(_RAT_VALUE, title.get("value"))
    of_name = place.get(_RAT_NAME, text[0] if text else None)
    of_color = [place.get(usage) for usage in _RAT_RGB]
    found: _Facts = {}
    for number, row in enumerate(table.iterfind("Row")):
        cells = [cell.text or "" for cell in row.iterfind("F")]
        value = number if of_value is None else int(float(cells[of_value]))
        color = None if None in of_color else _hex(*(cells[at] for at in of_color if at is not None))
        found[value] = _told(None if of_name is None else cells[of_name].strip(), color)
    return found


def _hex(*rgb: str) -> str:
    return "#" + "".join(f"{int(float(one)) & 255:02x}" for one in rgb)
