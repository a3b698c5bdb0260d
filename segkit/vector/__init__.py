"""Vector: a map as polygons, in a GeoDataFrame or a file.

A band of the map goes through `tracing.pipeline`, which yields its polygons in batches (`batch`); what they are called
is in the map (`segkit.io.class_table`); a format writes them (`formats.writer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.io.files import check_apart
from segkit.io.raster import PathLike

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
        How many polygons each class has, by its name; dissolved, how many parts.
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
    min_area: str | None = None,
    fill_holes: str | None = None,
    simplify: str | None = None,
    smooth: bool = False,
    dissolve: bool = False,
    to_crs: str | None = None,
    names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write a map's polygons to a file, whose ending names the format (see `write.FORMATS`).

    The other parameters are those of `polygons`. A multilabel map becomes one layer per class where the format has
    layers. What is under the final name is complete, or what was there before. Memory holds the polygons that are not
    finished yet, but not those that are; dissolved, it holds the vertices of all.

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
    from segkit.vector.formats.writer import check_target, writing
    from segkit.vector.map_source import opened
    from segkit.vector.tracing.pipeline import Options

    target, _ = check_target(output, overwrite=overwrite)
    check_apart([target, target.with_suffix(".qml")], [map_path, probabilities, names])
    options = Options.of(min_area=min_area, fill_holes=fill_holes, simplify=simplify, smooth=smooth)
    with ExitStack() as stack:
        source = stack.enter_context(
            opened(map_path, options, probabilities=probabilities, classes=classes, background=background, names=names)
        )
        listed, layered = [one.name for one in source.classes()], source.legend.multilabel
        confidence = source.confidence is not None
        out = stack.enter_context(
            writing(
                target,
                source.grid,
                source.legend,
                layers=listed if layered else (),
                confidence=confidence,
                multi=dissolve,
                to_crs=to_crs,
                tags=source.dataset.tags(),
                overwrite=overwrite,
            )
        )
        counts, areas = dict.fromkeys(listed, 0), dict.fromkeys(listed, 0.0)
        batches = stack.enter_context(closing(source.batches(dissolve=dissolve, show_progress=show_progress)))
        for batch in batches:
            for name, number, area in batch.by_class():
                counts[name] = counts.get(name, 0) + number
                areas[name] = areas.get(name, 0.0) + area
            if len(batch):
                out.write(batch.table(confidence=confidence), batch.layer if layered else None)
    return Summary(target, counts, None if any(area != area for area in areas.values()) else areas)  # NaN


def polygons(
    map_path: PathLike,
    *,
    probabilities: PathLike | None = None,
    classes: Sequence[str | int] | None = None,
    background: bool = False,
    min_area: str | None = None,
    fill_holes: str | None = None,
    simplify: str | None = None,
    smooth: bool = False,
    dissolve: bool = False,
    to_crs: str | None = None,
    names: PathLike | None = None,
    show_progress: bool = False,
) -> GeoDataFrame:
    """Return a map's polygons: one for each region of one class that is connected through pixel sides.

    Polygons of a map whose classes exclude each other are a valid coverage: no gaps, no overlaps, and neighbours share
    each vertex of their border, however they are generalised. No data is never a polygon, and its edge does not move.

    Parameters
    ----------
    map_path
        A raster of one band of class codes (whole numbers), or a multilabel map of segkit. Where nothing names its
        classes, they are called by their code and 0 is background.
    probabilities
        A raster on the map's grid with a band per class, described by its name.
    classes
        Names or values of those to keep; by default all but background. It does not change their polygons.
    background
        Whether background is kept too.
    min_area
        Regions that are smaller ("0.5ha", "5000m2", "12px") become part of the neighbouring class with which they share
        the longest border, the smallest region first, until there are none; but where there is only no data beside them
        they stay. Neighbours are those of the whole map, also classes that are not kept.
    fill_holes
        Then holes that are smaller become part of what is around them, whatever they hold. A hole with no data in it
        stays.
    simplify
        How far ("10m", "1.5px") a border between regions may move for the sake of fewer vertices. Where three regions
        meet, it does not move; neither does the edge of what has data.
    smooth
        Whether corners of borders are rounded, within the triangle of a corner and the middles of its two edges.
    dissolve
        Whether each class is one row, a multipolygon of its regions.
    to_crs
        What polygons are transformed to, as PROJ reads it; areas and lengths stay those on the ground.
    names
        A CSV file of class names (see `Legend.of`).

    Returns
    -------
    GeoDataFrame
        In the map's CRS, in the order in which regions end from top to bottom. Columns: `class_id` (the value in the
        map), `class` (name), `area_ha` (true area in hectares on the ellipsoid), `pixels` (their number in the map,
        small regions and holes included that became part of this one), `perim_m` (length of the outline on the ground
        in metres, holes included) and, with `probabilities`, `mean_conf` (mean probability of the class inside, 0 to
        1). Of simplified polygons, area and length are those of the new outline, and pixels and confidence those of
        the old one. Area and length are null, with a warning, where the map has no CRS.

    Raises
    ------
    MissingFileError, RasterError
        A raster is missing or unreadable.
    DataError
        The map is no map, or a class has no band in `probabilities`.
    GridError
        `probabilities` do not lie on the map's grid, or a polygon has no place in `to_crs`.
    UsageError
        The map has no class that `classes` names; a size or a distance has no unit, or is in metres where the map has
        no CRS.
    """
    import pandas as pd

    from segkit.vector.batch import joined
    from segkit.vector.map_source import opened
    from segkit.vector.tracing.pipeline import Options

    options = Options.of(min_area=min_area, fill_holes=fill_holes, simplify=simplify, smooth=smooth)
    with (
        opened(
            map_path, options, probabilities=probabilities, classes=classes, background=background, names=names
        ) as source,
        closing(source.batches(dissolve=dissolve, show_progress=show_progress)) as batches,
    ):
        move, crs = source.projection(to_crs)
        frames = [
            batch.frame(move(batch.shapes()), crs, confidence=source.confidence is not None)
            for batch in joined(batches)
        ]
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
