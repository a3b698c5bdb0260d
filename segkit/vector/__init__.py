"""Convert maps to polygons, as a GeoDataFrame or a file.

`tracing.pipeline` traces a band of the map and yields polygons in batches (`batch`). Class names and colours come from
the map (`segkit.io.class_table`). `formats.writer` writes the file; a new vector format is one row in its table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.io.files import check_distinct
from segkit.io.paths import PathLike
from segkit.runtime.deprecation import renamed_keywords
from segkit.runtime.garbage_collection import pause_collection

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from segkit.io.data_array import AnyMap

__all__ = ["Summary", "polygons", "vectorize"]


@dataclass(frozen=True)
class Summary:
    """Result of `vectorize`.

    Parameters
    ----------
    path
        The file.
    polygons
        {class: number of polygons}; if dissolved, the number of parts.
    hectares
        {class: true area}; None if any `area_ha` is null.
    left_out
        Number of polygons that `max_area` or `min_confidence` left out.
    right_angled, not_right_angled
        Number of objects of the classes of `regularize` with and without a right-angled outline.
    areas_split, objects_split, too_large_to_split
        Number of areas of the classes of `split` that were split, of the objects that they became, and of areas that
        are too large.
    """

    path: Path
    polygons: dict[str, int]
    hectares: dict[str, float] | None
    left_out: int = 0
    right_angled: int = 0
    not_right_angled: int = 0
    areas_split: int = 0
    objects_split: int = 0
    too_large_to_split: int = 0


@renamed_keywords(names="class_names")
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
    protect: Sequence[str | int] = (),
    regularize: Sequence[str | int] = (),
    split: Sequence[str | int] = (),
    split_by: str | None = None,
    split_depth: str | None = None,
    boundary_class: str | int | None = None,
    max_area: str | None = None,
    min_confidence: float | None = None,
    attributes: Sequence[str] = (),
    dissolve: bool = False,
    to_crs: str | None = None,
    class_names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write the polygons of a map to a file. Its extension selects the format (see `formats.writer.FORMATS`).

    The other parameters are those of `polygons`. In formats with layers, a multilabel map becomes one layer per class.
    The file appears under its name only when it is complete. Memory holds unfinished polygons only, or with `dissolve`
    the vertices of all polygons.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown extension, or exists and `overwrite` is false; or its format cannot
        hold the polygons.
    OutputError
        The file could not be written, or reads back differently.
    SegkitError
        As `polygons`.
    """
    with pause_collection():
        from segkit.vector.batch import check_attributes
        from segkit.vector.formats.writer import check_target, open_writer
        from segkit.vector.map_source import open_map
        from segkit.vector.polygon_filter import PolygonFilter
        from segkit.vector.tracing.pipeline import VectorizeOptions

    target, _ = check_target(output, overwrite=overwrite)
    check_distinct([target, target.with_suffix(".qml")], [map_path, probabilities, class_names])
    check_attributes(attributes)
    options = VectorizeOptions.from_text(
        min_area=min_area,
        fill_holes=fill_holes,
        simplify=simplify,
        smooth=smooth,
        protect=protect,
        regularize=regularize,
        split=split,
        split_by=split_by,
        split_depth=split_depth,
        boundary_class=boundary_class,
    )
    wanted = PolygonFilter.from_text(
        max_area=max_area,
        min_confidence=min_confidence,
        min_area=options.min_area,
        has_confidence=probabilities is not None,
    )
    with ExitStack() as stack:
        source = stack.enter_context(
            open_map(
                map_path,
                options,
                wanted,
                probabilities=probabilities,
                classes=classes,
                background=background,
                class_names=class_names,
            )
        )
        layers, multilabel = [one.name for one in source.classes()], source.legend.multilabel
        confidence = source.confidence is not None
        out = stack.enter_context(
            open_writer(
                target,
                source.grid,
                source.legend,
                layers=layers if multilabel else (),
                confidence=confidence,
                attributes=attributes,
                multi=dissolve,
                to_crs=to_crs,
                tags=source.dataset.tags(),
                overwrite=overwrite,
            )
        )
        counts, areas = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0.0)
        batches = stack.enter_context(closing(source.batches(dissolve=dissolve, show_progress=show_progress)))
        for batch in batches:
            for name, count, area in batch.totals_by_class():
                counts[name] = counts.get(name, 0) + count
                areas[name] = areas.get(name, 0.0) + area
            if len(batch):
                table = batch.to_arrow(confidence=confidence, attributes=attributes, projection=out.projection)
                out.write(table, batch.layer if multilabel else None)
    hectares = None if any(map(math.isnan, areas.values())) else areas
    outlines, split_counts = source.outline_counts, source.split_counts
    return Summary(
        target,
        counts,
        hectares,
        wanted.left_out,
        outlines.right_angled,
        outlines.kept,
        split_counts.areas,
        split_counts.objects,
        split_counts.too_large,
    )


@renamed_keywords(names="class_names")
def polygons(
    map_path: AnyMap,
    *,
    probabilities: AnyMap | None = None,
    classes: Sequence[str | int] | None = None,
    background: bool = False,
    min_area: str | None = None,
    fill_holes: str | None = None,
    simplify: str | None = None,
    smooth: bool = False,
    protect: Sequence[str | int] = (),
    regularize: Sequence[str | int] = (),
    split: Sequence[str | int] = (),
    split_by: str | None = None,
    split_depth: str | None = None,
    boundary_class: str | int | None = None,
    max_area: str | None = None,
    min_confidence: float | None = None,
    attributes: Sequence[str] = (),
    dissolve: bool = False,
    to_crs: str | None = None,
    class_names: PathLike | None = None,
    show_progress: bool = False,
) -> GeoDataFrame:
    """Convert a map to polygons: one for each region of pixels of one class that are connected by their sides.

    If classes exclude each other, the polygons are a valid coverage, also after generalisation: no gaps, no overlaps,
    and neighbours share each vertex of their border. Nodata pixels are in no polygon, and their outline does not move.

    Parameters
    ----------
    map_path
        A raster with one band of class values (integers), or a multilabel map of segkit: its path, or a map in memory
        (a DataArray, or the `Prediction` of `segkit.predict`). Classes without a name are called by their value, and an
        unnamed 0 is background.
    probabilities
        A raster on the map's grid with one band per class; band descriptions are class names.
    classes
        Names or values of the classes to return; by default all but background. This does not change their polygons.
    background
        Return the background too.
    min_area
        Regions below this area ("0.5ha", "5000m2", "12px") are merged into the neighbouring class with the longest
        common border, the smallest first, until none is left. All classes of the map count as neighbours. Regions
        surrounded by nodata stay.
    fill_holes
        After that, holes below this area are merged into the polygon around them. Holes that touch nodata stay.
    simplify
        Maximum distance ("10m", "1.5px") by which a border between regions may move to remove vertices. Points where
        three regions meet and the outline of nodata do not move.
    smooth
        Round the corners of borders, within the triangle of the corner and the midpoints of its two edges.
    protect
        Names or values of classes whose regions stay however small they are. Others may be merged into them.
    regularize
        Names or values of classes, such as buildings, whose outlines become right-angled: each edge runs along the main
        direction of its object or across it, long ones also along a diagonal. Outlines move by at most 2 pixels, or by
        `simplify` if that is more and necessary, and areas change by at most 5 %. Objects for which this is impossible,
        those with more than one region around them or another border in the way, and those longer than 1024 pixels keep
        their ordinary outline.
    split
        Names or values of classes of which touching objects become several polygons, by a watershed after `min_area`
        and `fill_holes`. Objects below `min_area` are not split off. Areas that are longer or wider than 1024 pixels
        are not split.
    split_by
        "shape" (the default): objects are split where they are narrow, by the distance to their outline.
        "probabilities": where the probability of their class falls, smoothed with a standard deviation of 1 pixel;
        needs `probabilities`.
    split_depth
        An object is split off if its largest distance to the outline is at least so much above that at the place where
        it touches the next one: "1.5px" (the default) or "2m". By probabilities: the same with the probability, from 0
        to 1; 0.1 by default. Higher values split less.
    boundary_class
        Name or value of a class of boundaries between objects. They are then the connected pixels of their class, and
        each boundary pixel connected with an object becomes part of the nearest one. Not with `split_by` and
        `split_depth`.
    max_area
        Larger polygons are left out, not merged, and their neighbours do not change. The limit is compared with
        `area_ha`, or in pixels with `pixels`, after all of the above and before `dissolve`.
    min_confidence
        Polygons with a lower `mean_conf` are left out in the same way; needs `probabilities`.
    attributes
        Further columns: "centroid" adds `centroid_x` and `centroid_y`, "compactness" adds `compact`.
    dissolve
        Return one row per class, a multipolygon of its regions.
    to_crs
        Target CRS, in any form that PROJ accepts. Areas and lengths remain those on the ground.
    class_names
        A CSV file of class names (see `Legend.from_dataset`).

    Returns
    -------
    GeoDataFrame
        In the map's CRS, in the order in which regions end from top to bottom. Columns: `class_id` (value in the map),
        `class` (name), `area_ha` (true area on the ellipsoid in hectares), `pixels` (number of map pixels, including
        merged regions and filled holes), `perim_m` (true length of the outline in metres, including holes) and, with
        `probabilities`, `mean_conf` (mean probability of the class inside, 0 to 1). For simplified polygons, area and
        length refer to the new outline, pixels and confidence to the original one. Area and length are null, with a
        warning, if the map has no CRS. `centroid_x` and `centroid_y` are the centroid in the map's CRS, given in
        `to_crs`; it may lie outside the polygon. `compact` is 4 pi area / length^2 (Polsby and Popper 1991), 1 for a
        disc.

    Raises
    ------
    MissingFileError, RasterError
        A raster is missing or unreadable.
    DataError
        The raster is not a map, or a class has no band in `probabilities`.
    GridError
        `probabilities` is not on the map's grid, or a polygon has no coordinates in `to_crs`.
    UsageError
        The map does not have one of the `classes`; a size or distance has no unit, or is in metres but the map has no
        CRS; `min_confidence` or `split_by` needs `probabilities` that are not given; or an attribute is unknown.
    """
    import pandas as pd

    from segkit.vector.batch import check_attributes, merge_batches
    from segkit.vector.map_source import open_map
    from segkit.vector.polygon_filter import PolygonFilter
    from segkit.vector.tracing.pipeline import VectorizeOptions

    check_attributes(attributes)
    options = VectorizeOptions.from_text(
        min_area=min_area,
        fill_holes=fill_holes,
        simplify=simplify,
        smooth=smooth,
        protect=protect,
        regularize=regularize,
        split=split,
        split_by=split_by,
        split_depth=split_depth,
        boundary_class=boundary_class,
    )
    wanted = PolygonFilter.from_text(
        max_area=max_area,
        min_confidence=min_confidence,
        min_area=options.min_area,
        has_confidence=probabilities is not None,
    )
    with (
        open_map(
            map_path,
            options,
            wanted,
            probabilities=probabilities,
            classes=classes,
            background=background,
            class_names=class_names,
        ) as source,
        closing(source.batches(dissolve=dissolve, show_progress=show_progress)) as batches,
    ):
        projection, crs = source.projection(to_crs)
        has_confidence = source.confidence is not None
        frames = [
            batch.to_geodataframe(projection, crs, confidence=has_confidence, attributes=attributes)
            for batch in merge_batches(batches)
        ]
    not_empty = [frame for frame in frames if len(frame)] or frames[:1]
    return not_empty[0] if len(not_empty) == 1 else pd.concat(not_empty, ignore_index=True)
