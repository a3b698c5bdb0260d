"""QGIS styles (.qml) with the colours of a map's classes."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segkit.io.class_table import MapClass, parse_color
from segkit.io.geopackage import STYLE_MARK

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_MARK = f"{STYLE_MARK}\n"
# Characters that XML 1.0 does not allow, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GOLDEN = (5**0.5 - 1) / 2


def qml(classes: Iterable[MapClass], *, translucent: bool = False) -> str:
    """Return the style of a layer with the column `class_id`.

    Parameters
    ----------
    classes
        In the order of the legend. A class without a colour gets one that depends on its value only.
    translucent
        For polygons that overlap.
    """
    root = Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr="class_id", symbollevels="0", enableorderby="0"
    )
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for number, one in enumerate(classes):
        attributes = {"value": str(one.value), "label": _NOT_XML.sub("\ufffd", one.name), "symbol": str(number)}
        SubElement(categories, "category", attributes, render="true", type="long")
        alpha = "0.6" if translucent else "1"
        symbol = SubElement(symbols, "symbol", type="fill", name=str(number), alpha=alpha, clip_to_extent="1")
        layer = SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1", locked="0")
        color = ",".join(map(str, class_rgb(one))) + ",255"
        # A thin outline of the same colour hides the gaps that antialiasing shows between neighbours.
        options = {"color": color, "style": "solid", "outline_color": color, "outline_width": "0.1"}
        options |= {"outline_style": "no"} if translucent else {"outline_style": "solid", "outline_width_unit": "MM"}
        map_ = SubElement(layer, "Option", type="Map")
        for name, value in options.items():
            SubElement(map_, "Option", type="QString", name=name, value=value)
        for name, value in options.items():  # for QGIS before 3.24
            SubElement(layer, "prop", k=name, v=value)
    SubElement(root, "layerGeometryType").text = "2"
    ElementTree.indent(root)
    return _DOCTYPE + _MARK + ElementTree.tostring(root, encoding="unicode") + "\n"


def is_written_by_segkit(path: Path) -> bool:
    """Return whether segkit wrote a style file and it was not changed in QGIS."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(len(_DOCTYPE) + len(_MARK) + 8)
    except OSError:
        return False


def class_rgb(one: MapClass) -> tuple[int, int, int]:
    """Return red, green and blue of a class, 0 to 255; one without a colour gets one that depends on its value."""
    if one.color is not None:
        return parse_color(one.color)
    # Steps of the golden ratio around the colour wheel give distinct colours for any number of values.
    red, green, blue = colorsys.hsv_to_rgb(one.value * _GOLDEN % 1, 0.55, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)
