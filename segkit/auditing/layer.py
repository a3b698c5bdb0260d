"""The GeoPackage of an audit: suspicious labels as polygons, with a style and a form for QGIS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import SubElement

import numpy as np

from segkit.auditing.results import KINDS, Finding
from segkit.errors import GridError
from segkit.io import geopackage
from segkit.io.files import as_output_error, atomic_write
from segkit.io.grid import Grid, crs_name
from segkit.io.qml import NULL_CHOICE, add_categories, add_choices, add_editable, add_symbol, new_style, style_text
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

    columns = ["id", *Finding.columns(), "status", "comment"]
    rows = [{"id": finding.rank, **finding.row(), "status": None, "comment": None} for finding in findings]
    table = pandas.DataFrame(rows, columns=columns, dtype=object)
    types = {"id": "int64", "rank": "int64", "score": "float64", "confident": "bool", "pixels": "int64"}
    table = table.astype(types | {"area_ha": "float64"})
    crs, polygons = _project(findings, grids)
    frame = geopandas.GeoDataFrame(table, geometry=polygons, crs=crs)
    with atomic_write(path) as part, as_output_error(path, RuntimeError):  # pyogrio's errors are RuntimeErrors
        geopackage.write_layer(part, LAYER, frame, geometry_type="MultiPolygon")
        geopackage.write_styles(part, {LAYER: ("kinds", _style())})


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
    symbols = add_categories(root, "kind", [(kind, f"{kind}: {meaning}") for kind, meaning in KINDS.items()])
    for number, kind in enumerate(KINDS):
        outline = {"style": "no", "outline_color": f"{_COLORS[kind]},255", "outline_style": "solid"}
        outline |= {"outline_width": "0.6", "outline_width_unit": "MM", "color": f"{_COLORS[kind]},0"}
        add_symbol(symbols, "fill", str(number), "SimpleFill", outline)
    fields = SubElement(root, "fieldConfiguration")
    add_choices(fields, "status", {"not checked": NULL_CHOICE, **{status: status for status in STATUSES}})
    add_editable(root, dict.fromkeys(("id", *Finding.columns()), False) | {"status": True, "comment": True})
    SubElement(root, "layerGeometryType").text = "2"
    return style_text(root)
