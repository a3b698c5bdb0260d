"""Clean a map as `segkit.vectorize` does: merge small regions into their neighbours, fill small holes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import GridError, UsageError
from segkit.io.class_table import Legend
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer
from segkit.io.files import check_distinct, check_output, temporary_folder
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster, read_grid, read_window
from segkit.maps.class_changes import ClassChanges
from segkit.maps.class_map import whole_rows
from segkit.maps.reclassification import MAX_STRIP_PIXELS, all_classes, map_profile
from segkit.runtime.progress import progress
from segkit.vector.map_source import class_test
from segkit.vector.tracing.pipeline import BandClasses, VectorizeOptions, sieve_band
from segkit.vector.tracing.pixel_measures import PixelMeasures, fit_pixel_measures, unmeasured_pixels
from segkit.vector.tracing.runs import Runs


@dataclass(frozen=True)
class CleanedMap:
    """A cleaned map: its path, and {class: pixels} before and after."""

    path: Path
    pixels_before: dict[str, int]
    pixels: dict[str, int]


def clean(
    map_path: PathLike,
    output: PathLike,
    *,
    min_area: str | None = None,
    fill_holes: str | None = None,
    protect: Sequence[str | int] = (),
    class_names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> CleanedMap:
    """Write a map without small regions and holes. Its polygons are those of `segkit.vectorize` with the same options.

    Parameters
    ----------
    map_path
        A map: of segkit, or any raster of class values. The bands of a multilabel map are cleaned one by one.
    output
        The new map (.tif), on the same grid.
    min_area, fill_holes, protect, class_names
        As for `segkit.polygons`.

    Raises
    ------
    MissingFileError, RasterError, DataError
        The map is missing, unreadable, or not one.
    UsageError, OutputExistsError
        Neither an area is given, an area is invalid, a class does not exist, or the output cannot be written.
    """
    if min_area is None and fill_holes is None:
        raise UsageError("nothing to clean: give the smallest area of regions (min_area) or of holes (fill_holes)")
    target = check_output(output, overwrite=overwrite)
    check_distinct([target], [map_path, class_names])
    options = VectorizeOptions.from_text(min_area=min_area, fill_holes=fill_holes, protect=protect)
    with ExitStack() as stack:
        dataset = stack.enter_context(open_raster(map_path))
        legend, grid = Legend.from_dataset(dataset, class_names), read_grid(dataset)
        measures = _pixel_measures(grid, options)
        is_multilabel = legend.multilabel
        classes = legend.classes if is_multilabel else all_classes(dataset, legend, show_progress=show_progress)
        ClassChanges().apply(classes, str(map_path))  # its codes fit into a map
        profile = map_profile(map_path, dataset, legend, classes, "segkit_cleaned")
        folder = stack.enter_context(temporary_folder(target.parent, target.name))
        rows = grid.height * dataset.count
        advance = stack.enter_context(progress("clean", rows, "rows", show=show_progress))
        strips, before, after = [], np.zeros(len(classes), np.int64), np.zeros(len(classes), np.int64)
        for band in dataset.indexes:
            strip = folder / f"{band}.tif"
            counts = _clean_band(dataset, legend, band, strip, grid, profile, measures, options, advance)
            chosen = [(at, 1 if is_multilabel else one.value) for at, one in enumerate(classes)]
            for at, code in chosen[band - 1 : band] if is_multilabel else chosen:
                before[at], after[at] = counts.get(code, (0, 0))
            strips.append(strip)
        whole = strips[0] if len(strips) == 1 else _stack(strips, folder / "map.tif", grid, profile)
        selection = legend.select([*options.protect]) if options.protect else None
        if selection is not None:
            for one in classes:
                selection.select(1, one.value)
            selection.check()
        build_cog(target, grid, profile, [MapStrip(whole, 0)], overwrite=overwrite)
    names = [one.name for one in classes]
    return CleanedMap(
        target, dict(zip(names, before.tolist(), strict=True)), dict(zip(names, after.tolist(), strict=True))
    )


def _pixel_measures(grid: Grid, options: VectorizeOptions) -> PixelMeasures:
    """Return the areas of pixels; without a CRS, areas in pixels are still possible."""
    try:
        measures, has_areas = fit_pixel_measures(grid), True
    except GridError:
        measures, has_areas = unmeasured_pixels(), False
    options.check(has_areas=has_areas)
    return measures


def _clean_band(
    dataset: DatasetReader,
    legend: Legend,
    band: int,
    path: Path,
    grid: Grid,
    profile: MapProfile,
    measures: PixelMeasures,
    options: VectorizeOptions,
    advance: Callable[[float], None],
) -> dict[int, tuple[int, int]]:
    """Write the cleaned rows of a band; return {code: (pixels before, pixels after)}."""
    band_classes = BandClasses(lambda code: legend.class_of(band, code), class_test(legend, band, options.protect))
    single = MapProfile(profile.dtype, profile.nodata, ("map",), {})
    after: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    with (
        open_strip_writer(path, grid, single) as writer,
        closing(sieve_band(dataset, band, band_classes, measures, options, advance)) as parts,
    ):
        for runs in parts:
            after = np.pad(after, (0, len(band_classes.codes) - after.size))
            valid = runs.class_index >= 0
            after += np.bincount(runs.class_index[valid], runs.lengths()[valid], after.size).astype(np.int64)
            values = np.array([*band_classes.codes, profile.nodata], dtype=profile.dtype)
            writer.write(_pixels(runs, values)[None], Window(0, runs.top, runs.width, runs.height))
    counts = zip(band_classes.codes, band_classes.pixels, after.tolist(), strict=True)
    return {code: (old, new) for code, old, new in counts}


def _pixels(runs: Runs, values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return runs as pixels (H, W); the last value is for those without data."""
    return np.repeat(values[runs.class_index], runs.lengths()).reshape(runs.height, runs.width)


def _stack(strips: Sequence[Path], path: Path, grid: Grid, profile: MapProfile) -> Path:
    """Write single bands as the bands of one file."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_raster(strip)) for strip in strips]
        with open_strip_writer(path, grid, profile) as writer:
            for window in whole_rows(opened[0], MAX_STRIP_PIXELS):
                writer.write(np.concatenate([read_window(each, [1], window) for each in opened]), window)
    return path
