"""What the polygons in a window say: which ground is labelled, and where each class is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.labelling.work_file import UNLABELLED
from segkit.task import BACKGROUND, Task

_EMPTY = shapely.Polygon()


@dataclass(frozen=True)
class Partition:
    """Labels in a window.

    Parameters
    ----------
    labelled
        Ground where every class is known to be present or absent.
    present
        {class: where it is}; within `labelled`.
    overlaps, gaps, slivers
        Area, in units of the CRS, that is unlabelled because polygons of classes that exclude each other overlap; that
        is in no polygon although every pixel must be in a class; and of overlaps and gaps narrower than half
        a pixel.
    """

    labelled: Any
    present: Mapping[str, Any]
    overlaps: float = 0.0
    gaps: float = 0.0
    slivers: float = 0.0
    empty: bool = field(default=False)

    def within(self, ground: Any) -> Partition:
        """Return the labels on a part of the ground."""
        labelled = clip(self.labelled, ground)
        return Partition(labelled, {name: clip(shape, labelled) for name, shape in self.present.items()})

    def without(self, ground: Any) -> Partition:
        """Return the labels outside some ground."""
        return self if shapely.is_empty(ground) else self.within(polygonal(shapely.difference(self.labelled, ground)))

    def absent(self) -> Any:
        """Return the labelled ground without any class."""
        return polygonal(shapely.difference(self.labelled, union([*self.present.values()])))


def partition(window: Any, classes: NDArray[Any], shapes: NDArray[Any], task: Task, pixel: float) -> Partition:
    """Return what polygons say about a window.

    What no polygon covers is background, or of overlapping classes without any class. If every pixel must be in a class
    it is a gap, which is unlabelled.

    Parameters
    ----------
    window
        A polygon.
    classes, shapes
        Class of each polygon that meets the window, and the polygon; valid. Polygons of `UNLABELLED` come before all
        others.
    pixel
        Side of a pixel. Gaps and overlaps narrower than half of it come from inexact drawing, and are unlabelled.
    """
    names = [one.name for one in task.classes] + ([BACKGROUND] if task.background else [])
    found = {name: clip(union(shapes[classes == name]), window) for name in (*names, UNLABELLED)}
    unknown = found.pop(UNLABELLED)
    everything = union([*found.values(), unknown])
    labelled = shapely.difference(window, unknown)
    overlaps = gaps = slivers = 0.0
    if task.n_targets == 1:
        shared = polygonal(shapely.difference(_shared([*found.values()]), unknown))
        rest = polygonal(shapely.difference(window, everything))
        wide, narrow = _split_by_width(shared, pixel)
        wide_gaps, narrow_gaps = _split_by_width(rest, pixel)
        overlaps, slivers = wide.area, narrow.area + narrow_gaps.area
        gaps = 0.0 if task.allows_no_class else wide_gaps.area
        doubtful = union([shared, narrow_gaps if task.allows_no_class else rest])
        labelled = shapely.difference(labelled, doubtful)
    labelled = polygonal(labelled)
    present = {one.name: clip(found[one.name], labelled) for one in task.classes}
    return Partition(labelled, present, overlaps, gaps, slivers, empty=shapely.is_empty(everything))


def disagreement(one: Partition, other: Partition) -> Any:
    """Return the ground that two label differently."""
    common = clip(one.labelled, other.labelled)
    differing = [shapely.symmetric_difference(one.present[name], other.present[name]) for name in one.present]
    return clip(union(differing), common)


def union(shapes: Sequence[Any] | NDArray[Any]) -> Any:
    """Return the union of polygons; empty without any."""
    return polygonal(shapely.union_all(np.array(shapes, dtype=object))) if len(shapes) else _EMPTY


def clip(shape: Any, ground: Any) -> Any:
    """Return the part of a shape on some ground."""
    return polygonal(shapely.intersection(shape, ground))


def polygonal(shape: Any) -> Any:
    """Return the polygons of a geometry, without the points and lines where shapes touch."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = shapely.get_parts(shape)
    parts = shapely.get_parts(parts[np.isin(shapely.get_type_id(parts), (3, 6))])
    return shapely.multipolygons(parts) if len(parts) else _EMPTY


def _shared(shapes: Sequence[Any]) -> Any:
    """Return the ground of two or more of some shapes."""
    covered, shared = _EMPTY, [_EMPTY]
    for shape in shapes:
        shared.append(clip(covered, shape))
        covered = union([covered, shape])
    return union(shared)


def _split_by_width(shape: Any, pixel: float) -> tuple[Any, Any]:
    """Return the parts of a shape that are wider than half a pixel somewhere, and the narrower ones."""
    parts = shapely.get_parts(shape)
    parts = parts[~shapely.is_empty(parts)]
    wide = ~shapely.is_empty(shapely.buffer(parts, -pixel / 4))
    return union(parts[wide]), union(parts[~wide])
