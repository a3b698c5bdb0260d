"""Windows that are done, of one or several labellers: their labels, and these merged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import LabelError
from segkit.io.polygons import Polygons, true_hectares
from segkit.labelling.kappa import Agreement, AgreementTally, share_ground
from segkit.labelling.outlines import reproject
from segkit.labelling.partition import Partition, disagreement, partition, union
from segkit.labelling.work_file import DONE, WorkFile, class_choices
from segkit.runtime.progress import progress
from segkit.runtime.tables import list_some

Differing = Literal["unlabelled", "first"]


@dataclass(frozen=True, eq=False)
class DoneWindow:
    """A window that is done.

    Parameters
    ----------
    path, id, labeller
        Its file and number, and who labelled it.
    outline, labels
        In the CRS of the first file.
    scale
        Hectares per unit of area; without a CRS, whose unit is the pixel, 1.
    """

    path: Path
    id: int
    labeller: str | None
    outline: Any
    labels: Partition
    scale: float


def read_done_windows(files: Sequence[WorkFile], crs: CRS | None, *, show_progress: bool) -> list[DoneWindow]:
    """Return the windows of files that are done, with their labels.

    Raises
    ------
    LabelError
        A polygon in one of them has no class, or an unknown one.
    """
    total = sum(int((file.windows["status"] == DONE).sum()) for file in files)
    with progress("labels", total, "windows", show=show_progress) as advance:
        found = []
        for file in files:
            for window in _read_file(file, crs):
                found.append(window)
                advance(1)
    return found


def _read_file(file: WorkFile, crs: CRS | None) -> Iterator[DoneWindow]:
    shapes = _valid(reproject(file.shapes, file.crs, crs))
    tree = shapely.STRtree(shapes)
    rows = file.windows[file.windows["status"] == DONE]
    outlines = _valid(reproject(rows["shape"].to_numpy(), file.crs, crs))
    _check_classes(file, rows["id"].tolist(), outlines, tree)
    for row, outline in zip(rows.to_dict("records"), outlines, strict=True):
        near = np.sort(tree.query(outline, predicate="intersects"))
        pixel = float(np.sqrt(outline.area / (row["rows"] * row["cols"])))
        labels = partition(outline, file.classes[near], shapes[near], file.task, pixel)
        yield DoneWindow(file.path, int(row["id"]), row["labeller"], outline, labels, _scale(outline, crs))


def _valid(shapes: NDArray[Any]) -> NDArray[Any]:
    """Return shapes without self-intersections, which drawing by hand makes."""
    return np.asarray(shapely.make_valid(shapes, method="structure", keep_collapsed=False), dtype=object)


def _check_classes(file: WorkFile, ids: Sequence[int], outlines: NDArray[Any], tree: shapely.STRtree) -> None:
    """Raise a LabelError that lists the windows with polygons without a class, or with an unknown one."""
    choices = class_choices(file.task)
    wrong: dict[str, dict[int, None]] = {}
    for number, near in zip(*tree.query(outlines, predicate="intersects"), strict=True):
        if (name := file.classes[near]) not in choices and tree.geometries[near].intersection(outlines[number]).area:
            wrong.setdefault("no class" if name is None else repr(name), {})[ids[number]] = None
    if wrong:
        found = "; ".join(f"{name} in window {list_some(list(windows), 8)}" for name, windows in wrong.items())
        raise LabelError(
            f"{file.path}: polygons in windows that are done have classes that are not possible: {found}; choose "
            f"{', '.join(choices)}, or set the status of the window to todo"
        )


def _scale(outline: Any, crs: CRS | None) -> float:
    if crs is None:
        return 1.0
    polygon = Polygons(Path(), crs, np.array([outline], dtype=object), None, 0)  # type: ignore[arg-type]
    return float(true_hectares(polygon)[0] / outline.area)


def merge_windows(windows: Sequence[DoneWindow], differing: Differing) -> list[tuple[DoneWindow, Partition]]:
    """Return the labels of each window, without ground that an earlier window labels.

    Parameters
    ----------
    differing
        What ground is on which files differ: "unlabelled", or as the "first" of them says.
    """
    tree = shapely.STRtree([one.outline for one in windows])
    merged = []
    for number, one in enumerate(windows):
        near = [windows[index] for index in np.sort(tree.query(one.outline)) if index != number]
        labels = one.labels
        if differing == "unlabelled":
            doubts = [disagreement(one.labels, other.labels) for other in near if other.path != one.path]
            labels = labels.without(union(doubts))
        earlier = [other.labels.labelled for other in windows[:number] if other in near]
        merged.append((one, labels.without(union(earlier))))
    return merged


def ground_area(windows: Sequence[DoneWindow]) -> float:
    """Return the area of all windows in hectares (pixels without a CRS), each part counted once."""
    total = 0.0
    tree = shapely.STRtree([one.outline for one in windows])
    for number, one in enumerate(windows):
        earlier = [windows[index].outline for index in tree.query(one.outline) if index < number]
        total += shapely.difference(one.outline, union(earlier)).area * one.scale
    return total


def compare_files(windows: Sequence[DoneWindow]) -> tuple[Agreement, ...]:
    """Return the agreement of each two files that label the same ground."""
    paths = list(dict.fromkeys(one.path for one in windows))
    found = []
    for pair in itertools.combinations(paths, 2):
        tally = AgreementTally(str(pair[0]), str(pair[1]))
        first, second = ([one for one in windows if one.path == path] for path in pair)
        tree = shapely.STRtree([one.outline for one in second])
        for one in first:
            for index in np.sort(tree.query(one.outline)):
                if share_ground(one.labels, second[index].labels):
                    tally.add(one.labels, second[index].labels, one.scale)
        found.append(tally.result())
    return tuple(one for one in found if one is not None)
