"""The GeoPackage of an audit: suspicious labels as polygons, with a style and a form for QGIS."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from segkit.auditing.results import KINDS, Finding
from segkit.errors import GridError
from segkit.io.files import atomic_write
from segkit.io.grid import Grid, crs_name
from segkit.io.qml import add_symbol, new_style, style_text
from segkit.runtime.version import VERSION
from segkit.vector.reproject import Projection, crs_of

LAYER = "audit"
_LONGITUDE_LATITUDE = "EPSG:4326"
STATUSES = ("label wrong", "label right", "unsure")
_COLORS = {
    "swapped": "152,78,163", "shifted": "55,126,184", "class": "228,26,28", "missing": "255,127,0",
    "part": "247,129,191",
}  # fmt: skip


def write_layer(path: Path, findings: Sequence[Finding], grids: Sequence[Grid]) -> None:
    """Write findings as one layer; an existing file is replaced.

    The layer has the CRS of the scenes, or longitude and latitude if these differ.

    Parameters
    ----------
    grids
        Of the scenes.
    """
    import geopandas
    import pandas
    import pyogrio

    columns = ["id", *Finding.columns(), "status", "comment"]
    rows = [{"id": finding.rank, **finding.row(), "status": None, "comment": None} for finding in findings]
    table = pandas.DataFrame(rows, columns=columns, dtype=object)
    types = {"id": "int64", "rank": "int64", "score": "float64", "confident": "bool", "pixels": "int64"}
    table = table.astype(types | {"area_ha": "float64"})
    crs, polygons = _project(findings, grids)
    frame = geopandas.GeoDataFrame(table, geometry=polygons, crs=crs)
    style = {
        "f_table_catalog": "", "f_table_schema": "", "f_table_name": LAYER, "f_geometry_column": "geom",
        "styleName": "kinds", "styleQML": _style(), "styleSLD": "", "useAsDefault": True,
        "description": "written by segkit", "owner": "", "ui": "", "update_time": datetime.now(UTC),
    }  # fmt: skip
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the scenes have none
        pyogrio.write_dataframe(
            frame, part, layer=LAYER, driver="GPKG", geometry_type="MultiPolygon", promote_to_multi=True,
            layer_metadata={"segkit_version": VERSION},
        )  # fmt: skip
        pyogrio.write_dataframe(pandas.DataFrame([style]), part, layer="layer_styles", driver="GPKG", append=True)


def check_crs(grids: Sequence[Grid]) -> None:
    """Raise a GridError if some scenes have a CRS and some have none, which cannot be in one layer."""
    if len({grid.crs is None for grid in grids}) > 1:
        raise GridError(
            "some scenes have a CRS and some have none, and the list is one layer; assign it (gdal_edit.py)"
        )


def _project(findings: Sequence[Finding], grids: Sequence[Grid]) -> tuple[Any, list[Any]]:
    """Return the CRS of the layer, and the polygons in it."""
    known = {crs_name(grid.crs) for grid in grids}
    if len(known) == 1:
        return crs_of(grids[0]), [finding.polygon for finding in findings]
    to_degrees = {number: Projection(grid, _LONGITUDE_LATITUDE) for number, grid in enumerate(grids)}
    projected = [to_degrees[one.scene_number](np.array([one.polygon], dtype=object))[0] for one in findings]
    return _LONGITUDE_LATITUDE, projected


def _style() -> str:
    """Return a QGIS style: outlines in a colour for each kind, and a form that offers the statuses."""
    root = new_style("Fields|Forms|Symbology")
    renderer = SubElement(root, "renderer-v2", type="categorizedSymbol", attr="kind", symbollevels="0")
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for number, (kind, meaning) in enumerate(KINDS.items()):
        text = {"value": kind, "label": f"{kind}: {meaning}", "symbol": str(number)}
        SubElement(categories, "category", text, render="true", type="string")
        outline = {"style": "no", "outline_color": f"{_COLORS[kind]},255", "outline_style": "solid"}
        outline |= {"outline_width": "0.6", "outline_width_unit": "MM", "color": f"{_COLORS[kind]},0"}
        add_symbol(symbols, "fill", str(number), "SimpleFill", outline)
    fields = SubElement(root, "fieldConfiguration")
    _add_choices(fields, "status", {"not checked": "", **{status: status for status in STATUSES}})
    editable = SubElement(root, "editable")
    for name in ("id", *Finding.columns(), "status", "comment"):
        SubElement(editable, "field", name=name, editable=str(int(name in ("status", "comment"))))
    SubElement(root, "layerGeometryType").text = "2"
    return style_text(root)


def _add_choices(fields: Element, name: str, choices: Mapping[str, str]) -> None:
    widget = SubElement(SubElement(fields, "field", name=name), "editWidget", type="ValueMap")
    option = SubElement(SubElement(widget, "config"), "Option", type="Map")
    values = SubElement(option, "Option", type="List", name="map")
    for text, value in choices.items():
        SubElement(SubElement(values, "Option", type="Map"), "Option", type="QString", name=text, value=value)
