"""QGIS styles (.qml) with the colours of a map's classes."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import SubElement

from segkit.io.class_table import MapClass, class_rgb
from segkit.io.qml import add_categories, add_symbol, new_style, style_text


def qml(classes: Iterable[MapClass], *, translucent: bool = False) -> str:
    """Return the style of a layer with the column `class_id`.

    Parameters
    ----------
    classes
        In the order of the legend. A class without a colour gets one that depends on its value only.
    translucent
        For polygons that overlap.
    """
    root = new_style()
    shown = list(classes)
    symbols = add_categories(root, "class_id", [(str(one.value), one.name) for one in shown], "long")
    for number, one in enumerate(shown):
        color = ",".join(map(str, class_rgb(one))) + ",255"
        # A thin outline of the same colour hides the gaps that antialiasing shows between neighbours.
        options = {"color": color, "style": "solid", "outline_color": color, "outline_width": "0.1"}
        options |= {"outline_style": "no"} if translucent else {"outline_style": "solid", "outline_width_unit": "MM"}
        add_symbol(symbols, "fill", str(number), "SimpleFill", options, "0.6" if translucent else "1")
    SubElement(root, "layerGeometryType").text = "2"
    return style_text(root)
