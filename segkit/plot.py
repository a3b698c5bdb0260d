"""Pictures of images, labels and maps, as matplotlib figures: `segkit.plot.plot_map` and others.

Each function draws into the axes that it is given, or into a figure of its own, and returns the figure. Large rasters
are read in strips and reduced. Pixels without data are hatched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from segkit.errors import DataError, UsageError
from segkit.io.band_names import find_band
from segkit.io.class_table import Legend, MapClass, class_rgb
from segkit.io.data_array import HasRaster, as_raster, is_data_array
from segkit.io.memory_raster import array_raster, dataset_raster
from segkit.io.mosaic_dataset import read_coverage
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster, read_mask, read_window
from segkit.io.scene import Scene
from segkit.plots.images import (
    BandRendering,
    block_means,
    centre_indices,
    colorize,
    display_name,
    font_fallback,
    stretch,
)
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from segkit.io.data_array import AnyMap

__all__ = ["plot_image", "plot_labels", "plot_map"]

_MAX_SIDE_PX = 1200  # of a picture; larger rasters are reduced
_STRIP_PX = 2**22  # read at a time
_FIGURE_INCHES = 5.0
_NO_DATA_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "#b0b0b0", "hatch": "////", "linewidth": 0}
_NO_CLASS_RGB = (0.91, 0.91, 0.91)  # of overlapping classes
_LEGEND_COLUMNS = 4


class NotebookFigure(Figure):
    """A figure that a notebook shows, also if pyplot is not imported."""

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        stream = BytesIO()
        self.savefig(stream, format="png", bbox_inches="tight")
        return stream.getvalue()


@font_fallback()
def plot_image(
    image: AnyMap | DatasetReader | NDArray[Any],
    *,
    bands: Sequence[int | str] | None = None,
    valid: NDArray[Any] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw three bands of an image in red, green and blue, or one in grey.

    Each band is stretched: the 2nd percentile of its valid pixels is black, the 98th is full.

    Parameters
    ----------
    image
        The path of a raster, a DataArray, an open dataset, or an array or tensor (C, H, W).
    bands
        One or three numbers, from 1, or names of bands. Default: the bands called red, green and blue, else as in the
        pictures of `segkit.check`.
    valid
        Of an array: which pixels have data, (H, W).
    title
        Text above the image.
    ax
        Axes to draw into.

    Raises
    ------
    UsageError
        There are no such bands.
    SegkitError
        The image cannot be read.
    """
    scene = Scene.from_files([_as_raster(image, valid)])
    indices = _choose_bands(scene, bands)
    pixels, has_data = _read_image(scene, indices)
    has_data = has_data & np.isfinite(pixels).all(axis=0)
    rgb = stretch(pixels[[0, 0, 0]] if len(indices) == 1 else pixels, has_data)
    return _draw(rgb, has_data, [], title, ax)


@font_fallback()
def plot_labels(
    labels: PathLike | NDArray[Any],
    task: Task | Recipe | PathLike | Any,
    *,
    ignore: Sequence[int] = (),
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw labels in the colours of a task, with its legend.

    Parameters
    ----------
    labels
        Targets (T, H, W) of `segkit.datasets`, as an array or tensor; or the path of a raster of class codes.
    task
        A task, or what has one: a recipe or its file, a model, the result of `segkit.datasets`.
    ignore
        Of a raster: codes that mean unlabelled, besides its no-data value.
    title, ax
        As for `plot_image`.
    """
    task = _task_of(task)
    if isinstance(labels, (str, os.PathLike)):
        targets = _read_labels(labels, task, ignore)
    else:
        targets = np.asarray(labels)
        if targets.ndim != 3 or len(targets) not in (task.n_targets, task.channels):
            raise UsageError(
                f"the labels have the shape {targets.shape}; the targets of this task are ({task.n_targets}, rows, "
                "columns): the third item of segkit.datasets"
            )
        targets = task.harden(targets)
    handles = [_patch(row["name"], row["color"]) for row in task.legend]
    return _draw(colorize(targets, task), (targets != IGNORE).any(axis=0), handles, title, ax, "unlabelled")


@font_fallback()
def plot_map(map_: AnyMap, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw a map in the colours of its classes, with its legend.

    Parameters
    ----------
    map_
        The path of a map, a map as a DataArray, or the `Prediction` of `segkit.predict`.
    title, ax
        As for `plot_image`.

    Raises
    ------
    DataError
        The raster is not a map.
    """
    with open_raster(as_raster(map_)) as dataset:
        legend = Legend.from_dataset(dataset)
        values, valid = _read_values(dataset)
    if legend.multilabel:
        rgb, shown = _mix_colors(values, legend.classes), list(legend.classes)
    else:
        found = {int(value): legend.class_of(1, int(value)) for value in np.unique(values[0][valid])}
        shown = list(dict.fromkeys([*legend.classes, *found.values()]))
        rgb = np.ones((*valid.shape, 3))
        for value, one in found.items():
            rgb[values[0] == value] = np.array(class_rgb(one)) / 255
    return _draw(rgb, valid, [_patch(one.name, np.array(class_rgb(one)) / 255) for one in shown], title, ax)


def _draw(
    rgb: NDArray[np.float64],
    valid: NDArray[np.bool_],
    handles: list[Patch],
    title: str | None,
    ax: Axes | None,
    missing: str = "no data",
) -> Figure:
    """Draw an image (H, W, 3), with pixels that are not `valid` (H, W) transparent on a hatched ground."""
    height, width = valid.shape
    if ax is None:
        figure: Figure = NotebookFigure(
            figsize=(_FIGURE_INCHES, _FIGURE_INCHES * min(2.0, max(0.5, height / width)) + 0.4 + 0.1 * len(handles)),
            layout="constrained",
        )
        ax = figure.subplots()
    ax.imshow(np.dstack([rgb, valid]), interpolation="nearest")
    ax.patch.set(**_NO_DATA_STYLE)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if not valid.all():
        handles = [*handles, Patch(label=missing, **_NO_DATA_STYLE)]
    if handles:
        ax.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False, fontsize=9,
            ncols=min(len(handles), _LEGEND_COLUMNS),
        )  # fmt: skip
    found = ax.get_figure(root=True)
    assert isinstance(found, Figure)
    return found


def _patch(name: str, color: Any) -> Patch:
    return Patch(facecolor=color, edgecolor="#999999", lw=0.4, label=display_name(name))


def _as_raster(image: Any, valid: Any) -> PathLike:
    """Return an image as a path."""
    is_open = isinstance(image, (DatasetReader, WarpedVRT))
    if is_open or isinstance(image, (str, os.PathLike, HasRaster)) or is_data_array(image):
        if valid is not None:
            raise UsageError("valid is for an array; other images say themselves where they have data")
        return dataset_raster(image) if is_open else as_raster(image)
    return array_raster(np.asanyarray(image), valid=None if valid is None else np.asarray(valid))


def _choose_bands(scene: Scene, bands: Sequence[int | str] | None) -> list[int]:
    """Return the indices, from 0, of one or three bands."""
    if bands is None:
        zeros = (0.0,) * len(scene.bands)
        chosen = BandRendering.from_statistics(scene.band_names, zeros, zeros).bands
        return [band - 1 for band in (chosen[:1] if len(scene.bands) == 1 else chosen)]
    found: list[int] = []
    for band in bands:
        places = find_band(band, scene.band_names) if isinstance(band, str) else [band - 1]
        if len(places) != 1 or not 0 <= places[0] < len(scene.bands):
            raise UsageError(f"{scene.paths[0]}: has no band {band}; its bands are {', '.join(scene.band_names)}")
        found += places
    if len(found) not in (1, 3):
        raise UsageError(f"{len(found)} bands are given; give one, or three for red, green and blue")
    return found


def _strips(height: int, width: int, step: int) -> Iterator[Window]:
    """Yield windows of whole rows, of a multiple of `step` rows each."""
    rows = max(1, _STRIP_PX // width // step) * step
    for top in range(0, height, rows):
        yield Window(0, top, width, min(rows, height - top))


def _step(height: int, width: int) -> int:
    """Return the side of the cells that become one pixel of the picture."""
    return max(1, math.ceil(max(height, width) / _MAX_SIDE_PX))


def _read_image(scene: Scene, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return bands (C, h, w) of a scene, and where it is valid (h, w), as means over cells."""
    height, width = scene.grid.shape
    step = _step(height, width)
    parts = []
    with scene.open() as reader:
        for window in _strips(height, width, step):
            tile = reader.read(window)
            parts.append(block_means(tile.pixels[[*indices]], tile.valid, step))
    return np.concatenate([one for one, _ in parts], axis=1), np.concatenate([one for _, one in parts])


def _read_values(dataset: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the bands (bands, h, w) of a map or label raster, and where it has data (h, w): centres of cells."""
    step = _step(dataset.height, dataset.width)
    columns = centre_indices(dataset.width, step)
    values, valid = [], []
    for window in _strips(dataset.height, dataset.width, step):
        rows = centre_indices(int(window.height), step)
        values.append(read_window(dataset, dataset.indexes, window)[:, rows[:, None], columns])
        has_data = (read_mask(dataset, 1, window) > 0) & read_coverage(dataset, window)
        valid.append(has_data[rows[:, None], columns])
    return np.concatenate(values, axis=1), np.concatenate(valid)


def _read_labels(path: PathLike, task: Task, ignore: Sequence[int]) -> NDArray[np.int16]:
    """Return a raster of class codes as targets (T, h, w)."""
    with open_raster(path) as dataset:
        if any(np.dtype(dtype).kind not in "iu" for dtype in dataset.dtypes):
            raise DataError(f"{path}: holds {dataset.dtypes[0]}; a raster of labels holds class codes, integers")
        values, valid = _read_values(dataset)
    values = np.where(valid, values.astype(np.int64), IGNORE)
    codes = [IGNORE, *ignore]
    if len(values) == 1 and task.n_targets == 1:
        return task.encode(values[0], ignore=codes, source=Path(path))
    return task.encode_masks(values, ignore=codes, source=Path(path))


def _mix_colors(masks: NDArray[Any], classes: Sequence[MapClass]) -> NDArray[np.float64]:
    """Return the mean colour of the classes that overlap at each pixel, (H, W, 3), from masks (classes, H, W)."""
    present = (masks == 1).astype(np.float64)
    colors = np.array([class_rgb(one) for one in classes]) / 255
    count = present.sum(axis=0)[..., None]
    mixed: NDArray[np.float64] = np.where(
        count > 0, np.einsum("chw,ck->hwk", present, colors) / np.maximum(count, 1), _NO_CLASS_RGB
    )
    return mixed


def _task_of(given: Any) -> Task:
    """Return a task, or that of a recipe, its file, or a model."""
    if isinstance(given, Task):
        return given
    if isinstance(given, (str, os.PathLike)):
        given = Recipe.load(given)
    task = getattr(given, "task", None)
    if not isinstance(task, Task):
        raise UsageError(f"{type(given).__name__} has no task; give a task, a recipe or its file, or a model")
    return task
