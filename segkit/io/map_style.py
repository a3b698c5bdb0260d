"""Styles of rasters that segkit writes: QGIS (.qml) and OGC (.sld)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segkit.io.class_table import MapClass, class_rgb, format_color
from segkit.io.geopackage import STYLE_MARK
from segkit.io.qml import clean_text, new_style, style_text

# Colours from the lowest to the highest number, at equal steps (viridis: readable for the colour-blind, and in grey).
_RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_MAX_PLAIN_ENTRIES = 255  # of a colour map of GeoServer that is not "extended"


def class_qml(classes: Sequence[MapClass], transparent: Container[int] = ()) -> str:
    """Return the QGIS style of a band of classes: the legend has their names and colours, no data is transparent.

    Parameters
    ----------
    classes
        In the order of the legend.
    transparent
        Values that are not shown.
    """
    root = new_style()
    renderer = _add_renderer(root, "paletted", 1)
    palette = SubElement(renderer, "colorPalette")
    for one in classes:
        SubElement(
            palette, "paletteEntry", value=str(one.value), color=format_color(*class_rgb(one)),
            label=clean_text(one.name), alpha="0" if one.value in transparent else "255",
        )  # fmt: skip
    return style_text(root)


def number_qml(band: int, minimum: float, maximum: float) -> str:
    """Return the QGIS style of one band of numbers: a colour ramp, in units of its scale."""
    root = new_style()
    low, high = f"{minimum:g}", f"{maximum:g}"
    renderer = _add_renderer(root, "singlebandpseudocolor", band)
    renderer.attrib |= {"classificationMin": low, "classificationMax": high}
    ramp = SubElement(
        SubElement(renderer, "rastershader"), "colorrampshader",
        colorRampType="INTERPOLATED", classificationMode="1", clip="0", minimumValue=low, maximumValue=high,
    )  # fmt: skip
    for step, color in enumerate(_RAMP):
        value = f"{minimum + (maximum - minimum) * step / (len(_RAMP) - 1):g}"
        SubElement(ramp, "item", value=value, label=value, color=color, alpha="255")
    return style_text(root)


def _add_renderer(root: Element, kind: str, band: int) -> Element:
    """Add the renderer of one band. The attributes that are always the same are required by QGIS."""
    return SubElement(
        SubElement(root, "pipe"), "rasterrenderer",
        type=kind, band=str(band), opacity="1", alphaBand="-1", nodataColor="",
    )  # fmt: skip


def class_sld(name: str, classes: Sequence[MapClass], transparent: Container[int] = ()) -> str:
    """Return a Styled Layer Descriptor (OGC SLD 1.0) for a band of classes, as for `class_qml`."""
    root = Element("StyledLayerDescriptor", version="1.0.0", xmlns="http://www.opengis.net/sld")
    layer = SubElement(root, "NamedLayer")
    SubElement(layer, "Name").text = clean_text(name)
    rule = SubElement(SubElement(SubElement(layer, "UserStyle"), "FeatureTypeStyle"), "Rule")
    symbolizer = SubElement(rule, "RasterSymbolizer")
    channel = SubElement(SubElement(symbolizer, "ChannelSelection"), "GrayChannel")
    SubElement(channel, "SourceChannelName").text = "1"
    colors = SubElement(symbolizer, "ColorMap", type="values")
    if len(classes) > _MAX_PLAIN_ENTRIES:
        colors.set("extended", "true")
    for one in sorted(classes, key=lambda one: one.value):
        SubElement(
            colors, "ColorMapEntry", color=format_color(*class_rgb(one)), quantity=str(one.value),
            label=clean_text(one.name), opacity="0" if one.value in transparent else "1",
        )  # fmt: skip
    ElementTree.indent(root)
    declaration = "<?xml version='1.0' encoding='UTF-8'?>\n"
    return declaration + f"{STYLE_MARK}\n" + ElementTree.tostring(root, encoding="unicode") + "\n"
