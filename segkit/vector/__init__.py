"""Vector: a map as polygons, in a GeoDataFrame or a file.

A band of the map is read as runs (`runs`), runs are joined into regions and walked around (`regions`), the rings become
polygons with true areas (`geometry`) and the confidence inside them (`confidence`), and a format writes them (`write`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import GridError
from segkit.files import check_output
from segkit.progress import progress
from segkit.raster import PathLike, grid_of, open_raster
from segkit.vector.legend import Legend, MapClass
from segkit.vector.write import format_of, write_polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["Summary", "polygons", "vectorize"]


@dataclass(frozen=True)
class Summary:
    """What `vectorize` wrote.

    Parameters
    ----------
    path
        The file.
    polygons
        How many polygons each class has, by its name.
    hectares
        Their true area, or None where an `area_ha` is null.
    """

    path: Path
    polygons: dict[str, int]
    hectares: dict[str, float] | None


def vectorize(
    map_path: PathLike,
    output: PathLike,
    *,
    probabilities: PathLike | None = None,
    classes: Sequence[str | int] | None = None,
    background: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write a map's polygons to a file, whose ending names the format (see `write.FORMATS`).

    The other parameters are those of `polygons`. A multilabel map becomes one layer per class where the format has
    layers. What is under the final name is complete, or what was there before.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown ending, or is there and `overwrite` is false; or its format cannot
        hold the polygons.
    OutputError
        The file could not be written, or does not read back.
    SegkitError
        What `polygons` raises.
    """
    target = check_output(output, overwrite=overwrite)
    format_of(target)
    frame, kept, multilabel = _vectorized(map_path, probabilities, classes, background, show_progress)
    names = list(dict.fromkeys(one.name for one in kept))
    write_polygons(frame, target, layers=names if multilabel else ())
    own = {name: frame[frame["class"] == name] for name in names}
    areas = {name: float(rows["area_ha"].sum()) for name, rows in own.items()}
    counts = {name: len(rows) for name, rows in own.items()}
    return Summary(target, counts, areas if frame["area_ha"].notna().all() else None)


def polygons(
    map_path: PathLike,
    *,
    probabilities: PathLike | None = None,
    classes: Sequence[str | int] | None = None,
    background: bool = False,
    show_progress: bool = False,
) -> GeoDataFrame:
    """Return a map's polygons: one for each region of one class that is connected through pixel sides.

    Polygons of a map whose classes exclude each other are a valid coverage: no gaps, no overlaps, and neighbours share
    each vertex of their border. No data is never a polygon.

    Parameters
    ----------
    map_path
        A raster of one band of class codes (whole numbers), or a multilabel map of segkit. Where segkit did not make
        it, classes are called by their code and 0 is background.
    probabilities
        A raster on the map's grid with a band per class, described by its name.
    classes
        Names or values of those to keep; by default all but background.
    background
        Whether background is kept too.

    Returns
    -------
    GeoDataFrame
        In the map's CRS. Columns: `class_id` (the value in the map), `class` (name), `area_ha` (true area in hectares
        on the ellipsoid; null, with a warning, where the map has no CRS), `pixels` (their number) and, with
        `probabilities`, `mean_conf` (mean probability of the class inside, 0 to 1).

    Raises
    ------
    MissingFileError, RasterError
        A raster is missing or unreadable.
    DataError
        The map is no map, or a class has no band in `probabilities`.
    GridError
        `probabilities` do not lie on the map's grid.
    UsageError
        The map has no class that `classes` names.
    """
    return _vectorized(map_path, probabilities, classes, background, show_progress)[0]


def _vectorized(
    map_path: PathLike,
    probabilities: PathLike | None,
    classes: Sequence[str | int] | None,
    background: bool,
    show_progress: bool,
) -> tuple[GeoDataFrame, list[MapClass], bool]:
    """Return the polygons, the classes kept (also those without a polygon), and whether they may overlap."""
    import geopandas

    from segkit.vector.confidence import mean_confidence
    from segkit.vector.geometry import hectares, polygons_of
    from segkit.vector.regions import label, trace
    from segkit.vector.runs import read_runs

    with ExitStack() as stack:
        source = stack.enter_context(open_raster(map_path))
        grid, legend = grid_of(source), Legend.of(source)
        chances = stack.enter_context(open_raster(probabilities)) if probabilities is not None else None
        if chances is not None and (difference := grid.difference(grid_of(chances))):
            raise GridError(
                f"{map_path} and {probabilities} lie on different grids ({difference}); "
                "name the probabilities that were written with the map"
            )
        rows = grid.height * source.count * (1 if chances is None else 2)
        advance = stack.enter_context(progress("vectorize", rows, "rows", show=show_progress))
        kept: list[MapClass] = []
        parts: list[dict[str, NDArray[Any]]] = []
        for band in source.indexes:
            runs = read_runs(source, band, advance)
            table = legend.select(legend.in_band(band, np.unique(runs.code)), classes, background=background)
            codes = sorted(table)
            own = [table[code] for code in codes]
            regions = label(runs, runs.kinds(codes))
            rings = trace(runs, regions)
            try:
                areas = hectares(rings, grid.transform, grid.crs)
            except GridError as error:
                warnings.warn(f"{map_path}: area_ha stays empty: {error}", stacklevel=3)
                areas = np.full(regions.kind.size, np.nan)
            part = {
                "class_id": np.array([one.value for one in own], dtype=np.int32)[regions.kind],
                "class": np.array([one.name for one in own], dtype=object)[regions.kind],
                "area_ha": areas,
                "pixels": regions.pixels,
            }
            if chances is not None:
                part["mean_conf"] = mean_confidence(chances, runs, regions, own, advance)
            parts.append(part | {"geometry": polygons_of(rings, grid.transform)})
            kept += own
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    frame = geopandas.GeoDataFrame(columns, crs=grid.crs).astype({"class": "str"})
    return frame, kept, legend.multilabel
