"""Sample: from a map and its filled points, or a count matrix, to areas with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from segkit.assess.estimation import Estimate, Stratum, estimate, estimate_points
from segkit.assess.points import CLASSES, DESIGN, STRATA, read_points, read_table
from segkit.assess.sampling import point_hectares
from segkit.errors import DataError
from segkit.io.files import existing
from segkit.io.raster import PathLike
from segkit.maps.class_map import ClassMap, class_map


def estimate_sample(
    map_path: PathLike,
    points: PathLike,
    *,
    of: str | None = None,
    names: PathLike | None = None,
    correct_finite: bool = False,
) -> Estimate:
    """Estimate accuracy and areas of a map from its points.

    Parameters
    ----------
    map_path
        The map that the sample was drawn from.
    points
        What `segkit.assess.design` wrote, filled: ``ref_class`` holds names or values of classes. Or points from
        elsewhere with that column, drawn at random in each class of the map (or in all of it): their class is read from
        the map, whose classes are the strata. Or a count matrix as CSV: a row for each map class, a column for each
        reference class, both named, in any order.
    of, names
        As for `segkit.assess.design`.
    correct_finite
        Whether variances get the finite-population correction.

    Raises
    ------
    MissingFileError
        A file is not there.
    DataError
        Points that do not belong to the map, lie where it holds no data, or name a class that it does not have; a
        stratum without a filled point.
    """
    file = existing(points, "file of points")
    if file.suffix.lower() == ".csv":
        with class_map(map_path, names=names, of=of) as source:
            return _of_counts(source, file, correct_finite=correct_finite)
    filled = read_points(file)
    drawn = read_table(file, DESIGN) if file.suffix.lower() == ".gpkg" else None
    with class_map(map_path, names=names, of=of) as source:
        if drawn is not None:
            return _of_design(source, file, filled, drawn, correct_finite=correct_finite)
        return _of_points(source, file, filled, correct_finite=correct_finite)


def _of_design(
    source: ClassMap, file: Path, filled: pandas.DataFrame, drawn: pandas.DataFrame, *, correct_finite: bool
) -> Estimate:
    """Estimate from points that `design` drew, whatever is left of their file's order and rows."""
    if "id" not in filled or filled["id"].duplicated().any() or not filled["id"].isin(drawn["id"]).all():
        raise DataError(f"{file}: its points' ids are not those that were drawn; keep the column id as it was")
    strata, areas = read_table(file, STRATA), read_table(file, CLASSES)
    if strata is None or areas is None:
        raise DataError(f"{file}: its tables {STRATA} and {CLASSES} are gone; draw the sample again")
    rows, columns = drawn["row"].to_numpy(), drawn["col"].to_numpy()
    outside = (rows >= source.grid.height) | (columns >= source.grid.width)
    if outside.any() or source.at(rows, columns) != drawn["map_class"].tolist():
        raise DataError(f"{file}: its points were drawn from another map; name that one, or draw a sample of this one")
    known = {
        row["stratum"]: Stratum(
            row["stratum"],
            row["hectares"],
            row["pixels"] if correct_finite else None,
            None if pandas.isna(row["map_class"]) else row["map_class"],
        )
        for row in strata.to_dict("records")
        if row["pixels"]
    }
    points = drawn.merge(filled[["id", "ref_class"]], on="id", how="left")
    points["ref_class"] = _by_name(points["ref_class"], source.aliases(), file)
    classes = areas["class"].tolist()
    mapped = dict(zip(classes, areas["mapped_ha"].tolist(), strict=True))
    return estimate_points(
        points, known, classes={name: name for name in classes}, mapped_area=mapped, weight="pixel_ha"
    )


def _of_points(source: ClassMap, file: Path, filled: pandas.DataFrame, *, correct_finite: bool) -> Estimate:
    """Estimate from points anywhere; the map's classes are the strata."""
    shapes = getattr(filled, "geometry", None)
    if shapes is None or shapes.isna().any() or not (shapes.geom_type == "Point").all():
        raise DataError(f"{file}: holds rows without a point; every row is one")
    if shapes.crs is None:
        raise DataError(f"{file}: has no CRS; declare the one that its coordinates are in")
    placed = shapes.to_crs(source.grid.crs)
    to_pixel = ~source.grid.transform
    columns, rows = (
        to_pixel.a * placed.x + to_pixel.b * placed.y + to_pixel.c,
        to_pixel.d * placed.x + to_pixel.e * placed.y + to_pixel.f,
    )
    columns, rows = np.floor(columns.to_numpy()).astype(np.int64), np.floor(rows.to_numpy()).astype(np.int64)
    inside = (rows >= 0) & (columns >= 0) & (rows < source.grid.height) & (columns < source.grid.width)
    if not inside.all():
        raise DataError(f"{file}: {int((~inside).sum())} of its {len(inside)} points lie outside of the map")
    shown = source.at(rows, columns)
    if missing := shown.count(None):
        raise DataError(f"{file}: {missing} of its {len(shown)} points lie where the map holds no data; remove them")
    hectares = point_hectares(source.grid, rows.tolist(), columns.tolist())
    points = pandas.DataFrame({"stratum": shown, "map_class": shown, "pixel_ha": hectares})
    points["ref_class"] = _by_name(filled["ref_class"].reset_index(drop=True), source.aliases(), file)
    known = {
        part.name: Stratum(part.name, part.hectares, part.pixels if correct_finite else None, part.name)
        for part in source.parts()
    }
    areas = source.named()
    return estimate_points(points, known, classes={name: name for name in areas}, mapped_area=areas, weight="pixel_ha")


def _of_counts(source: ClassMap, file: Path, *, correct_finite: bool) -> Estimate:
    """Estimate from a count matrix whose rows and columns are named."""
    try:
        table = pandas.read_csv(file, index_col=0)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no table of counts ({error})") from error
    aliases, areas = source.aliases(), source.named()
    for said in (table.index, table.columns):
        if strange := [str(one) for one in said if str(one).strip() not in aliases]:
            raise DataError(f"{file}: {strange[0]!r} is no class of the map; it has {', '.join(areas)}")
    table.index = [aliases[str(one).strip()] for one in table.index]
    table.columns = [aliases[str(one).strip()] for one in table.columns]
    if not table.index.is_unique or not table.columns.is_unique:
        raise DataError(f"{file}: a class has two rows or two columns; give one each")
    counts = table.reindex(index=list(areas), columns=list(areas), fill_value=0)
    pixels = {part.name: part.pixels for part in source.parts()}
    return estimate(
        counts.to_numpy(),
        list(areas.values()),
        classes=list(areas),
        population=[pixels.get(name, 0) for name in areas] if correct_finite else None,
    )


def _by_name(said: pandas.Series, aliases: dict[str, str], file: Path) -> pandas.Series:
    """Return reference classes by name; None where nothing was said."""

    def name(one: Any) -> str | None:
        text = "" if pandas.isna(one) else str(one).strip()
        # A column of numbers with gaps holds 1.0 for 1.
        text = text.removesuffix(".0") if isinstance(one, float) else text
        if text and text not in aliases:
            classes = ", ".join(dict.fromkeys(aliases.values()))
            raise DataError(f"{file}: ref_class is {text!r} at some point; the classes are {classes}")
        return aliases[text] if text else None

    return said.map(name)
