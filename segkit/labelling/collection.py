"""Read back labelled windows, check them, merge those of several people, and write them as labels for a training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import shapely
from rasterio.crs import CRS

from segkit.errors import DataError, UsageError
from segkit.io.files import check_distinct
from segkit.io.geopackage import check_target, replace_layers, write_layer, write_styles
from segkit.io.paths import PathLike
from segkit.labelling.forms import polygon_form
from segkit.labelling.kappa import Agreement
from segkit.labelling.merging import Differing, DoneWindow, compare_files, ground_area, merge_windows, read_done_windows
from segkit.labelling.partition import Partition
from segkit.labelling.work_file import DONE, STATUS, WorkFile, read_work_file
from segkit.runtime.tables import list_some
from segkit.task import BACKGROUND, Task

LABELS = "labels"
_MIN_SHARE = 1e-9  # of a window; smaller pieces are rounding


@dataclass(frozen=True)
class LabelCollection:
    """Labels that were written.

    Parameters
    ----------
    path
        The GeoPackage.
    windows
        {status: number of windows} of all files; only those that are done count.
    area
        {class or background: labelled area} in hectares, in pixels without a CRS; counted for each overlapping class.
    unit
        "ha" or "px".
    unlabelled
        Area of done windows that is unlabelled.
    agreement
        Of each two files that label the same ground.
    notes
        What was found and is unlabelled: overlaps, gaps, slivers, ground on which files differ.
    source
        Keys of `labels` in a recipe.
    """

    path: Path
    windows: dict[str, int]
    area: dict[str, float]
    unit: str
    unlabelled: float
    agreement: tuple[Agreement, ...]
    notes: tuple[str, ...]
    source: dict[str, str]


def labels(
    files: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    differing: Differing = "unlabelled",
    overwrite: bool = False,
    show_progress: bool = False,
) -> LabelCollection:
    """Write the labels of windows that are done as polygons that a training takes as they are.

    Only ground of windows with the status "done" is labelled. There, ground without a polygon is background, if the
    task has it (of overlapping classes: no class is there); otherwise it is unlabelled. Also unlabelled are: polygons
    of "unlabelled", ground where polygons of classes that exclude each other overlap, and slivers narrower than
    half a pixel.

    Parameters
    ----------
    files
        One or more GeoPackages of `segkit.suggest`, edited. Several may label the same ground.
    output
        The GeoPackage to write: polygons with the field ``class``, also of background.
    differing
        What ground is on which files differ: "unlabelled", or as the "first" of them says.

    Raises
    ------
    UsageError
        The output cannot be written, or files have different classes.
    DataError
        No window is done, or a file lost a layer or a field.
    LabelError
        A polygon in a window that is done has no class, or an unknown one.
    """
    target = check_target(output, [LABELS], "labels are", overwrite=overwrite)
    if differing not in ("unlabelled", "first"):
        raise UsageError(f"differing is {differing!r}; use unlabelled or first")
    paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not paths:
        raise UsageError("no file of windows is given; give one that segkit suggest wrote")
    check_distinct([target], paths)
    read = [read_work_file(path) for path in paths]
    crs, task = read[0].crs, read[0].task
    _check_same(read)
    counts = {status: sum(int((file.windows["status"] == status).sum()) for file in read) for status in STATUS}
    done = read_done_windows(read, crs, show_progress=show_progress)
    if not done:
        found = ", ".join(f"{number} {status}" for status, number in counts.items())
        raise DataError(f"{read[0].path}: no window is done ({found}); label one, and set its status to {DONE}")
    agreement = compare_files(done)
    merged = merge_windows(done, differing)
    rows = [(name, shape, one) for one, part in merged for name, shape in _pieces(one, part, task)]
    _write(target, rows, crs, task)
    area = dict.fromkeys(_names(task), 0.0)
    for name, shape, one in rows:
        area[name] += shape.area * one.scale
    ground = ground_area(done)
    unlabelled = ground - sum(part.labelled.area * one.scale for one, part in merged)
    unit = "px" if crs is None else "ha"
    notes = (*_describe_outside(read), *_describe_windows(done, task, unit))
    return LabelCollection(
        target,
        counts,
        area,
        unit,
        unlabelled if unlabelled > _MIN_SHARE * ground else 0.0,
        agreement,
        (*notes, *_describe_differences(agreement, differing, unit)),
        {"path": str(target), "field": "class", "outside_polygons": "ignore"},
    )


def _check_same(files: Sequence[WorkFile]) -> None:
    """Raise a UsageError if files have different classes, only some have a CRS, or one is given twice."""
    first = files[0]
    for number, other in enumerate(files[1:], 1):
        if any(other.path.samefile(one.path) for one in files[:number]):
            raise UsageError(f"{other.path}: is given twice; give each file once")
        mine, its = (
            (one.task.type, one.task.background, [each.name for each in one.task.classes]) for one in (first, other)
        )
        if mine != its:
            raise UsageError(
                f"{first.path} and {other.path} have different classes ({', '.join(mine[2])}, and "
                f"{', '.join(its[2])}), or another task type; only files of the same task are merged"
            )
        if (first.crs is None) != (other.crs is None):
            raise UsageError(f"{first.path} and {other.path}: one has a CRS, the other none; give files of one kind")


def _names(task: Task) -> list[str]:
    """Return the values of the field ``class`` of labels."""
    return [one.name for one in task.classes] + [BACKGROUND] * task.allows_no_class


def _pieces(one: DoneWindow, labels: Partition, task: Task) -> Iterator[tuple[str, Any]]:
    """Yield class and polygon of the labels of a window."""
    shapes = dict(labels.present)
    if task.allows_no_class:
        shapes[BACKGROUND] = labels.absent()
    for name, shape in shapes.items():
        for part in shapely.get_parts(shape):
            if part.area > _MIN_SHARE * one.outline.area:
                yield name, part


def _write(target: Path, rows: Sequence[tuple[str, Any, DoneWindow]], crs: CRS | None, task: Task) -> None:
    """Write labels, read them back and rename the file; other layers of the file are kept."""
    import geopandas

    table = pandas.DataFrame(
        {
            "class": [name for name, _, _ in rows],
            "area": [shape.area * one.scale for _, shape, one in rows],
            "file": [one.path.name for _, _, one in rows],
            "window": [one.id for _, _, one in rows],
            "labeller": pandas.Series([one.labeller for _, _, one in rows], dtype=object),
        }
    )
    frame = geopandas.GeoDataFrame(
        table, geometry=[shape for _, shape, _ in rows], crs=None if crs is None else crs.to_wkt()
    )
    with replace_layers(target, [LABELS], {LABELS: len(rows)}) as temporary:
        write_layer(temporary, LABELS, frame, geometry_type="Polygon")
        legend = [(row["name"], row["color"]) for row in task.legend]
        write_styles(temporary, {LABELS: ("classes", polygon_form(_names(task), legend))})


def _describe_outside(files: Sequence[WorkFile]) -> Iterator[str]:
    """Say how many polygons lie outside of all windows."""
    for file in files:
        tree = shapely.STRtree(file.windows["shape"].to_numpy())
        outside = len(file.shapes) - len({*tree.query(file.shapes, predicate="intersects")[0].tolist()})
        if outside:
            yield f"{file.path}: {outside} polygons lie outside of all windows, and are not used"


def _describe_windows(windows: Sequence[DoneWindow], task: Task, unit: str) -> Iterator[str]:
    """Say in which windows ground is unlabelled although they are done, and which have no polygon."""
    texts = {
        "overlaps": "polygons of classes that exclude each other overlap on {}, which is unlabelled",
        "gaps": "{} are in no polygon, and are unlabelled, since the task has no background",
        "slivers": "gaps and overlaps narrower than half a pixel, {}, are unlabelled",
    }
    for path in dict.fromkeys(one.path for one in windows):
        mine = [one for one in windows if one.path == path]
        for key, text in texts.items():
            areas = [(one, getattr(one.labels, key)) for one in mine]
            found = [(one.id, area * one.scale) for one, area in areas if area > _MIN_SHARE * one.outline.area]
            if found:
                where = f"{path}, window {list_some([number for number, _ in found], 8)}"
                yield f"{where}: {text.format(_format_area(sum(area for _, area in found), unit))}"
        if task.allows_no_class and (empty := [one.id for one in mine if one.labels.empty]):
            yield f"{path}, window {list_some(empty, 8)}: done without a polygon, so no class is there"


def _describe_differences(agreement: Sequence[Agreement], differing: Differing, unit: str) -> Iterator[str]:
    for one in agreement:
        if one.differing > _MIN_SHARE * one.area:
            result = "unlabelled" if differing == "unlabelled" else f"labelled as in {one.one}"
            yield (
                f"{one.one} and {one.other} differ on {_format_area(one.differing, unit)} of "
                f"{_format_area(one.area, unit)} that both label; that ground is {result}"
            )


def _format_area(area: float, unit: str) -> str:
    """Return an area with two digits, or one with three significant ones."""
    return f"{area:,.2f} {unit}" if area >= 1 else f"{area:.3g} {unit}"
