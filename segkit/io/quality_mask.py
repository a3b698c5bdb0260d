"""Quality bands: rasters whose values or bits say which pixels of a scene are not valid, such as clouds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from segkit.errors import GridError, MissingFileError, RasterError, suggest
from segkit.io.band_choice import StackedBand
from segkit.io.band_names import read_names
from segkit.io.grid import Grid
from segkit.io.memory_raster import MemoryRaster
from segkit.io.mosaic_dataset import read_coverage, with_unreadable
from segkit.io.mosaic_warp import PartialWarp, WarpedMosaic, warp_raster
from segkit.io.paths import FileSet
from segkit.io.raster import INTEGER_DTYPES, open_raster, read_grid, read_window
from segkit.io.remote import Remote, as_path, join_path
from segkit.io.unreadable import PartialRaster, UnreadableBlocks

NAME_PLACEHOLDER = "{name}"

_ADVICE_ON_STACKS = "set data.mask.per: scene if the mask of the first file is that of all"


@dataclass(frozen=True)
class MaskRule:
    """Which values of a quality band mean that a pixel is not valid.

    Parameters
    ----------
    values
        Values that do.
    bits
        Numbers of bits, the lowest is 0, of which one that is set does.
    name
        Name of the band among those of an image; "" if it has none in use.
    """

    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    name: str = ""

    def is_masked(self, band: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels of a quality band (H, W) are not valid, bool (H, W); NaN never is."""
        masked = np.isin(band, self.values)
        if band.dtype.kind == "f":
            masked |= np.isnan(band)
        if self.bits:
            masked |= (band.astype(np.int64) & sum(1 << bit for bit in {*self.bits})) != 0
        return masked


MASK_PRESETS = {
    # ESA, "Sentinel-2 Level-2A Product Definition Document", scene classification: 0 no data, 1 saturated or defective,
    # 3 cloud shadow, 8 and 9 cloud of medium and high probability, 10 thin cirrus. Valid: 2 dark area or topographic
    # shadow, 4 vegetation, 5 not vegetated, 6 water, 7 unclassified, 11 snow or ice.
    "sentinel2_scl": MaskRule(values=(0, 1, 3, 8, 9, 10), name="SCL"),
    # USGS, "Landsat 8-9 Collection 2 Level 2 Science Product Guide" (LSDS-1619), table "QA_PIXEL bits": 0 fill,
    # 1 dilated cloud, 2 cirrus (Landsat 8 and 9; unused in 4 to 7), 3 cloud, 4 cloud shadow. Valid: 5 snow, 6 clear,
    # 7 water; higher bits are confidences.
    "landsat_qa_pixel": MaskRule(bits=(0, 1, 2, 3, 4), name="QA_PIXEL"),
    # Planet, "Usable Data Mask" (UDM2 and UDM2.1), band 1: 0 not clear (cloud, haze, shadow, snow, no image), 1 clear.
    "planet_udm2": MaskRule(values=(0,), name="clear"),
    # Zhu and Woodcock 2012, "Object-based cloud and cloud shadow detection in Landsat imagery": 2 cloud shadow, 4
    # cloud, 255 fill. Valid: 0 land, 1 water, 3 snow.
    "fmask": MaskRule(values=(2, 4, 255), name="Fmask"),
}


@dataclass(frozen=True)
class QualityMask:
    """Where the quality bands of a scene are, and what they mean.

    Parameters
    ----------
    rule
        What their values mean. A pixel is not valid if one of the bands says so.
    bands
        Numbers or names of the bands: in the file if there is one, else in the scene. By default the band with the name
        of the rule, or the first one of the file.
    file
        Path of a file, relative to the folder of the image; "{name}" in it stands for the image's name without
        extension.
    replace
        Pairs of texts: the file is called like the image, with each first text replaced by the second.
    per_file
        Whether each file of a scene has a mask that is named after it, as several dates have; else that of the first
        one is the mask of the scene.
    """

    rule: MaskRule
    bands: tuple[int | str, ...] = ()
    file: str | None = None
    replace: tuple[tuple[str, str], ...] = ()
    per_file: bool = True

    @property
    def in_file(self) -> bool:
        """Whether the quality bands are in a file of their own."""
        return self.file is not None or bool(self.replace)

    def paths(self, images: Sequence[Path]) -> tuple[Path, ...]:
        """Return the files with the quality bands of a scene of these files; none if they are in the scene itself.

        Raises
        ------
        RasterError
            The name of an image has not the text that is to be replaced, or one file would be the mask of two images.
        MissingFileError
            A file does not exist.
        """
        if not self.in_file:
            return ()
        is_named = bool(self.replace) or NAME_PLACEHOLDER in (self.file or "")
        named = images if is_named and self.per_file else images[:1]
        found = {image: self._path(image, in_stack=len(images) > 1) for image in named}
        first: dict[str, Path] = {}
        for image, path in found.items():
            other = first.setdefault(os.path.realpath(path), image)
            if other != image:
                raise RasterError(
                    f"{path}: is the quality mask of {other} and of {image}, two files of a scene"
                    + suggest("name one file for both (--mask)", _ADVICE_ON_STACKS)
                )
        return tuple(found.values())

    def _path(self, image: Path, *, in_stack: bool) -> Path:
        """Return the file with the quality bands of an image, which may be one of several of a scene (`in_stack`)."""
        if isinstance(image, MemoryRaster) and image.files:
            [image] = image.files  # of an open dataset
        if isinstance(image, FileSet) and not image.is_named and (self.file is None or NAME_PLACEHOLDER in self.file):
            raise RasterError(
                f"{image}: is a mosaic, or in memory, and has no name for that of its quality mask; name one file for "
                "all of it (data.mask.file), or a band of it (data.mask.band)"
            )
        if self.file is not None:
            folder = as_path(os.fspath(image).rpartition("/")[0]) if isinstance(image, Remote) else image.parent
            found = join_path(folder, self.file.replace(NAME_PLACEHOLDER, image.stem))
        else:
            name = image.name
            for old, new in self.replace:
                if old not in name:
                    raise RasterError(
                        f"{image}: its quality mask is named after it, but its name does not contain {old!r}"
                        + suggest("correct data.mask.replace", *([_ADVICE_ON_STACKS] if in_stack else []))
                    )
                name = name.replace(old, new)
            found = image.with_name(name)
        if not isinstance(found, Remote) and not found.exists():
            raise MissingFileError(
                f"{found}: no such file; it is the quality mask of {image}"
                + suggest("name it (--mask)", "correct data.mask", *([_ADVICE_ON_STACKS] if in_stack else []))
            )
        return found

    def find_bands(self, names: Sequence[str], where: Path) -> tuple[int, ...]:
        """Return the numbers of the bands, from 1, in a file or scene with these band names.

        A name stands for all bands that have it, such as those of several dates.

        Raises
        ------
        RasterError
            There is no such band.
        """
        wanted = self.bands or ((1,) if self.in_file else (self.rule.name,))
        found: list[int] = []
        for one in wanted:
            numbers = _find_named(one, names) if isinstance(one, str) else [one]
            found += numbers
            if not numbers or not 1 <= numbers[0] <= len(names):
                raise RasterError(
                    f"{where}: has no quality band {one}; its bands are {', '.join(names)}; "
                    + (
                        "correct data.mask.band"
                        if self.in_file
                        else "set data.mask.band, or data.mask.file for another file"
                    )
                )
        return tuple(found)


@dataclass(frozen=True)
class SceneMask:
    """The quality bands of one scene: a file, the numbers of bands in it, and what they mean."""

    path: Path
    bands: tuple[int, ...]
    rule: MaskRule


class MaskSource:
    """Source of a scene's mask of valid pixels that reads no bands; see `segkit.io.scene.BandSource`.

    Parameters
    ----------
    dataset
        On the grid of the scene.
    outside_band
        Number of the band that is 0 outside of the file; None if it covers the scene.
    """

    def __init__(self, dataset: Any, mask: SceneMask, outside_band: int | None) -> None:
        self.places: list[int] = []
        self._dataset, self._mask, self._outside_band = dataset, mask, outside_band

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the valid mask of a window, bool (H, W)."""
        bands = [*self._mask.bands, *([] if self._outside_band is None else [self._outside_band])]
        layers = read_window(self._dataset, bands, window)
        valid = read_coverage(self._dataset, window)
        for layer in layers[: len(self._mask.bands)]:
            valid &= ~self._mask.rule.is_masked(layer)
        if self._outside_band is not None:
            valid &= layers[-1] != 0
        return valid


def _find_named(wanted: str, names: Sequence[str]) -> list[int]:
    """Return the numbers of the bands of a name; in a scene of several files, bands are called FILE:NAME."""
    text = wanted.casefold()
    return [
        number for number, name in enumerate(names, 1) if text in (name.casefold(), name.casefold().rpartition(":")[2])
    ]


def find_masks(
    mask: QualityMask, images: Sequence[Path], stack: Sequence[StackedBand], names: Sequence[str], *, vrt: bool | None
) -> tuple[SceneMask, ...]:
    """Return the quality bands of a scene: in files of their own, or among its bands.

    Parameters
    ----------
    images
        The files of the scene, each once.
    stack, names
        All bands of the scene, and their names.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file or band, or it holds no integers although bits are to be read.
    """
    masks = []
    for path in mask.paths(images):
        with open_raster(path, vrt=vrt) as dataset:
            masks.append(SceneMask(path, mask.find_bands(read_names(path, dataset), path), mask.rule))
    if not masks:
        bands = [stack[number - 1] for number in mask.find_bands(names, images[0])]
        masks = [
            SceneMask(each, tuple(band.number for band in bands if band.path == each), mask.rule)
            for each in dict.fromkeys(band.path for band in bands)
        ]
    for one in masks if mask.rule.bits else ():
        with open_raster(one.path, vrt=vrt) as dataset:
            if wrong := {dataset.dtypes[band - 1] for band in one.bands} - {*INTEGER_DTYPES}:
                raise RasterError(f"{one.path}: holds {wrong.pop()}, but data.mask reads bits of integers")
    return tuple(masks)


@contextlib.contextmanager
def open_mask(
    mask: SceneMask, grid: Grid, *, vrt: bool | None, unreadable: UnreadableBlocks | None = None
) -> Iterator[MaskSource]:
    """Open quality bands; on another grid, the nearest pixel counts, and pixels outside of the file are not valid.

    Blocks that cannot be read are added to `unreadable`; without it, they are errors.

    Raises
    ------
    RasterError
        The file cannot be opened.
    GridError
        It is on another grid, and one of the two has no CRS.
    """
    with contextlib.ExitStack() as stack:
        dataset = with_unreadable(stack.enter_context(open_raster(mask.path, vrt=vrt)), unreadable)
        own = read_grid(dataset)
        difference = grid.describe_difference(own)
        if difference is None:
            yield MaskSource(dataset, mask, None)
            return
        if grid.crs is None or own.crs is None:
            raise GridError(
                f"{mask.path}: is the quality mask of a scene on another grid ({difference}), and one of them has no "
                "CRS, so it cannot be resampled; give both the same georeference"
            )
        warped: Any = (
            PartialWarp(dataset, grid, Resampling.nearest)
            if isinstance(dataset, PartialRaster)
            else stack.enter_context(warp_raster(dataset, grid, Resampling.nearest, ignore_nodata=True))
        )
        yield MaskSource(warped, mask, None if isinstance(warped, WarpedMosaic) else warped.count)
