"""Region: the part of a scene that is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from segkit.errors import DataError
from segkit.files import existing
from segkit.grid import Grid, crs_name
from segkit.raster import PathLike

if TYPE_CHECKING:
    from geopandas import GeoSeries


class Region(Protocol):
    """Says which pixels of a scene are asked for."""

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return true where a pixel of the window is asked for, bool (H, W)."""


def read_polygons(path: PathLike) -> GeoSeries:
    """Read the polygons of a vector file; what is no polygon is left out.

    Raises
    ------
    MissingFileError
        Nothing is there.
    DataError
        The file is no vector file, or holds no polygon.
    """
    import geopandas
    from pyogrio.errors import DataSourceError

    file = existing(path, "vector file")
    try:
        read = geopandas.read_parquet if file.suffix.lower() == ".parquet" else geopandas.read_file
        geometry = read(file).geometry
    except (DataSourceError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: not a file of polygons that segkit reads ({error})") from error
    parts = geometry[geometry.notna()].make_valid().explode(index_parts=False)
    polygons = parts[(parts.geom_type == "Polygon") & ~parts.is_empty]
    if polygons.empty:
        raise DataError(f"{file}: holds no polygon; an area of interest is made of polygons")
    polygons.name = str(file)
    return polygons


def identity(polygons: GeoSeries) -> str:
    """Return what tells an area of interest apart from another: its file's name, and a checksum of the polygons."""
    digest = hashlib.sha256(b"".join(polygons.to_wkb()) + str(polygons.crs).encode()).hexdigest()
    return f"{Path(str(polygons.name)).name} sha256:{digest}"


class PolygonRegion:
    """The pixels of a grid whose centre lies in a polygon.

    Parameters
    ----------
    polygons
        In any CRS; their vertices are taken to the grid's. Their name is told in errors.
    grid
        The scene's.

    Raises
    ------
    DataError
        Only one of both has a CRS, the polygons have no place in the scene's CRS, or none of them meets the scene.
    """

    def __init__(self, polygons: GeoSeries, grid: Grid) -> None:
        if (polygons.crs is None) != (grid.crs is None):
            which = polygons.name if polygons.crs is None else "the scene"
            raise DataError(
                f"{polygons.name}: cannot be laid over the scene, because {which} has no CRS; assign it one"
            )
        placed = polygons if grid.crs is None else polygons.to_crs(grid.crs)
        if not np.isfinite(placed.total_bounds).all():
            raise DataError(
                f"{polygons.name}: reaches where {crs_name(grid.crs)} has no coordinates; "
                "cut it to the scene's surroundings"
            )
        self._grid = grid
        self._tree = shapely.STRtree(placed.make_valid().to_numpy())
        if not self._meeting(grid).size:
            raise DataError(
                f"{polygons.name}: does not meet the scene, which lies at {_six(grid.bounds)} in {crs_name(grid.crs)}, "
                f"the polygons at {_six(placed.total_bounds)}; name another area or scene"
            )

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return true where a pixel's centre lies in a polygon, bool (H, W)."""
        part = self._grid.part(window)
        meeting = self._meeting(part)
        if not meeting.size:
            return np.zeros(part.shape, dtype=bool)
        found = rasterize(
            [(polygon, 1) for polygon in self._tree.geometries[meeting]],
            out_shape=part.shape,
            transform=part.transform,
            dtype="uint8",
        )
        return np.asarray(found, dtype=bool)

    def _meeting(self, part: Grid) -> NDArray[np.int64]:
        corners = [part.transform @ corner for corner in ((0, 0), (part.width, 0), part.shape[::-1], (0, part.height))]
        found = self._tree.query(shapely.Polygon(corners), predicate="intersects")
        return np.asarray(found, dtype=np.int64)


def _six(bounds: object) -> str:
    return ", ".join(f"{value:.6g}" for value in np.asarray(bounds))
