"""The `.aux.xml` file of a raster, as GDAL reads it: attribute table, category names and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segkit.io.class_table import MapClass, class_rgb
from segkit.io.pixel_statistics import BandStatistics
from segkit.io.qml import clean_text

# Columns of an attribute table: name, GDALRATFieldType (integer, real, text), GDALRATFieldUsage. The count is real,
# since GDAL's integers have 32 bits.
_COLUMNS = (
    *(("Value", 0, 5), ("ClassName", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)),
    ("Count", 1, 1),
)
_MAX_CATEGORIES = 256  # names are listed from value 0 on, without gaps


def write_aux_xml(
    path: Path,
    classes: Sequence[Sequence[MapClass]],
    counts: Sequence[Mapping[int, int]],
    statistics: Sequence[BandStatistics | None],
) -> None:
    """Write the `.aux.xml` file of a raster, or add to the one that GDAL wrote for it.

    Parameters
    ----------
    path
        The file; if it exists, GDAL wrote it, for what does not fit into the raster.
    classes, counts
        Of each band: the classes, none for a band of numbers, and {value: pixels}.
    statistics
        Of each band; None without data.
    """
    root = ElementTree.parse(path).getroot() if path.exists() else Element("PAMDataset")  # noqa: S314, GDAL wrote it
    for number, (listed, pixels, found) in enumerate(zip(classes, counts, statistics, strict=True), 1):
        band = root.find(f"PAMRasterBand[@band='{number}']")
        if band is None:
            band = SubElement(root, "PAMRasterBand", band=str(number))
        if listed:
            _add_category_names(band, listed)
            _add_attribute_table(band, listed, pixels)
        if found is not None:
            _add_statistics(band, found)
    ElementTree.indent(root)
    path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def _add_category_names(band: Element, classes: Sequence[MapClass]) -> None:
    names = {one.value: clean_text(one.name) for one in classes}
    if min(names) < 0 or max(names) >= _MAX_CATEGORIES:
        return
    listed = SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        SubElement(listed, "Category").text = names.get(value, "")


def _add_attribute_table(band: Element, classes: Sequence[MapClass], pixels: Mapping[int, int]) -> None:
    table = SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for number, (name, kind, usage) in enumerate(_COLUMNS):
        column = SubElement(table, "FieldDefn", index=str(number))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            SubElement(column, key).text = str(value)
    for number, one in enumerate(sorted(classes, key=lambda one: one.value)):
        row = SubElement(table, "Row", index=str(number))
        for cell in (one.value, clean_text(one.name), *class_rgb(one), pixels.get(one.value, 0)):
            SubElement(row, "F").text = str(cell)


def _add_statistics(band: Element, found: BandStatistics) -> None:
    metadata = band.find("Metadata")
    if metadata is None:
        metadata = SubElement(band, "Metadata")
    values = {
        "MAXIMUM": f"{found.maximum:.17g}",
        "MEAN": f"{found.mean:.17g}",
        "MINIMUM": f"{found.minimum:.17g}",
        "STDDEV": f"{found.deviation:.17g}",
        "VALID_PERCENT": f"{100 * found.share:.4g}",
    }
    for key, value in values.items():
        SubElement(metadata, "MDI", key=f"STATISTICS_{key}").text = value
