"""Images of scenes, labels, maps and polygons."""

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

from segkit.io.band_names import common_names
from segkit.io.class_table import parse_color
from segkit.io.mosaic_dataset import read_coverage
from segkit.io.raster import open_raster, read_window
from segkit.io.scene import Scene
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from matplotlib.axes import Axes

UNLABELLED_COLOR = (0.62, 0.62, 0.62)  # grey, of unlabelled and nodata pixels in every image
# DejaVu Sans, which comes with matplotlib, has no Chinese characters; the first of these that is installed is added.
_FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Droid Sans Fallback", "Arial Unicode MS"),
)
_STRETCH_PERCENTILES = (2, 98)  # percentiles of valid pixels that become black and white
_STRETCH_STD = 2  # standard deviations from a band's mean to black and to white
_MAX_MULTISPECTRAL_BANDS = 12  # with more bands (hyperspectral), three bands far apart are shown
_RGB_OF_FEW_BANDS = ((1, 1, 1), (1, 2, 2), (1, 2, 3))  # red, green and blue of one, two and three bands


@contextmanager
def font_fallback() -> Iterator[None]:
    """Draw class names of any script with the installed fonts; characters that no font has become boxes."""
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *[name for name in _FALLBACK_FONTS if name in installed][:1], "sans-serif"]
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


@dataclass(frozen=True)
class BandRendering:
    """Bands and contrast stretch of an RGB image; the stretch uses the bands' mean and standard deviation.

    Parameters
    ----------
    bands
        Indices of the red, green and blue band, from 1.
    names
        Names of all bands.
    mean, std
        Statistics of all bands; black and white are `_STRETCH_STD` standard deviations from the mean.
    """

    bands: tuple[int, int, int]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_statistics(cls, names: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> BandRendering:
        """Choose the bands: the last ones named red, green and blue (B4, B3, B2 of Sentinel-2); else by their number.

        One band: grey. Two: red and cyan. Three: red, green, blue in this order. Up to twelve: bands 3, 2, 1, which are
        red, green and blue in most products. More: the bands at 5/6, 1/2 and 1/6 of the spectrum.
        """
        index_of = {name: index for index, name in enumerate(common_names(names), 1)}
        count = len(names)
        if all(color in index_of for color in ("red", "green", "blue")):
            bands = index_of["red"], index_of["green"], index_of["blue"]
        elif count <= len(_RGB_OF_FEW_BANDS):
            bands = _RGB_OF_FEW_BANDS[count - 1]
        elif count <= _MAX_MULTISPECTRAL_BANDS:
            bands = (3, 2, 1)
        else:
            bands = (5 * count // 6, count // 2, count // 6)
        return cls(bands, tuple(names), tuple(mean), tuple(std))

    def render(
        self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], nodata_color: Sequence[float] = UNLABELLED_COLOR
    ) -> NDArray[np.float64]:
        """Return pixels (C, H, W) as float64 (H, W, 3) in 0..1; pixels that are not `valid` (H, W) get `nodata_color`.

        A band without a value (NaN) at a valid pixel is drawn at its mean, as the network sees it.
        """
        indices = [band - 1 for band in self.bands]
        mean, std = (np.array(each)[indices][:, None, None] for each in (self.mean, self.std))
        scaled = np.nan_to_num((pixels[indices] - mean) / np.where(std > 0, std, 1), posinf=0, neginf=0)
        image: NDArray[np.float64] = np.moveaxis(np.clip(scaled / (2 * _STRETCH_STD) + 0.5, 0, 1), 0, 2)
        image[~valid] = nodata_color
        return image

    @property
    def caption(self) -> str:
        """Bands and stretch: "red, green, blue = B4, B3, B2 (of 10), stretched to mean ± 2 standard deviations"."""
        names = list(dict.fromkeys(self.names[band - 1] for band in self.bands))
        colors = {1: "grey", 2: "red, cyan"}.get(len(names), "red, green, blue")
        of_all = f" (of {len(self.names)})" if len(self.names) > len(names) else ""
        return f"{colors} = {', '.join(names)}{of_all}, stretched to mean ± {_STRETCH_STD} standard deviations"


def centre_indices(length: int, step: int) -> NDArray[np.intp]:
    """Return the index of the centre of each cell of `step` pixels; the last cell may be smaller."""
    return np.minimum(np.arange(0, length, step) + step // 2, length - 1)


def block_means(
    pixels: NDArray[np.float32], valid: NDArray[np.bool_], step: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return means of valid pixels over cells of `step` x `step` pixels (NaN if there are none), and valid cells."""
    if step == 1:
        return pixels, valid
    rows, columns = (np.arange(0, length, step) for length in valid.shape)

    def cell_sums(values: NDArray[Any]) -> NDArray[np.float64]:
        row_sums = np.add.reduceat(values, rows, axis=-2, dtype=np.float64)
        return np.asarray(np.add.reduceat(row_sums, columns, axis=-1))

    defined = valid & np.isfinite(pixels)
    with np.errstate(invalid="ignore"):
        means = cell_sums(np.where(defined, pixels, 0)) / cell_sums(defined)
    return means.astype(np.float32), cell_sums(valid) > 0


def stretch(pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return bands (3, H, W) as an RGB image, float64 (H, W, 3), 0 and 1 at percentiles of the valid pixels (H, W)."""
    image = np.empty((*valid.shape, 3))
    for channel, band in enumerate(pixels):
        low, high = np.percentile(band[valid], _STRETCH_PERCENTILES) if valid.any() else (0, 1)
        image[..., channel] = np.clip((band - low) / max(high - low, 1e-9), 0, 1)
    return image


def rgb_composite(scene: Scene, bands: Sequence[int], window: Window | None = None) -> NDArray[np.float64]:
    """Return three bands of a scene as an RGB image, float64 (H, W, 3) in 0..1, with a percentile stretch.

    Pixels that are nodata in any of the bands are grey.

    Parameters
    ----------
    bands
        Indices of the three bands of the scene, from 1.
    """
    tile = scene.read(window)
    shown = tile.pixels[[band - 1 for band in bands]]
    valid = tile.valid & np.isfinite(shown).all(axis=0)
    image = stretch(shown, valid)
    image[~valid] = UNLABELLED_COLOR
    return image


def colorize(targets: NDArray[np.int16], task: Task) -> NDArray[np.float64]:
    """Return targets or predictions (T, H, W) in the task's colours, float64 (H, W, 3).

    Colours of overlapping classes are averaged. Pixels without a class have the colour of background or a light grey,
    unlabelled pixels are grey.
    """
    colors = {row["name"]: _rgb(row["color"]) for row in task.legend}
    no_class = next((_rgb(row["color"]) for row in task.legend if row.get("background")), np.full(3, 0.91))
    color_sum, n_classes = np.zeros((*targets.shape[1:], 3)), np.zeros(targets.shape[1:])
    for name, target, category in task.scored_categories:
        present = targets[target] == category
        color_sum[present] += colors[name]
        n_classes += present
    image = np.where(n_classes[..., None] > 0, color_sum / np.maximum(n_classes, 1)[..., None], no_class)
    image[(targets == IGNORE).all(axis=0)] = UNLABELLED_COLOR
    return image


def read_map(path: Path, task: Task, window: Window | None = None) -> NDArray[np.int16]:
    """Read a map of a task as targets (T, H, W)."""
    with open_raster(path) as dataset:
        window = window or Window(0, 0, dataset.width, dataset.height)
        values = read_window(dataset, dataset.indexes, window).astype(np.int64)
        values[:, ~read_coverage(dataset, window)] = task.nodata
        if len(values) == 1 and task.n_targets == 1:
            return task.encode(values[0], ignore=[task.nodata], source=path)
        return task.encode_masks(values, ignore=[task.nodata], source=path)


@font_fallback()
def plot_panels(
    path: Path,
    images: dict[str, NDArray[np.float64]],
    task: Task,
    extent: tuple[float, float, float, float] | None = None,
    outlines: GeoDataFrame | None = None,
) -> None:
    """Write images side by side as a PNG, with the task's legend below.

    Parameters
    ----------
    images
        {title: image (H, W, 3)}, all of the same size.
    extent
        (left, right, bottom, top) of the images in the CRS of the outlines.
    outlines
        Polygons with a column `class`, drawn over the last image in the colour of their class.
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
    """Return the legend entries of the task's classes, and grey for nodata and unlabelled pixels."""
    from matplotlib.patches import Patch

    rows = [row for row in task.legend if background or not row.get("background")]
    handles = [
        Patch(facecolor=row["color"], edgecolor="#999999", lw=0.4, label=display_name(row["name"])) for row in rows
    ]
    return [*handles, Patch(facecolor=UNLABELLED_COLOR, label="nodata or unlabelled")]


def display_name(name: str) -> str:
    """Return a class name with spaces instead of underscores."""
    return name.replace("_", " ")


def _draw_outlines(ax: Axes, outlines: GeoDataFrame, task: Task) -> None:
    limits = ax.get_xlim(), ax.get_ylim()
    for row in task.legend:
        of_class = outlines[outlines["class"] == row["name"]]
        if len(of_class):
            of_class.plot(ax=ax, facecolor=(*_rgb(row["color"]), 0.35), edgecolor=row["color"], linewidth=0.7)
    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array(parse_color(color)) / 255
