"""An open map with its classes, pixel measures and probabilities, and its polygons in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import rasterio
from rasterio.io import DatasetReader

from segkit.errors import GridError, UsageError, suggest
from segkit.io.class_table import ClassSelection, Legend, MapClass
from segkit.io.data_array import as_raster
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster, read_grid
from segkit.runtime.progress import progress
from segkit.vector.batch import Batch
from segkit.vector.geometry import concatenate_polygons
from segkit.vector.polygon_filter import PolygonFilter
from segkit.vector.reproject import Projection, crs_of
from segkit.vector.tracing.confidence import Confidence
from segkit.vector.tracing.pipeline import BandClasses, VectorizeOptions, trace_band
from segkit.vector.tracing.pixel_measures import PixelMeasures, fit_pixel_measures, unmeasured_pixels
from segkit.vector.tracing.regularize import OutlineCounts
from segkit.vector.tracing.rings import Polygons
from segkit.vector.tracing.splitter import BOUNDARY, SPLIT, SplitCounts

if TYPE_CHECKING:
    from segkit.io.data_array import AnyMap

# Each block of a raster is read once, so GDAL needs only a small cache.
_CACHE_BYTES = 2**24


@dataclass(frozen=True)
class MapSource:
    """An open map; made by `open_map`.

    Parameters
    ----------
    dataset, grid, legend
        The map.
    selection
        The classes to vectorize.
    pixel_measures
        Areas and side lengths of its pixels on the ground.
    confidence
        Its probabilities, if given.
    options
        Generalisation.
    wanted
        Which of the finished polygons are kept.
    outline_counts
        How many outlines became right-angled so far.
    split_counts
        How many areas were split so far.
    """

    dataset: DatasetReader
    grid: Grid
    legend: Legend
    selection: ClassSelection
    pixel_measures: PixelMeasures
    confidence: Confidence | None
    options: VectorizeOptions
    wanted: PolygonFilter
    outline_counts: OutlineCounts = field(default_factory=OutlineCounts)
    split_counts: SplitCounts = field(default_factory=SplitCounts)

    def classes(self) -> list[MapClass]:
        """Return the selected classes among those that the map lists, whether or not they occur in it."""
        listed = enumerate(self.legend.classes, 1)
        band_values = [(band, 1) if self.legend.multilabel else (1, one.value) for band, one in listed]
        return [one for one in (self.selection.select(*pair) for pair in band_values) if one is not None]

    def projection(self, to_crs: str | None) -> tuple[Projection | None, Any]:
        """Return what transforms polygons to a CRS (None: they stay in the map's), and that CRS.

        Raises
        ------
        UsageError
            The map has no CRS, or `to_crs` is not a valid CRS.
        """
        if to_crs is not None:
            project = Projection(self.grid, to_crs)
            return project, project.crs
        return None, crs_of(self.grid)

    def batches(self, *, dissolve: bool, show_progress: bool) -> Generator[Batch]:
        """Yield the map's polygons, band by band, in one or more batches each.

        Close the generator before the map is closed, because another thread reads the map.

        Parameters
        ----------
        dissolve
            Yield one row per class. All polygons of the band are kept in memory.

        Raises
        ------
        UsageError
            At the end: the map does not have one of the selected classes.
        """
        rows = self.grid.height * self.dataset.count * (1 if self.confidence is None else 2)
        with progress("vectorize", rows, "rows", show=show_progress) as advance:
            for band in self.dataset.indexes:
                band_classes = self._band_classes(band)
                with closing(self._trace(band, band_classes, advance)) as traced:
                    kept = map(self.wanted.apply, traced)
                    if not dissolve:
                        for polygons in kept:
                            yield Batch(polygons, band_classes.classes)
                    else:
                        whole = Batch(concatenate_polygons(list(kept)), band_classes.classes)
                        yield from whole.dissolve() or [whole]  # also without polygons, for their columns
        self.selection.check()
        if self.selection.assumed_background is not None:
            share = f"{band_classes.share(self.selection.assumed_background):.1%} of the valid pixels"
            warnings.warn(
                f"{self.dataset.name}: value 0 ({share}) has no name, so it was taken for background and left out"
                + suggest("keep it (--background)", "name it (--class-names)"),
                stacklevel=2,
            )

    def _band_classes(self, band: int) -> BandClasses:
        options, legend = self.options, self.legend
        boundary = () if options.boundary_class is None else (options.boundary_class,)
        is_boundary, is_split = class_test(legend, band, boundary), class_test(legend, band, options.split)
        # Boundaries are needed to split; afterwards, they belong to the objects.
        is_protected = class_test(legend, band, (*options.protect, *boundary))
        is_regularized = class_test(legend, band, options.regularize)

        def split_kind(code: int) -> int:
            if is_boundary(code) and is_split(code):
                raise UsageError(
                    f"boundary_class {options.boundary_class}: is split itself; split the class of the objects"
                )
            return BOUNDARY if is_boundary(code) else SPLIT if is_split(code) else 0

        return BandClasses(partial(self._select_class, band), is_protected, is_regularized, split_kind)

    def _trace(self, band: int, band_classes: BandClasses, advance: Callable[[float], None]) -> Generator[Polygons]:
        return trace_band(
            self.dataset,
            band,
            band_classes,
            self.pixel_measures,
            self.options,
            self.confidence,
            advance,
            outline_counts=self.outline_counts,
            split_counts=self.split_counts,
        )

    def _select_class(self, band: int, code: int) -> MapClass | None:
        one = None if self.legend.multilabel and code != 1 else self.selection.select(band, code)
        if one is not None and self.confidence is not None:
            self.confidence.check(one)
        return one


def class_test(legend: Legend, band: int, classes: Sequence[str]) -> Callable[[int], bool]:
    """Return a function that says whether a code of a band is that of one of these classes.

    Raises
    ------
    UsageError
        The map cannot have such a class.
    """
    if not classes:
        return lambda code: False
    selection = legend.select(classes)

    def is_one(code: int) -> bool:
        return (code == 1 or not legend.multilabel) and selection.select(band, code) is not None

    return is_one


@contextmanager
def open_map(
    map_path: AnyMap,
    options: VectorizeOptions,
    wanted: PolygonFilter,
    *,
    probabilities: AnyMap | None,
    classes: Sequence[str | int] | None,
    background: bool,
    class_names: PathLike | None,
) -> Iterator[MapSource]:
    """Open a map; the parameters are those of `polygons`.

    Raises
    ------
    SegkitError
        As `polygons`.
    """
    map_path = as_raster(map_path)
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES))
        dataset = stack.enter_context(open_raster(map_path))
        grid, legend = read_grid(dataset), Legend.from_dataset(dataset, class_names)
        confidence = None
        if probabilities is not None:
            probability_dataset = stack.enter_context(open_raster(as_raster(probabilities)))
            if difference := grid.describe_difference(read_grid(probability_dataset)):
                raise GridError(
                    f"{map_path} and {probabilities} lie on different grids ({difference}); "
                    "give the probabilities that were written with the map"
                )
            confidence = Confidence(probability_dataset)
        selection = legend.select(classes, background=background)
        if options.boundary_class is not None and legend.multilabel:
            raise UsageError(
                f"boundary_class {options.boundary_class}: the classes of {map_path} overlap, so none lies between the "
                "objects of another one; leave it out"
            )
        has_areas = True
        try:
            pixel_measures = fit_pixel_measures(grid)
        except GridError as error:
            where = "" if grid.georeferenced else "; coordinates are pixels as in QGIS: x = column, y = -row"
            warnings.warn(f"{map_path}: area_ha and perim_m are empty: {error}{where}", stacklevel=5)
            pixel_measures, has_areas = unmeasured_pixels(), False
        options.check(has_areas=has_areas, has_probabilities=confidence is not None)
        wanted.check(has_areas=has_areas)
        source = MapSource(dataset, grid, legend, selection, pixel_measures, confidence, options, wanted)
        if confidence is not None:
            for one in source.classes():
                confidence.check(one)
        yield source
