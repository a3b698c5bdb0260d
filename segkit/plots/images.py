"""Pictures of scenes, labels, maps and layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.raster import open_raster, read_window
from segkit.io.scene import Scene
from segkit.task.task import IGNORE, Task

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from matplotlib.axes import Axes

UNKNOWN = (0.62, 0.62, 0.62)  # not known and no data are grey in every picture
# DejaVu Sans, which matplotlib brings, has no Chinese; the first of these that is there has.
_MORE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Droid Sans Fallback", "Arial Unicode MS"),
)
_STRETCH = (2, 98)  # percentiles of valid pixels that become black and white

_DEVIATIONS = 2  # from a band's mean to black and to white
_FEW_BANDS = 12  # of more, as of a spectrometer, three that lie far apart are shown


@contextmanager
def any_names() -> Iterator[None]:
    """Draw names of classes in any script, with the fonts that are there; a character that none has becomes a box."""
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    known = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *[name for name in _MORE_FONTS if name in known][:1], "sans-serif"]
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


@dataclass(frozen=True)
class View:
    """How pixels are shown where only their bands' mean and deviation are known.

    Parameters
    ----------
    bands
        Positions of red, green and blue among the bands, counted from 1.
    names
        Of all bands.
    mean, std
        Of all bands; `_DEVIATIONS` around the mean are black and white.
    """

    bands: tuple[int, int, int]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, names: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> View:
        """Choose bands: the last ones that are called red, green and blue, else by their number.

        One is shown in grey, the second of two in cyan against the first in red, three as they are; of up to twelve
        the first three, which are blue, green and red in most products; of more those that lie at 5/6, 1/2 and 1/6.
        """
        called = {name.rpartition(":")[2].strip().lower(): place for place, name in enumerate(names, 1)}
        count = len(names)
        if all(color in called for color in ("red", "green", "blue")):
            bands = called["red"], called["green"], called["blue"]
        elif count <= len(_SHOWN):
            bands = _SHOWN[count - 1]
        elif count <= _FEW_BANDS:
            bands = (3, 2, 1)
        else:
            bands = (5 * count // 6, count // 2, count // 6)
        return cls(bands, tuple(names), tuple(mean), tuple(std))

    def image(
        self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], unseen: Sequence[float] = UNKNOWN
    ) -> NDArray[np.float64]:
        """Return pixels (C, H, W) as float64 (H, W, 3) in 0..1; what is not `valid` (H, W) has the colour `unseen`.

        Where a band alone holds no data (NaN) it is shown at its mean, as a network has it.
        """
        places = [band - 1 for band in self.bands]
        mean, std = (np.array(each)[places][:, None, None] for each in (self.mean, self.std))
        scaled = np.nan_to_num((pixels[places] - mean) / np.where(std > 0, std, 1), posinf=0, neginf=0)
        image: NDArray[np.float64] = np.moveaxis(np.clip(scaled / (2 * _DEVIATIONS) + 0.5, 0, 1), 0, 2)
        image[~valid] = unseen
        return image

    @property
    def caption(self) -> str:
        """Which bands are shown, and how."""
        names = list(dict.fromkeys(self.names[band - 1] for band in self.bands))
        colors = {1: "in grey", 2: "in red and cyan"}.get(len(names), "in red, green and blue")
        told = f"band {names[0]}" if len(names) == 1 else f"bands {', '.join(names)}"
        of = f" of {len(self.names)}" if len(self.names) > len(names) else ""
        return f"{told}{of} {colors}, mean ± {_DEVIATIONS} standard deviations"


# Red, green and blue of one, two and three bands.
_SHOWN = ((1, 1, 1), (1, 2, 2), (1, 2, 3))


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
    image[~shown] = UNKNOWN
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
    image[(planes == IGNORE).all(axis=0)] = UNKNOWN
    return image


def read_map(path: Path, task: Task, window: Window | None = None) -> NDArray[np.int16]:
    """Read a map that was made for a task back as planes (P, H, W)."""
    with open_raster(path) as dataset:
        window = window or Window(0, 0, dataset.width, dataset.height)
        values = read_window(dataset, dataset.indexes, window).astype(np.int64)
        if len(values) == 1 and task.planes == 1:
            return task.encode(values[0], ignore=[task.nodata], source=path)
        return task.encode_masks(values, ignore=[task.nodata], source=path)


@any_names()
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
    handles = legend_patches(task, background=False)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def legend_patches(task: Task, *, background: bool = True) -> list[Any]:
    """Return what a legend of the task's colours shows, with grey for what is not known."""
    from matplotlib.patches import Patch

    rows = [row for row in task.legend if background or not row.get("background")]
    handles = [Patch(facecolor=row["color"], edgecolor="#999999", lw=0.4, label=spoken(row["name"])) for row in rows]
    return [*handles, Patch(facecolor=UNKNOWN, label="no data or not known")]


def spoken(name: str) -> str:
    """Write a class's name as text has it."""
    return name.replace("_", " ")


def _draw_outlines(ax: Axes, outlines: GeoDataFrame, task: Task) -> None:
    limits = ax.get_xlim(), ax.get_ylim()
    for row in task.legend:
        own = outlines[outlines["class"] == row["name"]]
        if len(own):
            own.plot(ax=ax, facecolor=(*_rgb(row["color"]), 0.35), edgecolor=row["color"], linewidth=0.7)
    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
