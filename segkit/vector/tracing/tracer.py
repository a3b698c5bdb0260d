"""Trace runs to polygons: regions, the arcs between them, and the rings that arcs generalisation.

`Tracer` takes a map row by row and compares two rows at a time. A *corner* is a point of the pixel grid, (column, row),
where a border between regions turns. A corner with three or four edges is a *node*. An *arc* is a border from node to
node, or a loop, with one region on each side. Each arc is stored once, so neighbours share all vertices of their border
and the polygons are an exact coverage. Points between corners lie on straight edges and are left out.

Memory holds only the regions that reach the last row and the arcs around them. A region is complete when a row has no
pixel of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segkit.vector.tracing.confidence import ConfidenceSums
from segkit.vector.tracing.generalize import Generalisation, NewOutlines, no_outlines
from segkit.vector.tracing.pixel_measures import PixelMeasures, RunMeasures, measure_runs
from segkit.vector.tracing.rings import Polygons, write_rings
from segkit.vector.tracing.runs import Runs
from segkit.vector.tracing.sweep import sweep_rows
from segkit.vector.tracing.tables import (
    BAND_ROWS,
    CLASS_INDEX,
    COLUMNS,
    CONFIDENCE_COUNT,
    MAX_VERTICES,
    OF_REGION,
    OUTSIDE,
    PIXELS,
    START,
    Tables,
)
from segkit.vector.tracing.union_find import PARENT


class Tracer:
    """Traces runs, from top to bottom, to polygons.

    Parameters
    ----------
    width
        Pixels per row.
    transform
        From (column, row) to CRS coordinates.
    pixel_measures
        Areas and side lengths of pixels on the ground.
    take_outlines
        Returns the outlines that replace traced ones, for a range of lines of corners (see `Regularizer`).
    """

    def __init__(
        self,
        width: int,
        transform: Affine,
        pixel_measures: PixelMeasures,
        generalisation: Generalisation | None = None,
        take_outlines: Callable[[int, int], NewOutlines] | None = None,
    ) -> None:
        self._width = width
        self._transform = np.array(transform[:6], dtype=np.float64)
        self._flipped = transform.determinant > 0
        self._pixel_measures = pixel_measures
        self._generalisation = generalisation or Generalisation()
        self._take_outlines = take_outlines
        sizes = {name: np.empty((0, columns), dtype=np.int32) for name, columns in COLUMNS.items()}
        free = np.array([-1, 0] * len(COLUMNS), dtype=np.int64)
        straight = np.empty((0, 8), dtype=np.int32)
        self._tables = Tables(
            **sizes,
            place=np.empty((0, 2)),
            straight=straight,
            number=np.empty((0, 3), dtype=np.int64),
            total=np.empty((0, 3)),
            free=free,
        )
        # The last row: start, class and label of its runs, and their distance along its lower side.
        outside = np.full(1, OUTSIDE, dtype=np.int32)
        self._last = np.zeros(1, dtype=np.int32), outside, outside, np.zeros(1)
        # For each column, the vertex from which an edge leads down.
        self._hanging = np.full(width + 1, -1, dtype=np.int32)
        words = (width + 64) // 64 if self._generalisation.enabled else 0
        self._bits = np.zeros((BAND_ROWS + 1 if words else 0, words), dtype=np.uint64)

    def trace(self, runs: Runs, selected: NDArray[np.bool_], confidence_sums: ConfidenceSums | None = None) -> Polygons:
        """Take the next rows and return the polygons that are complete.

        Polygons are ordered by the row and then the column where they end; the order does not depend on the strips.

        Parameters
        ----------
        selected
            Whether each class is traced, bool (classes,).
        confidence_sums
            Sums of probabilities of each run.
        """
        first, class_index, label, lower = self._last
        run_measures = measure_runs(self._pixel_measures, runs)
        row = np.concatenate(([0], runs.row + first.size))
        first, class_index = np.concatenate((first, runs.first)), np.concatenate((class_index, runs.class_index))
        label = np.concatenate((label, np.empty(runs.first.size, dtype=np.int32)))
        padding = np.full(row[1], np.nan)
        run_measures = RunMeasures(
            np.concatenate((padding, run_measures.area)),
            np.concatenate((padding, run_measures.left)),
            np.concatenate((padding, run_measures.upper)),
            np.concatenate((lower, run_measures.lower)),
            run_measures.end,
        )
        confidence_sums = confidence_sums or ConfidenceSums(np.empty(0), np.empty(0, dtype=np.int64))
        # Corners are at the starts of runs in the row above or below, and at the end of the row.
        corners = 2 * first.size + runs.height
        self._reserve(vertex=4 * corners, arc=4 * corners, node=corners, region=first.size)
        generalisation = self._generalisation
        outlines = no_outlines()
        if self._take_outlines is not None:
            outlines = self._take_outlines(runs.top, runs.top + runs.height)
            if not generalisation.enabled:
                outlines = outlines._replace(corridors=no_outlines().corridors)
        closed = np.empty(self._tables.free[2 * OF_REGION + 1] + first.size, dtype=np.int32)
        count = sweep_rows(
            self._tables, self._hanging, self._bits, self._pixel_measures, run_measures, row, first, class_index, label,
            confidence_sums.total, confidence_sums.count, selected, runs.top, runs.width,
            generalisation.enabled, generalisation.smooth,
            -1.0 if generalisation.tolerance is None else generalisation.tolerance, generalisation.metres, outlines,
            closed,
        )  # fmt: skip
        last = slice(row[-2], row[-1])
        self._last = first[last].copy(), class_index[last].copy(), label[last].copy(), run_measures.lower[last].copy()
        return self._collect(closed[:count])

    def finish(self, height: int) -> Polygons:
        """Return the polygons that reach the last row of a map with `height` rows."""
        end = Runs(
            height, np.array([0, 1]), np.zeros(1, dtype=np.int32), np.full(1, OUTSIDE, dtype=np.int32), self._width
        )
        return self.trace(end, np.empty(0, dtype=bool))

    def first_open_row(self, default: int) -> int:
        """Return the row where the first region starts that is not complete; the default if all are."""
        label = np.unique(self._last[2])
        label = label[label >= 0]
        parent = self._tables.region[:, PARENT]
        while (above := parent[label]).tolist() != label.tolist():
            label = above
        return int(min(self._tables.number[label, START] // self._width, default=default))

    def _reserve(self, **more: int) -> None:
        """Enlarge the tables, if necessary, for more rows."""
        for number, name in enumerate(COLUMNS):
            used = self._tables.free[2 * number + 1]
            parallel = {
                "vertex": ("place",) if self._take_outlines is not None else (),
                "region": ("number", "total"),
                "node": ("straight",) if self._generalisation.enabled else (),
            }
            for table in (name, *parallel.get(name, ())):
                old = getattr(self._tables, table)
                if used + more[name] > len(old):
                    # Twice the needed size; allocated memory that is never written to is free.
                    new = np.empty((2 * (used + more[name]), old.shape[1]), dtype=old.dtype)
                    new[:used] = old[:used]
                    self._tables = self._tables._replace(**{table: new})

    def _collect(self, closed: NDArray[np.int32]) -> Polygons:
        tables = self._tables
        space = tables.region[closed, MAX_VERTICES].astype(np.int64)
        vertices = np.empty((int(space.sum()), 2))
        ring = np.empty(int(space.sum()) // 4 + 1, dtype=np.int64)
        polygon = np.empty(closed.size + 1, dtype=np.int64)
        class_index, (pixels, confidence_count) = (
            tables.region[closed, CLASS_INDEX],
            tables.number[closed][:, [PIXELS, CONFIDENCE_COUNT]].T,
        )
        area, perimeter, confidence_sum = tables.total[closed].T
        counts = write_rings(tables, closed, self._transform, self._flipped, vertices, ring, polygon)
        return Polygons(
            vertices[: counts[0]],
            ring[: counts[1] + 1],
            polygon,
            class_index,
            pixels,
            confidence_count,
            area,
            perimeter,
            confidence_sum,
        )
