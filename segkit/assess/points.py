"""The GeoPackage of a sample: points to interpret, a form for QGIS, and the tables that the estimate needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import SubElement

import numpy as np
import pandas

from segkit.errors import DataError, suggest
from segkit.io.geopackage import write_layer, write_styles
from segkit.io.paths import PathLike
from segkit.io.points import PointColumns, read_point_table
from segkit.io.qml import add_choices, add_editable, add_single_symbol, new_style, style_text
from segkit.io.vector import layer_names, read_layer

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from segkit.io.grid import Grid

LAYERS = POINTS, PIXELS, DESIGN, STRATA, CLASSES = "points", "pixels", "design", "strata", "classes"
_MAGENTA, _TRANSPARENT = "255,0,255,255", "255,0,255,0"  # magenta is rare in imagery


def write_points(
    path: Path,
    grid: Grid,
    sample: pandas.DataFrame,
    strata: pandas.DataFrame,
    classes: pandas.DataFrame,
    *,
    show_map: bool,
) -> None:
    """Write a sample, with a form for QGIS.

    Parameters
    ----------
    path
        A GeoPackage.
    grid
        Grid of the map.
    sample
        Columns ``id``, ``row``, ``col``, ``stratum``, ``map_class`` (both are names) and ``pixel_ha``.
    strata
        Columns ``stratum``, ``pixels``, ``hectares``, ``samples``, and ``map_class`` (null if there are several).
    classes
        Columns ``class`` and ``mapped_ha``.
    show_map
        Whether the points have the map's class.
    """
    import geopandas
    import shapely

    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    columns = sample["col"].to_numpy()[:, None] + corners[:, 0]
    rows = sample["row"].to_numpy()[:, None] + corners[:, 1]
    t = grid.transform
    outlines = shapely.polygons(np.stack([t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f], axis=-1))
    form = pandas.DataFrame({"id": sample["id"], "ref_class": None, "note": None}, dtype=object).astype({"id": "int64"})
    if show_map:
        form["map_class"] = sample["map_class"]
    centres = geopandas.GeoDataFrame(form, geometry=shapely.centroid(outlines), crs=grid.crs)
    write_layer(path, POINTS, centres, geometry_type="Point")
    write_layer(path, PIXELS, geopandas.GeoDataFrame(form[["id"]], geometry=outlines, crs=grid.crs))
    for name, table in ((DESIGN, sample), (STRATA, strata), (CLASSES, classes)):
        write_layer(path, name, table)
    texts = {POINTS: ("form", _form_style(classes["class"].tolist())), PIXELS: ("outline", _outline_style())}
    write_styles(path, texts)


def _form_style(classes: Sequence[str]) -> str:
    """Return a QGIS style whose form offers the classes, and no other values, for `ref_class`."""
    root = new_style("Fields|Forms|Symbology")
    marker = {"name": "cross", "size": "4", "outline_color": _MAGENTA, "color": _TRANSPARENT}
    add_single_symbol(root, "marker", "SimpleMarker", marker)
    fields = SubElement(root, "fieldConfiguration")
    add_choices(fields, "ref_class", classes)
    add_editable(root, {"id": False, "map_class": False, "ref_class": True, "note": True})
    return style_text(root)


def _outline_style() -> str:
    """Return a QGIS style of polygons without a fill, which would hide the pixel to interpret."""
    root = new_style()
    outline = {"outline_color": _MAGENTA, "outline_width": "0.4", "outline_style": "solid", "outline_width_unit": "MM"}
    add_single_symbol(root, "fill", "SimpleFill", {"style": "no", "color": _TRANSPARENT} | outline)
    return style_text(root)


def read_table(path: PathLike, layer: str) -> pandas.DataFrame | None:
    """Read a table of a GeoPackage; None if there is no table of this name."""
    return read_layer(path, layer).attributes if layer in layer_names(path) else None


def read_points(path: PathLike, field: str = "ref_class", crs: str | None = None) -> GeoDataFrame | pandas.DataFrame:
    """Read interpreted points: the layer `points`, or the only layer with geometries; or a CSV file.

    Parameters
    ----------
    field
        Column with the reference class; it is called ``ref_class`` in the result.
    crs
        CRS of the coordinates in a CSV file.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is not a vector file, has several layers and none is called `points`, or has no such column.
    """
    if crs is not None:
        import geopandas

        table = read_point_table(Path(path), PointColumns(crs=crs, keys=("column x", "column y", "--crs")))
        assert table.crs is not None
        points = geopandas.GeoDataFrame(table.attributes, geometry=table.shapes, crs=table.crs.to_wkt())
    else:
        layers = layer_names(path)
        spatial = [name for name, has_geometry in layers.items() if has_geometry]
        if POINTS not in layers and len(spatial) != 1:
            raise DataError(
                f"{path}: its layers with geometries are {', '.join(spatial) or 'none'}; call the layer of the points "
                f"{POINTS!r}, or save it as a separate file"
            )
        points = read_layer(path, POINTS if POINTS in layers else spatial[0]).frame()
    if field not in points:
        columns = ", ".join(str(name) for name in points.columns if name != "geometry")
        raise DataError(
            f"{path}: has no column {field}; its columns are {columns}"
            + suggest("name that with the reference class (--field)")
        )
    return points if field == "ref_class" else points.assign(ref_class=points[field])
