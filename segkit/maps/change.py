"""Compare two maps on one grid: a map of transitions between classes, and a table of their areas."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from segkit.errors import GridError, UsageError
from segkit.io.class_table import MapClass, format_color, map_tags, parse_color
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer
from segkit.io.files import atomic_write, check_distinct, check_output, escape_formula, temporary_folder
from segkit.io.paths import PathLike
from segkit.io.pixel_area import AreaTally
from segkit.maps.class_map import NODATA_INDEX, ClassMap, open_class_map
from segkit.runtime.deprecation import renamed_attribute, renamed_keywords
from segkit.runtime.progress import progress
from segkit.task.classes import MAX_VALUE, map_dtype, map_nodata

_WHITE_SHARE = 0.75  # of white in the colours of classes that did not change
_DEFAULT_COLOR = "#bdbdbd"


@dataclass(frozen=True)
class Change:
    """Areas of the transitions between two maps.

    Parameters
    ----------
    path
        The map of transitions.
    classes_before, classes_after
        Names of the classes in the first and the second map.
    pixels
        int64 (classes before, classes after).
    hectares
        True areas, float64 (classes before, classes after).
    unmatched_pixels
        Pixels with data in only one of the two maps; they are nodata in the map of transitions.
    """

    path: Path
    classes_before: tuple[str, ...]
    classes_after: tuple[str, ...]
    pixels: NDArray[np.int64]
    hectares: NDArray[np.float64]
    unmatched_pixels: int

    old = renamed_attribute("old", "classes_before")
    new = renamed_attribute("new", "classes_after")
    unseen = renamed_attribute("unseen", "unmatched_pixels")

    def table(self) -> pandas.DataFrame:
        """Return hectares: a row for each class before, a column for each class after, and totals of both."""
        table = pandas.DataFrame(self.hectares, index=[*self.classes_before], columns=[*self.classes_after])
        table["total"] = table.sum(axis=1)
        table.loc["total"] = table.sum(axis=0)
        return table.rename_axis("from \\ to")


@renamed_keywords(of="class_name", names="class_names")
def change(
    old: PathLike,
    new: PathLike,
    output: PathLike,
    *,
    class_name: str | None = None,
    class_names: PathLike | None = None,
    table: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Change:
    """Compare two maps and write a map of transitions.

    Parameters
    ----------
    old, new
        Maps on one grid: of segkit, or any rasters of class values. Their classes may differ; classes with the same
        name are the same class.
    output
        The map of transitions. It has a class for each pair of classes, such as "forest" for unchanged forest and
        "forest to clearing". It can be given to `segkit.assess` as a map.
    class_name
        Class to compare in multilabel maps.
    class_names
        A file of class names for both maps, as for `segkit.vectorize`.
    table
        CSV file for the hectares.

    Raises
    ------
    GridError
        The maps lie on different grids, or their CRS is missing or does not locate the pixels on the ground.
    UsageError
        There are more than 65,534 pairs of classes, or an output cannot be written.
    DataError
        One of the rasters is not a map.
    """
    target = check_output(output, overwrite=overwrite)
    table_path = None if table is None else check_output(table, overwrite=overwrite)
    check_distinct([target, table_path], [old, new, class_names])
    with (
        open_class_map(old, class_names=class_names, class_name=class_name) as before,
        open_class_map(new, class_names=class_names, class_name=class_name) as after,
    ):
        if difference := before.grid.describe_difference(after.grid):
            raise GridError(
                f"{old} and {new} lie on different grids ({difference}); warp one to the grid of the other (gdalwarp)"
            )
        shape = len(before.classes), len(after.classes)
        if shape[0] * shape[1] > MAX_VALUE:
            raise UsageError(
                f"{shape[0]} and {shape[1]} classes make {shape[0] * shape[1]} pairs; a map holds up to {MAX_VALUE:,}"
            )
        tags = {"segkit_old": str(old), "segkit_new": str(new)}
        profile = _transition_profile(before.classes, after.classes, tags, f"{old} or {new}")
        with temporary_folder(target.parent, target.name) as folder:
            strip_path = folder / "change.tif"
            tally, unmatched = _write_transitions(strip_path, before, after, profile, show_progress=show_progress)
            build_cog(target, before.grid, profile, [MapStrip(strip_path, 0)], overwrite=overwrite)
        assert tally.hectares is not None  # a class map has true areas
        result = Change(
            target,
            tuple(one.name for one in before.classes),
            tuple(one.name for one in after.classes),
            tally.pixels.reshape(shape),
            tally.hectares.reshape(shape),
            unmatched,
        )
    if table_path is not None:
        with atomic_write(table_path) as part:
            result.table().rename(index=escape_formula, columns=escape_formula).to_csv(part)
    return result


def _write_transitions(
    path: Path, before: ClassMap, after: ClassMap, profile: MapProfile, *, show_progress: bool
) -> tuple[AreaTally, int]:
    """Write the transition of each pixel; return a tally of transitions and the number of unmatched pixels."""
    n_after = len(after.classes)
    tally = AreaTally(len(before.classes) * n_after, before.grid)
    unmatched = 0
    with (
        progress("change", before.grid.height, "rows", show=show_progress) as advance,
        open_strip_writer(path, before.grid, profile) as writer,
    ):
        for strip in before.strips():
            first, second = strip.classes.astype(np.int64), after.read(strip.window)
            in_first, in_second = first != NODATA_INDEX, second != NODATA_INDEX
            valid = in_first & in_second
            unmatched += int((in_first ^ in_second).sum())
            pair = first * n_after + second
            tally.add([pair], valid, strip.window)
            writer.write(np.where(valid, pair + 1, profile.nodata).astype(profile.dtype)[None], strip.window)
            advance(int(strip.window.height))
    return tally, unmatched


def _transition_profile(
    before: tuple[MapClass, ...], after: tuple[MapClass, ...], tags: dict[str, str], owners: str
) -> MapProfile:
    """Return the profile of a map of transitions, which are numbered from 1, by row of the table of transitions.

    Raises
    ------
    UsageError
        Two transitions would have one name, as those of maps that are transitions themselves.
    """
    pairs = [(one, other) for one in before for other in after]
    rows: list[dict[str, Any]] = [
        {
            "value": value,
            "name": one.name if one.name == other.name else f"{one.name} to {other.name}",
            "color": _transition_color(one, other),
        }
        for value, (one, other) in enumerate(pairs, 1)
    ]
    name, number = Counter(row["name"] for row in rows).most_common(1)[0]
    if number > 1:
        raise UsageError(
            f"{number} transitions would be called {name!r}; rename a class of {owners} (segkit reclassify)"
        )
    dtype = map_dtype(len(pairs))
    colors = {row["value"]: row["color"] for row in rows} if dtype == np.uint8 else None
    return MapProfile(dtype, map_nodata(len(pairs)), ("change",), map_tags("multiclass", rows) | tags, colors)


def _transition_color(one: MapClass, other: MapClass) -> str:
    """Return the colour of the class after; a pale one if the class did not change."""
    color = other.color or _DEFAULT_COLOR
    if one.name != other.name:
        return color
    red, green, blue = (round(part + (255 - part) * _WHITE_SHARE) for part in parse_color(color))
    return format_color(red, green, blue)
