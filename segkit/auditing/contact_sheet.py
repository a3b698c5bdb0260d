"""A picture of the first suspicious labels: image, label and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.auditing.results import Finding
from segkit.auditing.scenes import AuditedScene
from segkit.io.files import atomic_write
from segkit.io.grid import Grid
from segkit.io.polygons import apply_affine
from segkit.plots.images import BandRendering, colorize, font_fallback, legend_patches
from segkit.task import Task

_MIN_SIDE, _MAX_SIDE = 48, 384  # of a window, in pixels
_PER_ROW = 2  # findings
_OUTLINE = "#ff00ff"  # magenta, which no land cover has


def draw_findings(
    path: Path, findings: Sequence[Finding], scenes: Sequence[AuditedScene], task: Task, rendering: BandRendering
) -> None:
    """Draw findings, each with its outline; an existing file is replaced."""
    from matplotlib.figure import Figure

    rows = max(1, -(-len(findings) // _PER_ROW))
    side = 1.9
    figure = Figure(figsize=(3 * _PER_ROW * side + 0.3, rows * (side + 0.45) + 0.7), layout="constrained")
    axes = figure.subplots(rows, 3 * _PER_ROW, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, finding in enumerate(findings):
        row, column = divmod(number, _PER_ROW)
        _draw_finding(axes[row, 3 * column : 3 * column + 3], finding, scenes[finding.scene_number], task, rendering)
    if not findings:
        axes[0, 0].set_title("no suspicious label", fontsize=9, loc="left")
    handles = legend_patches(task)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=8,
        title=f"image, label, prediction; {rendering.caption}", title_fontsize=8,
    )  # fmt: skip
    with atomic_write(path) as part, font_fallback():
        figure.savefig(part, dpi=120)


def _draw_finding(
    axes: NDArray[np.object_], finding: Finding, scene: AuditedScene, task: Task, rendering: BandRendering
) -> None:
    rings = _rings_in_pixels(finding, scene.grid)
    window = _window_around(np.concatenate(rings), scene.grid)
    tile = scene.sample.scene.read(window)
    labels, decided = scene.crop(window)
    images = rendering.render(tile.pixels, tile.valid), colorize(labels, task), colorize(decided, task)
    for ax, image in zip(axes, images, strict=True):
        ax.imshow(image, interpolation="nearest")
        for ring in rings:
            ax.plot(ring[:, 0] - window.col_off - 0.5, ring[:, 1] - window.row_off - 0.5, color=_OUTLINE, lw=0.9)
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    what = finding.note if not finding.proposed else f"{finding.label} \N{RIGHTWARDS ARROW} {finding.proposed}"
    size = f"{finding.area_ha:,.2f} ha" if np.isfinite(finding.area_ha) else f"{finding.pixels:,} px"
    text = f"{finding.rank}  {finding.kind}: {what}\n{finding.scene}, {size}, score {finding.score:.2f}"
    axes[0].set_title(text, fontsize=7, loc="left")


def _rings_in_pixels(finding: Finding, grid: Grid) -> list[NDArray[np.float64]]:
    """Return the rings of the polygon as (column, row) of the grid, each (n, 2)."""
    rings = apply_affine(shapely.get_rings(finding.polygon), ~grid.transform)
    return [shapely.get_coordinates(ring) for ring in rings]


def _window_around(places: NDArray[np.float64], grid: Grid) -> Window:
    """Return a square around places (column, row) with some context, within the grid."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = min(max(_MIN_SIDE, round(1.5 * float((high - low).max()))), _MAX_SIDE)
    height, width = min(side, grid.height), min(side, grid.width)
    column, row = (
        int(min(max(0, middle - length / 2), size - length))
        for middle, length, size in zip((low + high) / 2, (width, height), (grid.width, grid.height), strict=True)
    )
    return Window(column, row, width, height)
