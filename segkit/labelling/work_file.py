"""The GeoPackage in which windows are labelled: windows with a status, polygons with a class, and the task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import DataError, UsageError
from segkit.io.features import value_text
from segkit.io.files import require_file
from segkit.io.geopackage import replace_layers, write_layer, write_styles
from segkit.io.paths import PathLike
from segkit.io.vector import layer_names, read_layer
from segkit.labelling.forms import polygon_form, window_form
from segkit.labelling.outlines import reproject
from segkit.task import BACKGROUND, LandCoverClass, Task

LAYERS = WINDOWS, POLYGONS, TASK = "windows", "polygons", "task"
STATUS = TODO, DONE, SKIP = "todo", "done", "skip"
UNLABELLED = "unlabelled"  # the class of ground that a labeller cannot name
_WINDOW_FIELDS = ("id", "status", "rows", "cols")


@dataclass(frozen=True)
class WorkFile:
    """What a labeller made of suggested windows.

    Parameters
    ----------
    path
        The file.
    task
        Its classes.
    crs
        Of the shapes; None for scenes without one.
    windows
        Columns ``id``, ``status``, ``labeller``, ``rows``, ``cols``, and ``shape``: a polygon.
    classes, shapes
        Class of each polygon (None: not chosen), and the polygon.
    """

    path: Path
    task: Task
    crs: CRS | None
    windows: pandas.DataFrame
    classes: NDArray[Any]
    shapes: NDArray[Any]


def class_choices(task: Task) -> list[str]:
    """Return the classes that the form of polygons offers, and `UNLABELLED`.

    Raises
    ------
    UsageError
        A class has that name.
    """
    names = [one.name for one in task.classes]
    if UNLABELLED in names:
        raise UsageError(
            f"a class is called {UNLABELLED!r}, which in files of windows means ground without labels; rename it"
        )
    return [*names, *([BACKGROUND] if task.background else []), UNLABELLED]


def write_work_file(
    target: Path,
    task: Task,
    crs: Any,
    windows: pandas.DataFrame,
    window_shapes: Sequence[Any],
    polygons: pandas.DataFrame,
    polygon_shapes: Sequence[Any],
) -> None:
    """Write windows and pre-labels with forms and styles for QGIS; other layers of the file are kept.

    Parameters
    ----------
    windows
        Columns ``id``, ``scene``, ``row``, ``col``, ``rows``, ``cols`` and ``uncertain``.
    polygons
        Column ``class``.

    Raises
    ------
    OutputError
        It could not be written, or reads back differently.
    """
    import geopandas

    form = windows[["id"]].assign(status=TODO, labeller=None, date=None, note=None)
    form = form.astype({"labeller": object, "note": object, "date": "datetime64[ms]"}).join(windows.drop(columns="id"))
    counts = {WINDOWS: len(windows), POLYGONS: len(polygons)}
    with replace_layers(target, LAYERS, counts) as temporary:
        for layer, table, shapes in ((WINDOWS, form, window_shapes), (POLYGONS, polygons, polygon_shapes)):
            frame = geopandas.GeoDataFrame(table, geometry=np.array(shapes, dtype=object), crs=crs)
            write_layer(temporary, layer, frame, geometry_type="Polygon")
        declared = pandas.DataFrame({"task": [json.dumps(_declaration(task), ensure_ascii=False)]})
        write_layer(temporary, TASK, declared)
        legend = [(row["name"], row["color"]) for row in task.legend]
        write_styles(
            temporary,
            {
                WINDOWS: ("windows", window_form(STATUS)),
                POLYGONS: ("classes", polygon_form(class_choices(task), legend)),
            },
        )


def _declaration(task: Task) -> dict[str, Any]:
    """Return what a task declares about its classes, as JSON."""
    rows = [row for row in task.legend if not row.get("background")]
    return {
        "type": task.type,
        "background": task.background,
        "background_value": task.background_value,
        "classes": [{"name": row["name"], "value": row["value"], "color": row["color"]} for row in rows],
    }


def read_work_file(path: PathLike) -> WorkFile:
    """Read what a labeller made of suggested windows.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        It was not written by `segkit.suggest`, or lost a layer or a field; or a status or the form of a geometry is
        wrong.
    """
    file = require_file(path, "file of windows")
    layers = layer_names(file)
    if missing := [name for name in LAYERS if name not in layers]:
        raise DataError(
            f"{file}: has no layer {missing[0]!r} (its layers are {', '.join(layers)}); give a GeoPackage that segkit "
            "suggest wrote, with all its layers"
        )
    task = _read_task(file)
    found, drawn = read_layer(file, WINDOWS), read_layer(file, POLYGONS)
    windows = found.attributes
    for layer, table, fields in ((WINDOWS, windows, _WINDOW_FIELDS), (POLYGONS, drawn.attributes, ("class",))):
        if lost := [field for field in fields if field not in table]:
            raise DataError(f"{file}: layer {layer!r} has no field {lost[0]!r}; restore it from the suggested file")
    if (found.crs is None) != (drawn.crs is None):
        raise DataError(f"{file}: one of its layers {WINDOWS!r} and {POLYGONS!r} has lost its CRS; assign it again")
    windows = windows.assign(shape=found.geometries, status=_statuses(file, windows), **_numbers(file, windows))
    windows["labeller"] = windows.get("labeller")
    shapes = np.array([] if drawn.geometries is None else drawn.geometries, dtype=object)
    present = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    for layer, geometries in ((WINDOWS, windows["shape"].to_numpy()), (POLYGONS, shapes[present])):
        kinds = ["feature without a shape" if one is None or one.is_empty else one.geom_type for one in geometries]
        if other := [kind for kind in kinds if "Polygon" not in kind]:
            raise DataError(f"{file}: layer {layer!r} holds a {other[0]}; only polygons are possible; remove it")
    names = [value_text(value) or None for value in drawn.attributes["class"]]
    classes = np.array(names, dtype=object)[present]
    drawn_shapes = reproject(shapes[present], drawn.crs, found.crs)
    return WorkFile(file, task, found.crs, windows.reset_index(drop=True), classes, drawn_shapes)


def _read_task(file: Path) -> Task:
    try:
        declared = json.loads(read_layer(file, TASK).attributes["task"][0])
        classes = tuple(LandCoverClass(**one) for one in declared.pop("classes"))
        return Task(classes=classes, **declared)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: its table {TASK!r} cannot be read ({error}); restore it from the suggested file"
        ) from error


def _statuses(file: Path, windows: pandas.DataFrame) -> list[str]:
    """Return the status of each window; an empty one is `TODO`."""
    found = [value_text(value) or TODO for value in windows["status"]]
    for number, status in zip(windows["id"], found, strict=True):
        if status not in STATUS:
            raise DataError(f"{file}: window {number} has status {status!r}; it must be {', '.join(STATUS)}")
    return found


def _numbers(file: Path, windows: pandas.DataFrame) -> dict[str, Any]:
    """Return number and size of each window; windows that are added in a GIS lack them."""
    found = {field: pandas.to_numeric(windows[field], errors="coerce") for field in ("id", "rows", "cols")}
    for field, values in found.items():
        if wrong := windows[field][~(values >= 1)].tolist():
            raise DataError(
                f"{file}: a window has {field} {value_text(wrong[0]) or 'empty'}; windows keep the numbers that segkit "
                "suggest wrote, and none are added; remove it"
            )
    return {field: values.astype(int) for field, values in found.items()}
