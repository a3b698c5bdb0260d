"""The class table of a map: names, values and colours of its classes, in its metadata or in a CSV file."""

from __future__ import annotations

import colorsys
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from rasterio.io import DatasetReader

from segkit.errors import DataError, UsageError
from segkit.io.files import require_file
from segkit.io.memory_raster import ArrayDataset
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.paths import PathLike
from segkit.io.raster import vrt_description
from segkit.runtime.version import VERSION

OUTPUT_TAG = "segkit_output"  # what a raster that was written beside a map holds, "confidence" and so on
# Accepted column names of a CSV file of class names.
_COLUMNS = {
    **dict.fromkeys(("value", "code", "class_id", "id"), "value"),
    **dict.fromkeys(("name", "class", "label"), "name"),
    **dict.fromkeys(("color", "colour"), "color"),
    "background": "background",
}
# Names under which value 0 of a raster is background.
_BACKGROUND_NAMES = {
    *("background", "none", "nothing", "no data", "nodata"),
    *("unclassified", "unlabeled", "unlabelled", "unknown"),
}
_YES_OR_NO = dict.fromkeys(("yes", "true", "1"), True) | dict.fromkeys(("no", "false", "0"), False)
# Usage of the columns of a raster attribute table (GDALRATFieldUsage).
_RAT_NAME, _RAT_VALUE, _RAT_RGB = "2", "5", ("6", "7", "8")

_GOLDEN = (5**0.5 - 1) / 2

# What one source has about values: {value: {"name": ..., "color": ..., "background": ...}}; missing keys are unknown.
_Facts = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class MapClass:
    """A class of a map: name, value, whether it is background (all pixels of no other class), colour ("#rrggbb")."""

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
        The classes that the map lists, in its order; empty for maps that segkit did not write. For a multilabel map,
        the class of each band.
    multilabel
        Whether classes overlap: one 0/1 band per class instead of one band of values.
    value_table
        All values with a known name or colour, whether or not they occur in the map.
    """

    map_name: str
    classes: tuple[MapClass, ...]
    multilabel: bool
    value_table: Mapping[int, MapClass] = field(default_factory=dict)

    @classmethod
    def from_dataset(cls, dataset: DatasetReader, class_names: PathLike | None = None) -> Legend:
        """Read the legend of an open map.

        A class's name and colour come from the first of these sources that has them: the CSV file, segkit's own list in
        the map, the raster's attribute table, its category names, its colour table.

        Parameters
        ----------
        class_names
            A CSV file (comma, semicolon or tab). Its first line names the columns: value, name and, optionally, color
            (#rrggbb) and background (yes for the class of all pixels of no other class).

        Raises
        ------
        MissingFileError
            The CSV file does not exist.
        DataError
            The raster is not a map: another output of a prediction, not integer, several bands without being
            multilabel, or an unreadable list of classes. Or the CSV file is unreadable, or the files of a mosaic list
            different classes.
        """
        if isinstance(dataset, MosaicDataset):
            return cls._of_mosaic(dataset, class_names)
        _refuse_other_outputs(dataset)
        for band, dtype in zip(dataset.indexes, dataset.dtypes, strict=True):
            if np.dtype(dtype).kind not in "iu":
                raise DataError(
                    f"{dataset.name}: band {band} is {dtype}; a map holds class values, which are integers: "
                    "give the map, not its probabilities, or convert it (gdal_translate -ot Byte)"
                )
        tags = dataset.tags()
        multilabel = tags.get("segkit_type") == "multilabel"
        listed = _facts_from_tag(dataset.name, tags["segkit_classes"]) if "segkit_classes" in tags else {}
        if multilabel and len(listed) != dataset.count:
            raise DataError(
                f"{dataset.name}: a multilabel map has one band per class (bands: {dataset.count}, listed classes: "
                f"{len(listed)}); predict it again"
            )
        if dataset.count > 1 and not multilabel:
            raise DataError(
                f"{dataset.name}: has {dataset.count} bands; a map has one band of class values, or is a multilabel "
                "map of segkit: select a band (gdal_translate -b 1)"
            )
        given = {} if class_names is None else _read_class_file(require_file(class_names, "file of class names"))
        facts: _Facts = {}
        for source in (given, listed, *([] if listed else _facts_from_raster(dataset))):
            for value, new in source.items():
                facts[value] = new | facts.get(value, {})
        value_table = {
            value: MapClass(
                known.get("name", str(value)),
                value,
                known.get("background", value == 0 and value not in given and _is_background_name(known.get("name"))),
                known.get("color"),
            )
            for value, known in facts.items()
        }
        return cls(dataset.name, tuple(value_table[value] for value in listed), multilabel, value_table)

    @classmethod
    def _of_mosaic(cls, dataset: MosaicDataset, class_names: PathLike | None) -> Legend:
        """Read the legend of maps that lie side by side."""
        dataset.require_stored_values()
        first: Legend | None = None
        for path, part in dataset.parts():
            legend = cls.from_dataset(part, class_names)
            first = first or legend
            if legend.value_table != first.value_table:
                raise DataError(
                    f"{first.map_name} and {path} list different classes; maps of one mosaic have the same classes"
                )
        assert first is not None
        return replace(first, map_name=dataset.name)

    def class_of(self, band: int, code: int) -> MapClass:
        """Return the class of a value in a band.

        A value without a name is called by its number. If the map lists no classes, an unnamed 0 is background.
        """
        if self.multilabel:
            return self.classes[band - 1]
        return self.value_table.get(code) or MapClass(str(code), code, background=code == 0 and not self.classes)

    def assumes_background(self, one: MapClass) -> bool:
        """Return whether a class is background only by assumption: an unnamed 0 in a map that lists no classes."""
        return one.background and one.name == "0" and not self.classes

    def select(self, classes: Sequence[str | int] | None = None, *, background: bool = False) -> ClassSelection:
        """Select classes by name or value; by default all but background.

        Raises
        ------
        UsageError
            The map cannot have such a class. For a value that may still occur, `ClassSelection.check` raises it.
        """
        return ClassSelection(self, classes, background=background)


class ClassSelection:
    """A selection of a map's classes, applied while its values are found; made by `Legend.select`.

    Attributes
    ----------
    assumed_background
        A value that was left out as background by assumption (see `Legend.assumes_background`), or None.
    """

    def __init__(self, legend: Legend, classes: Sequence[str | int] | None, *, background: bool) -> None:
        self._legend = legend
        self._selected = None if classes is None else {str(one) for one in classes}
        self._background = background
        self.assumed_background: int | None = None
        named = (one for one in legend.value_table.values() if one.name != str(one.value))
        self._found = dict.fromkeys((*legend.classes, *named))
        self._raise_if_any(
            {alias for alias in self._missing() if legend.multilabel or not re.fullmatch(r"-?\d+", alias)}
        )

    def select(self, band: int, code: int) -> MapClass | None:
        """Return the class of a value that occurs in a band; None if it is not selected."""
        one = self._legend.class_of(band, code)
        self._found.setdefault(one)
        if one.background and self._background:
            return one
        if self._selected is not None:
            return one if self._selected & _aliases(one) else None
        if self._legend.assumes_background(one):
            self.assumed_background = code
        return None if one.background else one

    def check(self) -> None:
        """Raise a UsageError if a selected class is not in the map; call it after all values were found."""
        self._raise_if_any(self._missing())

    def _missing(self) -> set[str]:
        return (self._selected or set()).difference(*map(_aliases, self._found))

    def _raise_if_any(self, missing: set[str]) -> None:
        if missing:
            raise UsageError(
                f"{self._legend.map_name} has no class {', '.join(sorted(missing))}; it has {list_classes(self._found)}"
            )


def list_classes(classes: Iterable[MapClass]) -> str:
    """Return the names of classes, and their values where they are other texts, for messages."""
    texts = (one.name if one.name == str(one.value) else f"{one.name} ({one.value})" for one in classes)
    return ", ".join(texts) or "no classes"


def map_tags(map_type: str, classes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the metadata that every map of segkit has.

    Parameters
    ----------
    map_type
        A task type: "binary", "multiclass" or "multilabel".
    classes
        Rows of the class table with name, value, color ("#rrggbb") and background, as in `Task.legend`.

    Returns
    -------
    dict
        Type, class table, version of segkit, and date (ISO 8601, UTC), as dataset tags.
    """
    return {
        "segkit_type": map_type,
        "segkit_classes": json.dumps(list(classes)),
        "segkit_version": VERSION,
        "segkit_date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def classes_from_tags(map_name: str, tags: Mapping[str, str]) -> tuple[MapClass, ...]:
    """Return the classes that the metadata of a map list (see `map_tags`), in their order; none without a list.

    Raises
    ------
    DataError
        The list is unreadable.
    """
    listed = _facts_from_tag(map_name, tags["segkit_classes"]) if "segkit_classes" in tags else {}
    return tuple(
        MapClass(known.get("name", str(value)), value, known["background"], known.get("color"))
        for value, known in listed.items()
    )


def _refuse_other_outputs(dataset: DatasetReader) -> None:
    """Raise a DataError if a raster was written beside a map: probabilities, confidence and so on.

    They have the map's tags, and their bytes could be class values. Those of earlier versions do not have the tag with
    their name; but their bands have a scale, unlike those of a map.
    """
    tags = dataset.tags()
    what = tags.get(OUTPUT_TAG)
    scales = [scale for scale in dataset.scales if scale != 1]
    if what is None and "segkit_type" in tags and scales:
        what = f"probabilities, confidence or uncertainty (scale {scales[0]:.4g})"
    if what is not None:
        raise DataError(f"{dataset.name}: holds the {what} of a map, not its classes; give the map itself")


def parse_color(color: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour "#rrggbb".

    Raises
    ------
    ValueError
        The text is not a colour in this form.
    """
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise ValueError(f"{color} is not a colour such as #1b7837")
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def format_color(red: int, green: int, blue: int) -> str:
    """Return "#rrggbb" for red, green and blue, 0 to 255."""
    return f"#{red:02x}{green:02x}{blue:02x}"


def class_rgb(one: MapClass) -> tuple[int, int, int]:
    """Return red, green and blue of a class, 0 to 255; one without a colour gets one that depends on its value."""
    if one.color is not None:
        return parse_color(one.color)
    # Steps of the golden ratio around the colour wheel give distinct colours for any number of values.
    red, green, blue = colorsys.hsv_to_rgb(one.value * _GOLDEN % 1, 0.55, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _is_background_name(name: str | None) -> bool:
    return name is None or name.strip().lower() in _BACKGROUND_NAMES


def _aliases(one: MapClass) -> set[str]:
    return {one.name, str(one.value)}


def _facts_from_tag(map_name: str, text: str) -> _Facts:
    """Read segkit's list of classes in a map."""
    try:
        return {
            int(row["value"]): {**_facts(str(row["name"]), row.get("color")), "background": bool(row.get("background"))}
            for row in json.loads(text)
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{map_name}: its tag segkit_classes is not a list of classes with name and value ({error!r}); "
            "remove the tag (gdal_edit.py -unsetmd) or predict the map again"
        ) from error


def _facts(name: str | None, color: str | None) -> dict[str, Any]:
    """Return the given values that are not empty.

    Raises
    ------
    ValueError
        The colour is invalid.
    """
    if color:
        parse_color(color)
    return {key: value for key, value in (("name", name), ("color", color)) if value}


def _read_class_file(path: Path) -> _Facts:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a text file in UTF-8 ({error}); save it as CSV in UTF-8") from error
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    columns = [_COLUMNS.get(title.strip(' "').lower()) for title in header.split(delimiter)]
    if not {"value", "name"} <= set(columns):
        raise DataError(
            f"{path}: its first line is {header[:80]!r}; the first line must name the columns, such as value,name,color"
        )
    found: _Facts = {}
    rows = csv.reader(lines[1:], delimiter=delimiter)
    for row in rows:
        cells = {key: cell.strip() for key, cell in zip(columns, row, strict=False) if key and cell.strip()}
        if not cells:
            continue
        try:
            value = int(cells["value"])
            if value in found:
                raise ValueError(f"value {value} occurs twice")
            found[value] = _facts(cells["name"], cells.get("color"))
            if "background" in cells:
                found[value]["background"] = _YES_OR_NO[cells["background"].lower()]
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, line {rows.line_num + 1}: {','.join(row)!r} is not a class ({error})") from error
    return found


def _facts_from_raster(dataset: DatasetReader) -> Iterator[_Facts]:
    """Yield what GDAL knows about the values of the first band, the best source first."""
    if isinstance(dataset, ArrayDataset):
        return
    # rasterio gives access to neither category names nor attribute tables.
    band = vrt_description(dataset).find("VRTRasterBand")
    assert band is not None
    table = band.find("GDALRasterAttributeTable")
    if table is not None:
        try:
            yield _facts_from_attribute_table(table)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{dataset.name}: its attribute table cannot be read ({error}); remove it (from the .aux.xml beside it)"
            ) from error
    names = [name.text for name in band.iterfind("CategoryNames/Category")]
    # A converted ENVI classification has its names in the metadata.
    names = names or re.split(r"\s*,\s*", dataset.tags(ns="ENVI").get("class_names", "").strip("{} "))
    yield {value: _facts(name, None) for value, name in enumerate(names) if name}
    colors = band.iterfind("ColorTable/Entry")
    yield {
        value: _facts(None, _hex_color(*(entry.get(f"c{i}", "0") for i in (1, 2, 3))))
        for value, entry in enumerate(colors)
    }


def _facts_from_attribute_table(table: ElementTree.Element) -> _Facts:
    """Read a raster attribute table; without a column of values, the row number is the value."""
    columns = list(table.iterfind("FieldDefn"))
    by_usage = {column.findtext("Usage"): index for index, column in enumerate(columns)}
    by_title = {column.findtext("Name", "").lower(): index for index, column in enumerate(columns)}
    text_columns = [index for index, column in enumerate(columns) if column.findtext("Type") == "2"]
    value_column = by_usage.get(_RAT_VALUE, by_title.get("value"))
    name_column = by_usage.get(_RAT_NAME, text_columns[0] if text_columns else None)
    color_columns = [by_usage.get(usage) for usage in _RAT_RGB]
    found: _Facts = {}
    for number, row in enumerate(table.iterfind("Row")):
        cells = [cell.text or "" for cell in row.iterfind("F")]
        value = number if value_column is None else int(float(cells[value_column]))
        color = (
            None
            if None in color_columns
            else _hex_color(*(cells[index] for index in color_columns if index is not None))
        )
        found[value] = _facts(None if name_column is None else cells[name_column].strip(), color)
    return found


def _hex_color(*rgb: str) -> str:
    red, green, blue = (int(float(part)) & 255 for part in rgb)
    return format_color(red, green, blue)
