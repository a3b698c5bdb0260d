"""QGIS styles (.qml): what those of rasters, polygons and points share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segkit.io.geopackage import STYLE_MARK

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_MARK = f"{STYLE_MARK}\n"
_QGIS_VERSION = "3.22.0"
# Characters that XML 1.0 does not allow, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
NULL_CHOICE = "{2839923C-8B7D-419E-B84B-CA2FE9B80EC7}"  # of `add_choices`: no value (QGIS: QgsValueMapFieldFormatter)


def clean_text(text: str) -> str:
    """Return a text without the characters that XML cannot hold; a U+FFFD stands for each."""
    return _NOT_XML.sub("\ufffd", text)


def new_style(categories: str = "Symbology") -> Element:
    """Return an empty style."""
    return Element("qgis", version=_QGIS_VERSION, styleCategories=categories)


def add_symbol(parent: Element, kind: str, name: str, layer: str, options: Mapping[str, str], alpha: str = "1") -> None:
    """Add a symbol of one layer.

    Parameters
    ----------
    parent
        The element ``symbols``.
    kind, layer
        Type of the symbol ("fill", "marker") and class of its layer ("SimpleFill").
    options
        Properties of the layer.
    """
    symbol = SubElement(parent, "symbol", type=kind, name=name, alpha=alpha, clip_to_extent="1")
    found = SubElement(symbol, "layer", {"class": layer}, enabled="1", locked="0")
    values = SubElement(found, "Option", type="Map")
    for key, value in options.items():
        SubElement(values, "Option", type="QString", name=key, value=value)
    for key, value in options.items():  # for QGIS before 3.24
        SubElement(found, "prop", k=key, v=value)


def add_single_symbol(root: Element, kind: str, layer: str, options: Mapping[str, str]) -> None:
    """Draw all features with one symbol; see `add_symbol`."""
    renderer = SubElement(root, "renderer-v2", type="singleSymbol")
    add_symbol(SubElement(renderer, "symbols"), kind, "0", layer, options)


def add_categories(root: Element, field: str, values: Iterable[tuple[str, str]], kind: str = "string") -> Element:
    """Draw features by the value of a field; returns the element of the symbols, to which one for each value belongs.

    Parameters
    ----------
    values
        Value and label of each category, whose symbols are called "0", "1" and so on.
    kind
        Type of the values: "string" or "long".
    """
    renderer = SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr=field, symbollevels="0", enableorderby="0"
    )
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for number, (value, label) in enumerate(values):
        attributes = {"value": clean_text(value), "label": clean_text(label), "symbol": str(number)}
        SubElement(categories, "category", attributes, render="true", type=kind)
    return symbols


def add_widget(fields: Element, field: str, kind: str) -> Element:
    """Give a field a widget in the form; returns the element of its options.

    Parameters
    ----------
    fields
        The element ``fieldConfiguration``.
    kind
        Of the widget: "ValueMap", "DateTime".
    """
    widget = SubElement(SubElement(fields, "field", name=field), "editWidget", type=kind)
    return SubElement(SubElement(widget, "config"), "Option", type="Map")


def add_choices(fields: Element, field: str, choices: Iterable[str] | Mapping[str, str]) -> None:
    """Let the form offer some values for a field, or {text: value}, and no others; see `add_widget`."""
    values = SubElement(add_widget(fields, field, "ValueMap"), "Option", type="List", name="map")
    for text, value in (choices if isinstance(choices, Mapping) else {one: one for one in choices}).items():
        option = {"name": clean_text(text), "value": clean_text(value)}
        SubElement(SubElement(values, "Option", type="Map"), "Option", option, type="QString")


def add_editable(root: Element, fields: Mapping[str, bool]) -> None:
    """Say which fields can be edited in the form."""
    editable = SubElement(root, "editable")
    for name, flag in fields.items():
        SubElement(editable, "field", name=name, editable=str(int(flag)))


def style_text(root: Element) -> str:
    """Return a style as text, with a mark by which segkit recognises it; QGIS drops the mark when it saves a style."""
    ElementTree.indent(root)
    return _DOCTYPE + _MARK + ElementTree.tostring(root, encoding="unicode") + "\n"


def is_written_by_segkit(path: Path) -> bool:
    """Return whether segkit wrote a style file and it was not changed in QGIS."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(len(_DOCTYPE) + len(_MARK) + 8)
    except OSError:
        return False


def may_replace(path: Path) -> bool:
    """Return whether a style file may be written: there is none, or segkit wrote it."""
    return is_written_by_segkit(path) or not path.exists()


def write_style(text: str, part: Path, target: Path) -> None:
    """Write a style to `part`, which is then renamed to `target`, unless there is one that segkit did not write.

    QGIS loads NAME.qml for NAME.tif and for NAME.shp, and takes what fits the layer. So one file has the style of a
    raster and that of polygons: the elements of an existing file that `text` does not have are kept.
    """
    if not may_replace(target):
        return
    root = ElementTree.fromstring(text)  # noqa: S314, segkit wrote it
    try:
        others = ElementTree.parse(target).getroot() if target.exists() else ()  # noqa: S314, segkit wrote it
    except (ElementTree.ParseError, UnicodeDecodeError):
        others = ()
    own = {element.tag for element in root}
    root.extend([element for element in others if element.tag not in own])
    part.write_text(style_text(root), encoding="utf-8")
