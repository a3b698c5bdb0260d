"""Estimate areas and accuracies from a map and interpreted points, or from a count matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from segkit.assess.estimation import Estimate, Stratum, estimate, estimate_points
from segkit.assess.points import CLASSES, DESIGN, STRATA, read_points, read_table
from segkit.assess.sampling import point_hectares
from segkit.errors import DataError, UsageError
from segkit.io.files import require_file
from segkit.io.paths import PathLike
from segkit.maps.class_map import ClassMap, open_class_map
from segkit.runtime.deprecation import renamed_keywords


@renamed_keywords(of="class_name", names="class_names", correct_finite="finite_population_correction")
def estimate_sample(
    map_path: PathLike,
    points: PathLike,
    *,
    field: str = "ref_class",
    crs: str | None = None,
    class_name: str | None = None,
    class_names: PathLike | None = None,
    finite_population_correction: bool = False,
) -> Estimate:
    """Estimate accuracy and areas of a map from a sample.

    Parameters
    ----------
    map_path
        The map from which the sample was drawn.
    points
        One of three files. The output of `segkit.assess.design`, with names or values of classes in ``ref_class``. Or
        other points with that column, drawn at random in each class of the map or in the whole map: the strata are the
        map's classes. Or, without `crs`, a count matrix as CSV: a row per map class, a column per reference class, both
        with names, in any order.
    field
        Column with the reference class, in the place of ``ref_class``.
    crs
        Of a CSV file of points, with columns x and y or similar: CRS of the coordinates, such as "EPSG:4326".
    class_name, class_names
        As for `segkit.assess.design`.
    finite_population_correction
        Whether to apply it to the variances. It matters if a large part of a stratum was sampled.

    Raises
    ------
    MissingFileError
        A file does not exist.
    DataError
        Points were drawn from another map, lie on nodata, or have a class that the map does not have; or a stratum has
        no point with a reference class.
    """
    file = require_file(points, "file of points")
    correct = finite_population_correction
    is_table = file.suffix.lower() == ".csv"
    if crs is not None and not is_table:
        raise UsageError(f"{file}: only a .csv file of points needs a CRS; leave it out")
    if is_table and crs is None:
        if field != "ref_class":
            raise UsageError(
                f"{file}: a .csv file of points needs the CRS of its coordinates; add --crs EPSG:4326, or another"
            )
        with open_class_map(map_path, class_names=class_names, class_name=class_name) as source:
            return _estimate_from_counts(source, file, correct=correct)
    interpreted = read_points(file, field, crs)
    drawn = read_table(file, DESIGN) if file.suffix.lower() == ".gpkg" else None
    with open_class_map(map_path, class_names=class_names, class_name=class_name) as source:
        if drawn is not None:
            return _estimate_from_design(source, file, interpreted, drawn, correct=correct)
        return _estimate_from_points(source, file, interpreted, correct=correct)


def _estimate_from_design(
    source: ClassMap, file: Path, interpreted: pandas.DataFrame, drawn: pandas.DataFrame, *, correct: bool
) -> Estimate:
    """Estimate from points that `design` drew; the interpreter may have reordered or deleted rows."""
    ids = interpreted.get("id")
    if ids is None or ids.duplicated().any() or not ids.isin(drawn["id"]).all():
        raise DataError(f"{file}: the ids of its points are not those that were drawn; do not change the column id")
    strata, areas = read_table(file, STRATA), read_table(file, CLASSES)
    if strata is None or areas is None:
        raise DataError(f"{file}: its tables {STRATA} and {CLASSES} are missing; draw the sample again")
    rows, columns = drawn["row"].to_numpy(), drawn["col"].to_numpy()
    outside = (rows >= source.grid.height) | (columns >= source.grid.width)
    if outside.any() or source.class_names_at(rows, columns) != drawn["map_class"].tolist():
        raise DataError(f"{file}: its points were drawn from another map; give that map, or draw a sample of this one")
    by_name = {
        row["stratum"]: Stratum(
            row["stratum"],
            row["hectares"],
            row["pixels"] if correct else None,
            None if pandas.isna(row["map_class"]) else row["map_class"],
        )
        for row in strata.to_dict("records")
        if row["pixels"]
    }
    points = drawn.merge(interpreted[["id", "ref_class"]], on="id", how="left")
    points["ref_class"] = _class_names(points["ref_class"], source.names_by_alias(), file)
    classes = areas["class"].tolist()
    mapped = dict(zip(classes, areas["mapped_ha"].tolist(), strict=True))
    return estimate_points(
        points, by_name, classes={name: name for name in classes}, mapped_area=mapped, weight="pixel_ha"
    )


def _estimate_from_points(source: ClassMap, file: Path, interpreted: pandas.DataFrame, *, correct: bool) -> Estimate:
    """Estimate from other points; the strata are the map's classes."""
    geometries = getattr(interpreted, "geometry", None)
    if geometries is None or geometries.isna().any() or not (geometries.geom_type == "Point").all():
        raise DataError(f"{file}: holds rows without a point; every row must have a point geometry")
    if geometries.crs is None:
        raise DataError(f"{file}: has no CRS; assign the CRS of its coordinates")
    on_map = geometries.to_crs(source.grid.crs)
    to_pixel = ~source.grid.transform
    columns, rows = (
        to_pixel.a * on_map.x + to_pixel.b * on_map.y + to_pixel.c,
        to_pixel.d * on_map.x + to_pixel.e * on_map.y + to_pixel.f,
    )
    columns, rows = np.floor(columns.to_numpy()).astype(np.int64), np.floor(rows.to_numpy()).astype(np.int64)
    inside = (rows >= 0) & (columns >= 0) & (rows < source.grid.height) & (columns < source.grid.width)
    if not inside.all():
        raise DataError(f"{file}: {int((~inside).sum())} of its {len(inside)} points lie outside of the map")
    map_classes = source.class_names_at(rows, columns)
    if nodata := map_classes.count(None):
        raise DataError(f"{file}: {nodata} of its {len(map_classes)} points lie on nodata of the map; remove them")
    hectares = point_hectares(source.grid, rows.tolist(), columns.tolist())
    points = pandas.DataFrame({"stratum": map_classes, "map_class": map_classes, "pixel_ha": hectares})
    points["ref_class"] = _class_names(interpreted["ref_class"].reset_index(drop=True), source.names_by_alias(), file)
    strata = {
        part.name: Stratum(part.name, part.hectares, part.pixels if correct else None, part.name)
        for part in source.class_totals()
    }
    areas = source.hectares_by_class()
    return estimate_points(points, strata, classes={name: name for name in areas}, mapped_area=areas, weight="pixel_ha")


def _estimate_from_counts(source: ClassMap, file: Path, *, correct: bool) -> Estimate:
    """Estimate from a count matrix whose rows and columns have names."""
    try:
        table = pandas.read_csv(file, index_col=0)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not a table of counts ({error})") from error
    aliases, areas = source.names_by_alias(), source.hectares_by_class()
    for labels in (table.index, table.columns):
        if unknown := [str(label) for label in labels if str(label).strip() not in aliases]:
            raise DataError(f"{file}: {unknown[0]!r} is not a class of the map; the classes are {', '.join(areas)}")
    table.index = [aliases[str(label).strip()] for label in table.index]
    table.columns = [aliases[str(label).strip()] for label in table.columns]
    if not table.index.is_unique or not table.columns.is_unique:
        raise DataError(f"{file}: a class has two rows or two columns; give one row and one column per class")
    counts = table.reindex(index=list(areas), columns=list(areas), fill_value=0)
    pixels = {part.name: part.pixels for part in source.class_totals()}
    return estimate(
        counts.to_numpy(),
        list(areas.values()),
        classes=list(areas),
        population=[pixels.get(name, 0) for name in areas] if correct else None,
    )


def _class_names(values: pandas.Series, aliases: dict[str, str], file: Path) -> pandas.Series:
    """Return names of classes for names or codes; None for empty values."""

    def name(value: Any) -> str | None:
        text = "" if pandas.isna(value) else str(value).strip()
        # A column of integers with empty values is read as floats: 1.0 for 1.
        text = text.removesuffix(".0") if isinstance(value, float) else text
        if text and text not in aliases:
            classes = ", ".join(dict.fromkeys(aliases.values()))
            raise DataError(f"{file}: ref_class of a point is {text!r}; the classes are {classes}")
        return aliases[text] if text else None

    found = values.map(name)
    if found.isna().all():
        raise DataError(f"{file}: no point has a reference class yet; interpret the points, and fill in their class")
    return found
