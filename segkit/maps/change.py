"""Change: from two maps of one grid to a map of transitions, and a table of their hectares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from segkit.errors import GridError, UsageError
from segkit.io.class_table import MapClass
from segkit.io.cog import MapFormat, Part, assemble, writing_part
from segkit.io.files import cell, check_apart, check_output, scratch, staged
from segkit.io.pixel_area import pixel_hectares
from segkit.io.raster import PathLike
from segkit.maps.class_map import NOWHERE, ClassMap, class_map
from segkit.runtime.progress import progress

_NODATA = {np.dtype("uint8"): 255, np.dtype("uint16"): 65535}
_FADED = 0.75  # how much of white the colour of what stays gets
_NAMELESS = "#bdbdbd"


@dataclass(frozen=True)
class Change:
    """What changed between two maps.

    Parameters
    ----------
    path
        The map of transitions.
    old, new
        Names of the classes of either map that occur.
    pixels
        int64 (old, new).
    hectares
        Their true area, float64 (old, new).
    unseen
        Pixels for which one of the maps holds data, and the other none: they are no data.
    """

    path: Path
    old: tuple[str, ...]
    new: tuple[str, ...]
    pixels: NDArray[np.int64]
    hectares: NDArray[np.float64]
    unseen: int

    def table(self) -> pandas.DataFrame:
        """Return hectares: a row for each old class, a column for each new one, and the sums of both."""
        table = pandas.DataFrame(self.hectares, index=[*self.old], columns=[*self.new])
        table["total"] = table.sum(axis=1)
        table.loc["total"] = table.sum(axis=0)
        return table.rename_axis("from \\ to")


def change(
    old: PathLike,
    new: PathLike,
    output: PathLike,
    *,
    of: str | None = None,
    names: PathLike | None = None,
    table: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Change:
    """Make a map of what became of what.

    Parameters
    ----------
    old, new
        Maps on one grid, by segkit or any others of class codes. Their classes need not be the same; classes of one
        name are one class.
    output
        The map of transitions: a class for each pair that may occur, such as "forest" where it stayed and
        "forest to clearing" where it did not. `segkit.assess` takes it as a map.
    of
        The class that is compared, where classes overlap.
    names
        A file of class names, as for `segkit.vectorize`, for both maps.
    table
        Where to write the hectares as CSV.

    Raises
    ------
    GridError
        The maps lie on different grids, or have no place on the ground.
    UsageError
        There are more pairs than a map can hold, or an output that cannot be written.
    DataError
        One of them is no map.
    """
    target = check_output(output, overwrite=overwrite)
    beside = None if table is None else check_output(table, overwrite=overwrite)
    check_apart([target, beside], [old, new, names])
    with class_map(old, names=names, of=of) as before, class_map(new, names=names, of=of) as after:
        if difference := before.grid.difference(after.grid):
            raise GridError(
                f"{old} and {new} lie on different grids ({difference}); warp one to the grid of the other (gdalwarp)"
            )
        shape = len(before.classes), len(after.classes)
        pairs = [(one, other) for one in before.classes for other in after.classes]
        dtype = np.dtype("uint8" if len(pairs) < _NODATA[np.dtype("uint8")] else "uint16")
        if len(pairs) >= _NODATA[dtype]:
            raise UsageError(f"{shape[0]} and {shape[1]} classes make {len(pairs)} pairs; a map holds up to 65,534")
        form = _format(pairs, dtype, (str(old), str(new)))
        pixels, hectares = np.zeros(len(pairs), dtype=np.int64), np.zeros(len(pairs))
        unseen = 0
        with scratch(target.parent, target.name) as folder:
            part = folder / "change.tif"
            with (
                progress("change", before.grid.height, "rows", show=show_progress) as advance,
                writing_part(part, before.grid, form) as writer,
            ):
                for strip in before.strips():
                    then, now = strip.classes.astype(np.int64), after.read(strip.window)
                    both = (then != NOWHERE) & (now != NOWHERE)
                    unseen += int(((then != NOWHERE) ^ (now != NOWHERE)).sum())
                    pair = then * shape[1] + now
                    found = pair[both]
                    pixels += np.bincount(found, minlength=len(pairs))
                    area = pixel_hectares(before.grid, strip.window)[both]
                    hectares += np.bincount(found, area, minlength=len(pairs))
                    writer.write(np.where(both, pair + 1, _NODATA[dtype]).astype(dtype)[None], strip.window)
                    advance(int(strip.window.height))
            assemble(target, before.grid, form, [Part(part, 0)], overwrite=overwrite)
        result = Change(target, _names(before), _names(after), pixels.reshape(shape), hectares.reshape(shape), unseen)
    if beside is not None:
        with staged(beside) as written:
            result.table().rename(index=cell, columns=cell).to_csv(written)
    return result


def _names(source: ClassMap) -> tuple[str, ...]:
    return tuple(one.name for one in source.classes)


def _format(
    pairs: list[tuple[MapClass, MapClass]], dtype: np.dtype[np.unsignedinteger], maps: tuple[str, str]
) -> MapFormat:
    """Return how a map of pairs is written: numbered from 1, in their order."""
    rows = [
        {
            "value": value,
            "name": one.name if one.name == other.name else f"{one.name} to {other.name}",
            "color": _color(one, other),
        }
        for value, (one, other) in enumerate(pairs, 1)
    ]
    tags = {
        "segkit_type": "multiclass",
        "segkit_classes": json.dumps(rows),
        "segkit_version": version("segkit"),
        "segkit_old": maps[0],
        "segkit_new": maps[1],
        "TIFFTAG_DATETIME": datetime.now(UTC).strftime("%Y:%m:%d %H:%M:%S"),
    }
    colors = {int(str(row["value"])): str(row["color"]) for row in rows} if dtype == np.uint8 else None
    return MapFormat(dtype, _NODATA[dtype], ("change",), tags, colors)


def _color(one: MapClass, other: MapClass) -> str:
    """Return the colour of what it became; faded where nothing changed."""
    color = other.color or _NAMELESS
    if one.name != other.name:
        return color
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * _FADED):02x}" for part in parts)
