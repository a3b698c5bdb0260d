"""Pictures of suggested windows, with the polygons that were drawn in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.polygons import apply_affine
from segkit.io.scene import Scene
from segkit.labelling.outlines import outline_windows, reproject
from segkit.labelling.work_file import UNLABELLED, WorkFile
from segkit.plots.images import BandRendering, display_name, font_fallback
from segkit.plots.text import shorten_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER_ROW = 4
_SIDE_INCHES, _TEXT_INCHES = 2.2, 0.45
_SAME_PLACE = 0.99  # of two outlines: their common part of both together
_OTHER_COLOR = "#808080"


def draw_work_windows(file: WorkFile, rows: Sequence[dict[str, Any]], scenes: Sequence[Scene]) -> tuple[Figure, int]:
    """Draw windows with their polygons in the colours of the classes, over their imagery if it is given.

    Parameters
    ----------
    rows
        Of `WorkFile.windows`.
    scenes
        Imagery; that of a window has the name of its scene, and lies where the window does.

    Returns
    -------
    The figure, and the number of windows for which there is no imagery.
    """
    from matplotlib.figure import Figure

    width = min(len(rows), _PER_ROW)
    height = -(-len(rows) // width)
    size = width * _SIDE_INCHES, height * (_SIDE_INCHES + _TEXT_INCHES) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    imagery = [_find_imagery(row, file, scenes) for row in rows]
    renderings = {id(scene): _rendering(scene, imagery) for scene, _ in filter(None, imagery)}
    tree = shapely.STRtree(file.shapes)
    with font_fallback():
        for ax in axes.flat[len(rows) :]:
            ax.set_axis_off()
        for ax, row, found in zip(axes.flat, rows, imagery, strict=False):
            near = np.sort(tree.query(row["shape"], predicate="intersects"))
            shapes = shapely.intersection(shapely.make_valid(file.shapes[near]), row["shape"])
            if found is None:
                left, bottom, right, top = row["shape"].bounds
                ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
            else:
                shapes = _draw_image(ax, file, found, renderings[id(found[0])], shapes)
            _draw_polygons(ax, file, file.classes[near], shapes)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)  # they would cover outlines at the edge of the window
            name = shorten_name(str(row.get("scene") or ""), _SIDE_INCHES - 0.6)
            ax.set_title(f"{row['id']}  {name}\n{row['status']}", fontsize=8, loc="left")
        figure.legend(handles=_legend(file), loc="outside lower center", ncols=1 + width, frameon=False, fontsize=8)
    return figure, sum(found is None for found in imagery)


def _find_imagery(row: dict[str, Any], file: WorkFile, scenes: Sequence[Scene]) -> tuple[Scene, Window] | None:
    """Return the scene of a window and its window, if a scene of its name has the window at its place."""
    places = [row.get(key) for key in ("col", "row", "cols", "rows")]
    if any(value is None or value != value for value in places):
        return None
    window = Window(*(int(value) for value in places if value is not None))
    for scene in scenes:
        if scene.name != row.get("scene") or (scene.grid.crs is None) != (file.crs is None):
            continue
        own, (outline,) = row["shape"], outline_windows(scene.grid, [window], file.crs)
        both = shapely.intersection(own, outline).area
        inside = (
            window.col_off + window.width <= scene.grid.width and window.row_off + window.height <= scene.grid.height
        )
        if inside and both >= _SAME_PLACE * shapely.union(own, outline).area > 0:
            return scene, window
    return None


def _rendering(scene: Scene, imagery: Sequence[tuple[Scene, Window] | None]) -> BandRendering:
    """Return a contrast stretch by the pixels of all windows of a scene that are drawn."""
    sums = np.zeros((3, len(scene.bands)))
    for one, window in filter(None, imagery):
        if one is scene:
            tile = scene.read(window)
            values = np.where(tile.valid & np.isfinite(tile.pixels), tile.pixels, np.nan).astype(np.float64)
            sums += [
                np.isfinite(values).sum(axis=(1, 2)),
                np.nansum(values, axis=(1, 2)),
                np.nansum(values**2, axis=(1, 2)),
            ]
    mean, square = sums[1:] / np.maximum(sums[0], 1)
    return BandRendering.from_statistics(
        scene.band_names, mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()
    )


def _draw_image(
    ax: Axes, file: WorkFile, found: tuple[Scene, Window], rendering: BandRendering, shapes: NDArray[Any]
) -> NDArray[Any]:
    """Draw the image of a window; returns shapes in its pixels, as matplotlib counts them."""
    scene, window = found
    tile = scene.read(window)
    ax.imshow(rendering.render(tile.pixels, tile.valid), interpolation="nearest")
    ax.set(xlim=(-0.5, window.width - 0.5), ylim=(window.height - 0.5, -0.5))
    in_pixels = apply_affine(reproject(shapes, file.crs, scene.grid.crs), ~scene.grid.transform)
    return np.asarray(shapely.transform(in_pixels, lambda xy: xy - (window.col_off + 0.5, window.row_off + 0.5)))


def _draw_polygons(ax: Axes, file: WorkFile, names: NDArray[Any], shapes: NDArray[Any]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    colors = {row["name"]: row["color"] for row in file.task.legend}
    for name, shape in zip(names, shapes, strict=True):
        color = colors.get(name, _OTHER_COLOR)
        for part in shapely.get_parts(shape):
            if part.geom_type == "Polygon" and not part.is_empty:
                rings = [
                    Outline(np.asarray(ring.coords)[:, :2], closed=True) for ring in (part.exterior, *part.interiors)
                ]
                outline = Outline.make_compound_path(*rings)
                ax.add_patch(PathPatch(outline, facecolor=f"{color}40", edgecolor=color, lw=1.2, clip_on=False))


def _legend(file: WorkFile) -> list[Any]:
    from matplotlib.patches import Patch

    rows = [(row["name"], row["color"]) for row in file.task.legend]
    return [
        Patch(facecolor=f"{color}40", edgecolor=color, label=display_name(name))
        for name, color in [*rows, (UNLABELLED, _OTHER_COLOR)]
    ]
