"""Forms and styles with which QGIS shows windows and polygons to label."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from segkit.io.class_table import parse_color
from segkit.io.qml import add_categories, add_choices, add_editable, add_symbol, add_widget, new_style, style_text

_CATEGORIES = "Fields|Forms|Symbology|Constraints"
# Orange, green and grey are told apart by the colour-blind, too; no fill hides the imagery.
_STATUS_COLORS = ("255,127,0,255", "0,158,115,255", "153,153,153,255")
_OTHER_COLOR = (128, 128, 128)
_FILL_ALPHA = 70  # of 255: imagery and overlapping polygons stay visible


def window_form(statuses: Sequence[str]) -> str:
    """Return the QGIS style of windows: outlines coloured by status, and a form that fills in name and date."""
    root = new_style(_CATEGORIES)
    symbols = add_categories(root, "status", [(status, status) for status in statuses])
    for number, color in enumerate(_STATUS_COLORS[: len(statuses)]):
        _add_outline(symbols, str(number), color, "0,0,0,0", "no", "0.6")
    fields = SubElement(root, "fieldConfiguration")
    add_choices(fields, "status", statuses)
    date = add_widget(fields, "date", "DateTime")
    for name, value in (("display_format", "yyyy-MM-dd HH:mm"), ("calendar_popup", "true")):
        SubElement(date, "Option", type="QString", name=name, value=value)
    defaults = SubElement(root, "defaults")
    name = "coalesce(\"labeller\", nullif(@user_full_name, ''), @user_account_name)"
    for field, expression in (("labeller", name), ("date", "now()")):
        SubElement(defaults, "default", field=field, expression=expression, applyOnUpdate="1")
    editable = dict.fromkeys(("id", "scene", "row", "col", "rows", "cols", "uncertain"), False)
    add_editable(root, editable | dict.fromkeys(("status", "labeller", "date", "note"), True))
    SubElement(root, "layerGeometryType").text = "2"
    return style_text(root)


def polygon_form(choices: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    """Return the QGIS style of polygons: translucent in the colours of the classes, and a form that offers these.

    Parameters
    ----------
    choices
        Values of the field ``class``.
    legend
        Names and "#rrggbb" of classes; other choices are grey.
    """
    root = new_style(_CATEGORIES)
    symbols = add_categories(root, "class", [(name, name) for name in choices])
    colors = dict(legend)
    for number, name in enumerate(choices):
        rgb = ",".join(map(str, parse_color(colors[name]) if name in colors else _OTHER_COLOR))
        _add_outline(symbols, str(number), f"{rgb},255", f"{rgb},{_FILL_ALPHA}", "solid", "0.4")
    fields = SubElement(root, "fieldConfiguration")
    add_choices(fields, "class", choices)
    constraints = SubElement(root, "constraints")
    SubElement(
        constraints, "constraint", field="class", constraints="1", notnull_strength="1", unique_strength="0",
        exp_strength="0",
    )  # fmt: skip
    SubElement(root, "layerGeometryType").text = "2"
    return style_text(root)


def _add_outline(symbols: Element, name: str, outline: str, fill: str, style: str, width: str) -> None:
    options = {"color": fill, "style": style, "outline_color": outline, "outline_width": width}
    options |= {"outline_style": "solid", "outline_width_unit": "MM"}
    add_symbol(symbols, "fill", name, "SimpleFill", options)
