"""Source: an open map, what is known about it, and its polygons in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from segkit.errors import GridError, ways
from segkit.io.class_table import Choice, Legend, MapClass
from segkit.io.grid import Grid
from segkit.io.raster import PathLike, grid_of, open_raster
from segkit.runtime.progress import progress
from segkit.vector.batch import Batch
from segkit.vector.geometry import joined
from segkit.vector.reproject import Projection, crs_of
from segkit.vector.tracing.confidence import Confidence
from segkit.vector.tracing.pipeline import Kinds, Options, trace_band
from segkit.vector.tracing.pixel_measures import Squares, ground_of, nowhere

# Each block of a raster is read once, so GDAL need not remember many.
_CACHE_BYTES = 2**24


@dataclass(frozen=True)
class Source:
    """An open map; made by `opened`.

    Parameters
    ----------
    dataset, grid, legend
        The map.
    choice
        Which of its classes are kept.
    squares
        What its pixels measure on the ground.
    confidence
        Its probabilities, if there are any.
    options
        How it is generalised.
    """

    dataset: DatasetReader
    grid: Grid
    legend: Legend
    choice: Choice
    squares: Squares
    confidence: Confidence | None
    options: Options

    def classes(self) -> list[MapClass]:
        """Return those that the map lists and that are kept, whether or not it has any of them."""
        listed = enumerate(self.legend.classes, 1)
        places = [(band, 1) if self.legend.multilabel else (1, one.value) for band, one in listed]
        return [one for one in (self.choice.of(*place) for place in places) if one is not None]

    def projection(self, to_crs: str | None) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], Any]:
        """Return what takes polygons to a CRS, by default the map's, and that CRS.

        Raises
        ------
        UsageError
            The map has no CRS, or `to_crs` is none.
        """
        if to_crs is not None:
            move = Projection(self.grid, to_crs)
            return move, move.crs
        return np.asarray, crs_of(self.grid)

    def batches(self, *, dissolve: bool, show_progress: bool) -> Generator[Batch]:
        """Yield the map's polygons, band by band, in one or more batches each.

        Close the generator before the map, where it may be left early: the map is read in a thread of its own.

        Parameters
        ----------
        dissolve
            Whether each class is one row, for which the band's polygons are held until its end.

        Raises
        ------
        UsageError
            At the end, where a class is wanted that the map does not have.
        """
        rows = self.grid.height * self.dataset.count * (1 if self.confidence is None else 2)
        with progress("vectorize", rows, "rows", show=show_progress) as advance:
            for band in self.dataset.indexes:
                kinds = Kinds(partial(self._choose, band))
                arguments = (self.dataset, band, kinds, self.squares, self.options, self.confidence, advance)
                with closing(trace_band(*arguments)) as traced:
                    if not dissolve:
                        for polygons in traced:
                            yield Batch(polygons, kinds.classes)
                    else:
                        yield from Batch(joined(list(traced)), kinds.classes).dissolved()
        self.choice.check()
        if self.choice.guessed is not None:
            share = f"{kinds.share(self.choice.guessed):.1%} of what holds data"
            warnings.warn(
                f"{self.dataset.name}: value 0 ({share}) was taken for background and left out, as nothing in the map "
                "names it" + ways("keep it (--background)", "name it (--names)"),
                stacklevel=2,
            )

    def _choose(self, band: int, code: int) -> MapClass | None:
        one = None if self.legend.multilabel and code != 1 else self.choice.of(band, code)
        if one is not None and self.confidence is not None:
            self.confidence.check(one)
        return one


@contextmanager
def opened(
    map_path: PathLike,
    options: Options,
    *,
    probabilities: PathLike | None,
    classes: Sequence[str | int] | None,
    background: bool,
    names: PathLike | None,
) -> Iterator[Source]:
    """Open a map; the parameters are those of `polygons`.

    Raises
    ------
    SegkitError
        What `polygons` raises.
    """
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES))
        dataset = stack.enter_context(open_raster(map_path))
        grid, legend = grid_of(dataset), Legend.of(dataset, names)
        confidence = None
        if probabilities is not None:
            chances = stack.enter_context(open_raster(probabilities))
            if difference := grid.difference(grid_of(chances)):
                raise GridError(
                    f"{map_path} and {probabilities} lie on different grids ({difference}); "
                    "name the probabilities that were written with the map"
                )
            confidence = Confidence(chances)
        choice = legend.choose(classes, background=background)
        placed = True
        try:
            squares = ground_of(grid)
        except GridError as error:
            where = "" if grid.georeferenced else "; coordinates are pixels as QGIS shows them: x = column, y = -row"
            warnings.warn(f"{map_path}: area_ha and perim_m stay empty: {error}{where}", stacklevel=4)
            squares, placed = nowhere(), False
        options.check(placed=placed)
        source = Source(dataset, grid, legend, choice, squares, confidence, options)
        if confidence is not None:
            for one in source.classes():
                confidence.check(one)
        yield source
