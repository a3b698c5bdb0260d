"""Pictures of scenes, labels, maps and layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.raster import Scene, open_raster, read_window
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from matplotlib.axes import Axes

_UNKNOWN = np.array([0.62, 0.62, 0.62])  # not known and no data are grey in every picture
_STRETCH = (2, 98)  # percentiles of valid pixels that become black and white


def composite(scene: Scene, bands: Sequence[int], window: Window | None = None) -> NDArray[np.float64]:
    """Return three bands of a scene as red, green and blue, float64 (H, W, 3) in 0..1; no data in a band is grey.

    Parameters
    ----------
    bands
        Three positions among the scene's bands, counted from 1.
    """
    tile = scene.read(window)
    image = np.empty((*tile.valid.shape, 3))
    shown = tile.valid & np.isfinite(tile.pixels[[band - 1 for band in bands]]).all(axis=0)
    for place, band in enumerate(bands):
        pixels = tile.pixels[band - 1]
        low, high = np.percentile(pixels[shown], _STRETCH) if shown.any() else (0, 1)
        image[..., place] = np.clip((pixels - low) / max(high - low, 1e-9), 0, 1)
    image[~shown] = _UNKNOWN
    return image


def colored(planes: NDArray[np.int16], task: Task) -> NDArray[np.float64]:
    """Return target planes or decisions (P, H, W) in the task's colours, float64 (H, W, 3).

    Where classes overlap their colours mix; in no class is background's grey-white, not known is grey.
    """
    colors = {row["name"]: _rgb(row["color"]) for row in task.legend}
    empty = next((_rgb(row["color"]) for row in task.legend if row.get("background")), np.full(3, 0.91))
    mixed, layers = np.zeros((*planes.shape[1:], 3)), np.zeros(planes.shape[1:])
    for name, plane, category in task.scored:
        here = planes[plane] == category
        mixed[here] += colors[name]
        layers += here
    image = np.where(layers[..., None] > 0, mixed / np.maximum(layers, 1)[..., None], empty)
    image[(planes == IGNORE).all(axis=0)] = _UNKNOWN
    return image


def read_map(path: Path, task: Task, window: Window | None = None) -> NDArray[np.int16]:
    """Read a map that was made for a task back as planes (P, H, W)."""
    with open_raster(path) as dataset:
        window = window or Window(0, 0, dataset.width, dataset.height)
        values = read_window(dataset, dataset.indexes, window).astype(np.int64)
        if len(values) == 1 and task.planes == 1:
            return task.encode(values[0], ignore=[task.nodata], source=path)
        return task.encode_masks(values, ignore=[task.nodata], source=path)


def panels(
    path: Path,
    images: dict[str, NDArray[np.float64]],
    task: Task,
    extent: tuple[float, float, float, float] | None = None,
    outlines: GeoDataFrame | None = None,
) -> None:
    """Write images (H, W, 3) side by side as a PNG, with the task's legend below.

    Parameters
    ----------
    images
        By title; all of one size.
    extent
        (left, right, bottom, top) of the images in the CRS of the outlines.
    outlines
        Polygons with a column `class`, drawn over the last image in their class's colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = next(iter(images.values())).shape[:2]
    side = 3.6
    figure = Figure(figsize=(side * len(images), side * height / width + 0.75), layout="constrained")
    axes: NDArray[np.object_] = np.atleast_1d(figure.subplots(1, len(images)))
    for ax, (title, image) in zip(axes, images.items(), strict=True):
        ax.imshow(image, extent=extent, interpolation="nearest")
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    if outlines is not None:
        _draw_outlines(axes[-1], outlines, task)
    rows = [row for row in task.legend if not row.get("background")]
    handles = [Patch(color=row["color"], label=row["name"].replace("_", " ")) for row in rows]
    handles.append(Patch(color=tuple(_UNKNOWN), label="no data or not known"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_outlines(ax: Axes, outlines: GeoDataFrame, task: Task) -> None:
    limits = ax.get_xlim(), ax.get_ylim()
    for row in task.legend:
        own = outlines[outlines["class"] == row["name"]]
        if len(own):
            own.plot(ax=ax, facecolor=(*_rgb(row["color"]), 0.35), edgecolor=row["color"], linewidth=0.7)
    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
