"""Rasters in memory, as paths: arrays, and rasterio datasets that are open already."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import RasterError, UsageError
from segkit.io.grid import Grid
from segkit.io.paths import FileSet

# Returns the bands (indices from 0) of some rows and columns, (bands, H, W); a masked array may say what is no data.
ReadPixels = Callable[[list[int], slice, slice], NDArray[Any]]


class ArrayDataset:
    """An array as a raster: it has the attributes and methods of a rasterio dataset that segkit uses.

    Parameters
    ----------
    name
        For messages.
    read_pixels
        Reads a part of it, so that it need not be in memory as a whole.
    dtype, count, grid
        Data type, number of bands, and grid.
    descriptions
        Names of the bands.
    nodata
        Value that means no data in every band; NaN is possible.
    scaling
        Scale and offset of each band.
    valid
        Pixels that have data, bool (H, W); None: all.
    tags
        Metadata.
    """

    driver = "memory"

    def __init__(
        self,
        name: str,
        read_pixels: ReadPixels,
        dtype: np.dtype[Any],
        count: int,
        grid: Grid,
        *,
        descriptions: Sequence[str | None] = (),
        nodata: float | None = None,
        scaling: Sequence[tuple[float, float]] = (),
        valid: NDArray[np.bool_] | None = None,
        is_masked: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.grid, self.count = name, grid, count
        self.height, self.width, self.transform, self.crs = grid.height, grid.width, grid.transform, grid.crs
        self.indexes = tuple(range(1, count + 1))
        self.dtypes = (dtype.name,) * count
        self.descriptions = tuple(descriptions) or (None,) * count
        self.colorinterp = (ColorInterp.undefined,) * count
        # The masks of bands hold everything that means no data, so no value is to be compared in addition.
        self.nodatavals: tuple[None, ...] = (None,) * count
        self.scales = tuple(scale for scale, _ in scaling) or (1.0,) * count
        self.offsets = tuple(offset for _, offset in scaling) or (0.0,) * count
        has_masks = nodata is not None or valid is not None or is_masked
        self.mask_flag_enums = ([MaskFlags.nodata if has_masks else MaskFlags.all_valid],) * count
        self.block_shapes = ((min(256, grid.height), grid.width),) * count
        self._read_pixels, self._dtype, self._nodata, self._valid = read_pixels, dtype, nodata, valid
        self._tags = dict(tags or {})

    def tags(self, bidx: int = 0, ns: str | None = None) -> dict[str, str]:
        """Return the metadata of the raster; bands have none."""
        return {} if bidx or ns else dict(self._tags)

    def read(
        self,
        indexes: Sequence[int] | int,
        *,
        window: Window | None = None,
        out: NDArray[Any] | None = None,
        masked: bool = False,
    ) -> NDArray[Any]:
        """Read bands of a window inside the raster, (bands, H, W), or (H, W) for one number; see rasterio."""
        bands = [indexes] if isinstance(indexes, int) else list(indexes)
        found = self._read(bands, window)
        values = np.asarray(np.ma.getdata(found))
        if out is not None:
            with np.errstate(over="ignore"):  # beyond float32, values are infinite, as those that GDAL reads
                np.copyto(out, values, casting="unsafe")
            values = out
        if masked:
            values = np.ma.MaskedArray(values, self._is_nodata(found, window))
        return values[0] if isinstance(indexes, int) else values

    def read_masks(self, band: int, *, window: Window | None = None) -> NDArray[np.uint8]:
        """Return the mask of a band, uint8 (H, W): 0 is no data."""
        masked = self._is_nodata(self._read([band], window), window)[0]
        return np.where(masked, np.uint8(0), np.uint8(255))

    def _read(self, bands: Sequence[int], window: Window | None) -> NDArray[Any]:
        rows, columns = (window or self.grid.full_window).toslices()
        return self._read_pixels([band - 1 for band in bands], rows, columns)

    def _is_nodata(self, values: NDArray[Any], window: Window | None) -> NDArray[np.bool_]:
        masked = np.ma.getmaskarray(values)
        if self._nodata is not None:
            stored = np.asarray(np.ma.getdata(values))
            masked = masked | (np.isnan(stored) if math.isnan(self._nodata) else stored == self._stored_nodata())
        if self._valid is not None:
            rows, columns = (window or self.grid.full_window).toslices()
            masked = masked | ~self._valid[rows, columns]
        return masked

    def _stored_nodata(self) -> Any:
        """Return the no-data value as pixels hold it: a float32 raster holds the float32 next to it."""
        return self._dtype.type(self._nodata) if self._dtype.kind == "f" else self._nodata


class MemoryRaster(FileSet):
    """A raster in memory; it can be given wherever a raster is read. Two are equal if they are the same object."""

    _label = "array"

    def __new__(cls, label: str, *_: Any) -> Self:
        """Create the path; `label` is its name in messages."""
        return PurePath.__new__(cls, label)

    def __init__(self, label: str, dataset: Any, file: Path | None = None) -> None:
        super().__init__(label)
        self._label, self._dataset, self._file = label, dataset, file

    @property
    def files(self) -> tuple[Path, ...]:
        """The local file of an open dataset; none of an array."""
        return () if self._file is None else (self._file,)

    @contextlib.contextmanager
    def open_dataset(self, *, vrt: bool | None) -> Iterator[Any]:
        """Give the raster; it stays open.

        Raises
        ------
        RasterError
            It is georeferenced by ground control points only.
        """
        if self._dataset.transform.is_identity and getattr(self._dataset, "gcps", ([], None))[0]:
            raise RasterError(f"{self}: georeferenced by ground control points only; warp it first (gdalwarp)")
        yield self._dataset

    def describe(self) -> str:
        """Return its name."""
        return self._label

    @property
    def name(self) -> str:
        """The name of the file, or what messages call the array."""
        return self._label if self._file is None else self._file.name

    @property
    def stem(self) -> str:
        """The name without extension."""
        return self._label if self._file is None else self._file.stem

    @property
    def suffix(self) -> str:
        """That of the file."""
        return "" if self._file is None else self._file.suffix

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return true."""
        return True

    def __str__(self) -> str:
        return self._label

    def __fspath__(self) -> str:
        return self._label

    def __repr__(self) -> str:
        return f"MemoryRaster({self._label!r})"

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def plain_grid(height: int, width: int, crs: CRS | None = None) -> Grid:
    """Return the grid of a raster without a georeference; see `segkit.io.raster.read_grid`."""
    return Grid(height, width, Affine.scale(1, -1), crs, georeferenced=False)


def array_raster(array: NDArray[Any], *, valid: Any = None, band_names: Sequence[str] | None = None) -> MemoryRaster:
    """Return a numpy array as a raster without a georeference.

    Parameters
    ----------
    array
        (C, H, W) of numbers; what a masked array masks is no data in its band.
    valid
        (H, W), bool, or numbers of which 0 means no data; None: all pixels have data.
    band_names
        Names of the bands.

    Raises
    ------
    UsageError
        The array has another shape or type, or `valid` or `band_names` do not fit it.
    """
    if array.ndim != 3:
        advice = "; add the axis of the bands: array[None]" if array.ndim == 2 else ""
        raise UsageError(f"the array has the shape {array.shape}; a scene is (bands, rows, columns){advice}")
    check_numbers(array.dtype, "the array")
    if not array.size:
        raise UsageError(f"the array has the shape {array.shape}, so it has no pixels")
    count, height, width = array.shape

    def read_pixels(bands: list[int], rows: slice, columns: slice) -> NDArray[Any]:
        return array[:, rows, columns][bands]  # first the window: bands[...] copies

    dataset = ArrayDataset(
        "array",
        read_pixels,
        array.dtype,
        count,
        plain_grid(height, width),
        descriptions=check_names(band_names, count),
        valid=check_valid(valid, height, width),
        is_masked=isinstance(array, np.ma.MaskedArray),
    )
    return MemoryRaster("array", dataset)


def dataset_raster(dataset: DatasetReader) -> MemoryRaster:
    """Return an open rasterio dataset as a raster; it stays open.

    Raises
    ------
    UsageError
        It is closed, or is being written.
    """
    if dataset.closed:
        raise UsageError(f"{dataset.name}: the dataset is closed; open it again, or give its path")
    if dataset.mode != "r":
        raise UsageError(
            f"{dataset.name}: the dataset is open for writing ({dataset.mode}); close it, and open it to read"
        )
    path = Path(dataset.name)
    return MemoryRaster(dataset.name, dataset, path if path.is_file() else None)


def check_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of bands; raise a UsageError if there are not as many as bands."""
    if isinstance(names, str) or (names is not None and len(names) != count):
        given = names if isinstance(names, str) else ", ".join(map(str, names or ()))
        raise UsageError(
            f"band_names is {given}, but the array has {count} bands; name each, in the order of the array"
        )
    return tuple(map(str, names or ()))


def check_valid(valid: Any, height: int, width: int) -> NDArray[np.bool_] | None:
    """Return the mask of pixels with data, bool (H, W).

    Raises
    ------
    UsageError
        It has another shape, or is neither bool nor integer.
    """
    if valid is None:
        return None
    mask = np.asarray(valid)
    if mask.shape != (height, width) or mask.dtype.kind not in "bui":
        raise UsageError(
            f"valid has the shape {mask.shape} and the type {mask.dtype}; it is bool ({height}, {width}): true (or not "
            "0) where pixels have data"
        )
    has_data: NDArray[np.bool_] = mask != 0
    return has_data


def check_numbers(dtype: np.dtype[Any], what: str) -> None:
    """Raise a UsageError if pixels are not real numbers."""
    if dtype.kind not in "buif":
        raise UsageError(f"{what} holds {dtype}; pixels are integers or floating-point numbers")
