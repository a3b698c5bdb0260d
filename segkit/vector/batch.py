"""Batch: polygons with what a layer says about them, as a GeoDataFrame or an Arrow table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.class_table import MapClass
from segkit.vector import geometry
from segkit.vector.tracing.rings import Polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pyarrow import Table

_SQUARE_METRES = 10_000.0


@dataclass(frozen=True)
class Batch:
    """Polygons of a band.

    Parameters
    ----------
    polygons
        Regions.
    classes
        Of each kind, None where there are no polygons of it.
    parts
        int64 (rows + 1,): each row is the multipolygon from parts[i] to parts[i + 1], all of one kind; None where each
        polygon is a row.
    """

    polygons: Polygons
    classes: Sequence[MapClass | None]
    parts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self._kinds())

    @property
    def layer(self) -> str:
        """The name of the class that all of them have."""
        [name] = {self._class(kind).name for kind in np.unique(self.polygons.kind).tolist()}
        return name

    def by_class(self) -> list[tuple[str, int, float]]:
        """Return name, number of polygons and hectares of each class."""
        area = np.bincount(self.polygons.kind, weights=self.polygons.area)
        counts = np.bincount(self.polygons.kind)
        return [
            (self._class(k).name, int(counts[k]), float(area[k]) / _SQUARE_METRES)
            for k in np.flatnonzero(counts).tolist()
        ]

    def dissolved(self) -> list[Batch]:
        """Return a batch of one row for each class, by their values."""
        polygons = geometry.sorted_by_kind(self.polygons)
        starts = np.flatnonzero(np.diff(polygons.kind, prepend=-1, append=-1))
        own = [polygons.some(start, end) for start, end in pairwise(starts.tolist())]
        own.sort(key=lambda one: self._class(one.kind[0]).value)
        return [Batch(one, self.classes, np.array([0, len(one.kind)])) for one in own]

    def columns(self, *, confidence: bool) -> dict[str, NDArray[Any]]:
        """Return all columns but class and geometry."""
        p = self.polygons
        ids = np.array([-1 if one is None else one.value for one in self.classes], dtype=np.int32)
        found: dict[str, NDArray[Any]] = {
            "class_id": ids[self._kinds()],
            "area_ha": self._sum(p.area) / _SQUARE_METRES,
            "pixels": self._sum(p.pixels),
            "perim_m": self._sum(p.perimeter),
        }
        if confidence:
            known = self._sum(p.known)
            found["mean_conf"] = np.divide(self._sum(p.chance), known, out=np.full(known.size, np.nan), where=known > 0)
        return found

    def shapes(self) -> NDArray[np.object_]:
        """Return shapely polygons or multipolygons."""
        return geometry.shapes(self.polygons, self.parts)

    def names(self) -> list[str]:
        """Return the names of kinds."""
        return ["" if one is None else one.name for one in self.classes]

    def frame(self, shapes: NDArray[np.object_], crs: Any, *, confidence: bool) -> GeoDataFrame:
        """Return a GeoDataFrame with these shapes in this CRS."""
        import geopandas
        import pandas as pd

        columns = self.columns(confidence=confidence)
        names = pd.array(self.names(), dtype="str").take(self._kinds())
        ordered = {"class_id": columns.pop("class_id"), "class": names, **columns}
        array = geopandas.array.GeometryArray(shapes, crs=crs)
        return geopandas.GeoDataFrame({**ordered, "geometry": array})

    def table(self, *, confidence: bool) -> Table:
        """Return an Arrow table, its geometry as well-known binary."""
        import pyarrow as pa

        names = pa.array(self.names(), pa.string()).take(pa.array(self._kinds()))
        columns = self.columns(confidence=confidence)
        return pa.table({**columns, "class": names, "geometry": geometry.binary(self.polygons, self.parts)})

    def _kinds(self) -> NDArray[np.int32]:
        return self.polygons.kind if self.parts is None else self.polygons.kind[self.parts[:-1]]

    def _class(self, kind: int) -> MapClass:
        one = self.classes[kind]
        assert one is not None  # nothing else has polygons
        return one

    def _sum(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self.parts is None else np.add.reduceat(column, self.parts[:-1])


def joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Make one of the batches of a band that follow each other, if they are not dissolved."""
    for (_, dissolved), group in groupby(batches, key=lambda one: (id(one.classes), one.parts is not None)):
        own = list(group)
        if dissolved:
            yield from own
        else:
            yield Batch(geometry.joined([one.polygons for one in own]), own[0].classes)
