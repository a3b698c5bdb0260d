"""Polygons with their attributes, as a GeoDataFrame or an Arrow table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.errors import UsageError
from segkit.io.class_table import MapClass
from segkit.vector import geometry
from segkit.vector.polygon_filter import mean_confidence
from segkit.vector.tracing.rings import Polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pyarrow import Table

    from segkit.vector.reproject import Projection

# The columns of attributes that are added on request; at most ten letters, because of shapefiles.
ATTRIBUTES = {"centroid": ("centroid_x", "centroid_y"), "compactness": ("compact",)}
_M2_PER_HECTARE = 10_000.0


@dataclass(frozen=True)
class Batch:
    """Polygons of a band.

    Parameters
    ----------
    polygons
        Traced regions.
    classes
        The class of each class index; None if it has no polygons.
    parts
        int64 (rows + 1,): row i is the multipolygon of the polygons parts[i] to parts[i + 1], all of one class; None if
        each polygon is a row.
    """

    polygons: Polygons
    classes: Sequence[MapClass | None]
    parts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._row_classes())

    @property
    def layer(self) -> str:
        """Name of the class, which must be the same for all polygons."""
        [name] = {self._class(class_index).name for class_index in np.unique(self.polygons.class_index).tolist()}
        return name

    def totals_by_class(self) -> list[tuple[str, int, float]]:
        """Return (name, number of polygons, hectares) of each class."""
        area = np.bincount(self.polygons.class_index, weights=self.polygons.area)
        counts = np.bincount(self.polygons.class_index)
        return [
            (self._class(k).name, int(counts[k]), float(area[k]) / _M2_PER_HECTARE)
            for k in np.flatnonzero(counts).tolist()
        ]

    def dissolve(self) -> list[Batch]:
        """Return a batch with one row for each class, by class value."""
        polygons = geometry.sort_by_class(self.polygons)
        starts = np.flatnonzero(np.diff(polygons.class_index, prepend=-1, append=-1))
        by_class = [polygons.take(start, end) for start, end in pairwise(starts.tolist())]
        by_class.sort(key=lambda one: self._class(one.class_index[0]).value)
        return [Batch(one, self.classes, np.array([0, len(one.class_index)])) for one in by_class]

    def attribute_columns(
        self, *, confidence: bool, attributes: Sequence[str] = (), projection: Projection | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return all columns except class and geometry.

        Parameters
        ----------
        attributes
            Names in `ATTRIBUTES`.
        projection
            To the CRS in which centroids are given; None for the map's.
        """
        p = self.polygons
        ids = np.array([-1 if one is None else one.value for one in self.classes], dtype=np.int32)
        columns: dict[str, NDArray[Any]] = {
            "class_id": ids[self._row_classes()],
            "area_ha": self._sum(p.area) / _M2_PER_HECTARE,
            "pixels": self._sum(p.pixels),
            "perim_m": self._sum(p.perimeter),
        }
        if confidence:
            columns["mean_conf"] = mean_confidence(self._sum(p.confidence_sum), self._sum(p.confidence_count))
        if "centroid" in attributes:
            columns["centroid_x"], columns["centroid_y"] = self._centroids(projection).T
        if "compactness" in attributes:
            columns["compact"] = _compactness(self._sum(p.area), columns["perim_m"])
        return columns

    def geometries(self) -> NDArray[np.object_]:
        """Return shapely polygons or multipolygons."""
        return geometry.to_shapely(self.polygons, self.parts)

    def class_names(self) -> list[str]:
        """Return the name of each class index."""
        return ["" if one is None else one.name for one in self.classes]

    def to_geodataframe(
        self, projection: Projection | None, crs: Any, *, confidence: bool, attributes: Sequence[str] = ()
    ) -> GeoDataFrame:
        """Return a GeoDataFrame in the CRS of a projection, or with None in that of the map."""
        import geopandas
        import pandas as pd

        shapes = self.geometries() if projection is None else projection(self.geometries())
        columns = self.attribute_columns(confidence=confidence, attributes=attributes, projection=projection)
        names = pd.array(self.class_names(), dtype="str").take(self._row_classes())
        ordered = {"class_id": columns.pop("class_id"), "class": names, **columns}
        array = geopandas.array.GeometryArray(shapes, crs=crs)
        return geopandas.GeoDataFrame({**ordered, "geometry": array})

    def to_arrow(
        self, *, confidence: bool, attributes: Sequence[str] = (), projection: Projection | None = None
    ) -> Table:
        """Return an Arrow table with the geometry as well-known binary, in the map's CRS."""
        import pyarrow as pa

        names = pa.array(self.class_names(), pa.string()).take(pa.array(self._row_classes()))
        columns = self.attribute_columns(confidence=confidence, attributes=attributes, projection=projection)
        return pa.table({**columns, "class": names, "geometry": geometry.to_wkb(self.polygons, self.parts)})

    def _centroids(self, projection: Projection | None) -> NDArray[np.float64]:
        """Return the centroids of the rows in the map's CRS, float64 (rows, 2), in the coordinates of a projection."""
        centroids = shapely.get_coordinates(shapely.centroid(self.geometries()))
        return centroids if projection is None else projection.transform_points(centroids)

    def _row_classes(self) -> NDArray[np.int32]:
        return self.polygons.class_index if self.parts is None else self.polygons.class_index[self.parts[:-1]]

    def _class(self, class_index: int) -> MapClass:
        one = self.classes[class_index]
        assert one is not None  # only selected classes have polygons
        return one

    def _sum(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self.parts is None else np.add.reduceat(column, self.parts[:-1])


def check_attributes(attributes: Sequence[str]) -> None:
    """Raise a UsageError if one of the names is not in `ATTRIBUTES`."""
    for name in attributes:
        if name not in ATTRIBUTES:
            raise UsageError(f"attributes: {name} is unknown; the attributes are {', '.join(ATTRIBUTES)}")


def attribute_names(attributes: Sequence[str]) -> list[str]:
    """Return the columns of attributes, in their order in a file."""
    return [column for name, columns in ATTRIBUTES.items() if name in attributes for column in columns]


def _compactness(area: NDArray[np.float64], perimeter: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 4 pi area / perimeter^2: 1 for a disc, pi / 4 for a square.

    Polsby and Popper 1991, "The third criterion: compactness as a procedural safeguard against partisan
    gerrymandering", Yale Law & Policy Review 9(2), 301-353.
    """
    return 4 * np.pi * area / perimeter**2


def merge_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Merge consecutive batches of a band, unless they are dissolved."""
    for (_, dissolved), group in groupby(batches, key=lambda one: (id(one.classes), one.parts is not None)):
        of_band = list(group)
        if dissolved:
            yield from of_band
        else:
            yield Batch(geometry.concatenate_polygons([one.polygons for one in of_band]), of_band[0].classes)
