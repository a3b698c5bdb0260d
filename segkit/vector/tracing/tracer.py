"""Polygons of runs: regions, the borders between them (arcs), and the rings that these make up.

`Tracer` takes a map row by row and looks at two rows at a time. A *corner* is a point of the pixel grid, (column, row),
where the border between regions does not run straight on. Where three or four edges meet it is a *node*; an *arc* runs
from node to node, or around in a loop, and has one region on either side. Arcs are kept once, so neighbours share each
vertex of their border and polygons are an exact coverage; points between corners lie on straight edges and are left
out.

Memory holds what is open: regions that reach into the last row, the arcs around them, and no more. A region is done
when a row has none of it.
"""

from __future__ import annotations

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segkit.vector.tracing.confidence import Chances
from segkit.vector.tracing.generalize import Generalisation
from segkit.vector.tracing.pixel_measures import Measures, Squares, measure_runs
from segkit.vector.tracing.rings import Polygons, write_rings
from segkit.vector.tracing.runs import Runs
from segkit.vector.tracing.sweep import sweep_rows
from segkit.vector.tracing.tables import BAND_ROWS, COLUMNS, KIND, KNOWN, OF_REGION, OUTSIDE, PIXELS, SPACE, Tables


class Tracer:
    """Makes polygons of runs, which come from top to bottom.

    Parameters
    ----------
    width
        Pixels in a row.
    transform
        From (column, row) to CRS coordinates.
    squares
        What pixels measure on the ground.
    """

    def __init__(
        self, width: int, transform: Affine, squares: Squares, generalisation: Generalisation | None = None
    ) -> None:
        self._width = width
        self._transform = np.array(transform[:6], dtype=np.float64)
        self._turned = transform.determinant > 0
        self._squares = squares
        self._form = generalisation or Generalisation()
        sizes = {name: np.empty((0, columns), dtype=np.int32) for name, columns in COLUMNS.items()}
        free = np.array([-1, 0] * len(COLUMNS), dtype=np.int64)
        straight = np.empty((0, 8), dtype=np.int32)
        self._tables = Tables(
            **sizes, straight=straight, number=np.empty((0, 3), dtype=np.int64), total=np.empty((0, 3)), free=free
        )
        # The last row seen: runs, their labels, and how far each lies along its lower side.
        outside = np.full(1, OUTSIDE, dtype=np.int32)
        self._last = np.zeros(1, dtype=np.int32), outside, outside, np.zeros(1)
        # The vertex that hangs in each column, from which an edge leads down.
        self._hanging = np.full(width + 1, -1, dtype=np.int32)
        words = (width + 64) // 64 if self._form.wanted else 0
        self._bits = np.zeros((BAND_ROWS + 1 if words else 0, words), dtype=np.uint64)

    def trace(self, runs: Runs, wanted: NDArray[np.bool_], chances: Chances | None = None) -> Polygons:
        """Take the next rows and return the polygons that are done.

        They are in the order of the rows, and then of the columns, where they end; however the rows are parted.

        Parameters
        ----------
        wanted
            Whether polygons of a kind are.
        chances
            What is known about the probabilities in each run.
        """
        first, kind, label, lower = self._last
        measures = measure_runs(self._squares, runs)
        row = np.concatenate(([0], runs.row + first.size))
        first, kind = np.concatenate((first, runs.first)), np.concatenate((kind, runs.kind))
        label = np.concatenate((label, np.empty(runs.first.size, dtype=np.int32)))
        padding = np.full(row[1], np.nan)
        measures = Measures(
            np.concatenate((padding, measures.area)),
            np.concatenate((padding, measures.left)),
            np.concatenate((padding, measures.upper)),
            np.concatenate((lower, measures.lower)),
            measures.end,
        )
        chances = chances or Chances(np.empty(0), np.empty(0, dtype=np.int64))
        # Corners lie where a run starts in the row above or below, and at the end of the row.
        corners = 2 * first.size + runs.height
        self._reserve(vertex=4 * corners, arc=4 * corners, node=corners, region=first.size)
        form = self._form
        closed = np.empty(self._tables.free[2 * OF_REGION + 1] + first.size, dtype=np.int32)
        count = sweep_rows(
            self._tables, self._hanging, self._bits, self._squares, measures, row, first, kind, label,
            chances.total, chances.known, wanted, runs.top, runs.width, form.wanted, form.smooth,
            -1.0 if form.tolerance is None else form.tolerance, form.metres, closed,
        )  # fmt: skip
        last = slice(row[-2], row[-1])
        self._last = first[last].copy(), kind[last].copy(), label[last].copy(), measures.lower[last].copy()
        return self._written(closed[:count])

    def finish(self, height: int) -> Polygons:
        """Return the polygons that reach the map's last row, of `height`."""
        end = Runs(
            height, np.array([0, 1]), np.zeros(1, dtype=np.int32), np.full(1, OUTSIDE, dtype=np.int32), self._width
        )
        return self.trace(end, np.empty(0, dtype=bool))

    def _reserve(self, **more: int) -> None:
        """Make room for more rows in the tables."""
        for number, name in enumerate(COLUMNS):
            used = self._tables.free[2 * number + 1]
            beside = {"region": ("number", "total"), "node": ("straight",) if self._form.wanted else ()}
            for table in (name, *beside.get(name, ())):
                old = getattr(self._tables, table)
                if used + more[name] > len(old):
                    # Twice what is needed, but memory that is not written to costs nothing.
                    new = np.empty((2 * (used + more[name]), old.shape[1]), dtype=old.dtype)
                    new[:used] = old[:used]
                    self._tables = self._tables._replace(**{table: new})

    def _written(self, closed: NDArray[np.int32]) -> Polygons:
        tables = self._tables
        space = tables.region[closed, SPACE].astype(np.int64)
        vertices = np.empty((int(space.sum()), 2))
        ring = np.empty(int(space.sum()) // 4 + 1, dtype=np.int64)
        polygon = np.empty(closed.size + 1, dtype=np.int64)
        kind, (pixels, known) = tables.region[closed, KIND], tables.number[closed][:, [PIXELS, KNOWN]].T
        area, perimeter, chance = tables.total[closed].T
        counts = write_rings(tables, closed, self._transform, self._turned, vertices, ring, polygon)
        return Polygons(
            vertices[: counts[0]], ring[: counts[1] + 1], polygon, kind, pixels, known, area, perimeter, chance
        )
