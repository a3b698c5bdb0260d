"""Labels: rasters of codes, stacks of masks or polygons, read as a task's target planes on a scene's grid.

Every label pixel is a class, background, or not known (`IGNORE`). Which planes a task has, and which classes exclude
each other, is asked of the `Task`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import GridError, LabelError
from segkit.files import existing
from segkit.grid import Grid, crs_name
from segkit.raster import grid_of, open_raster, read_window, warped
from segkit.recipe import LabelSource
from segkit.task import BACKGROUND, IGNORE, Task

VECTOR_SUFFIXES = (".shp", ".gpkg", ".geojson", ".json", ".fgb", ".gml", ".kml")

_COUNTED_AT_ONCE = 2048  # pixels along a side
_NOT_KNOWN = int(np.iinfo(np.int64).min)  # beside every code that a label raster can hold
_POLYGON_TYPES = {3: "Polygon", 6: "MultiPolygon"}
_TYPES = ("Point", "LineString", "LinearRing", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon", "Collection")
# A straight edge bends when it is reprojected; pieces of a kilometre stay within centimetres of the true line.
_LONGEST_EDGE_M, _LONGEST_EDGE_DEG = 1_000.0, 0.01


def is_vector(path: str | Path) -> bool:
    """Whether a label file holds polygons, by its suffix; every other file is taken for a raster."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


@dataclass(frozen=True, eq=False)
class Labels(ABC):
    """Labels of one scene, read window by window; holds no open file, so it can go to another process.

    Parameters
    ----------
    name
        The files, as errors name them.
    grid
        The scene's grid, which is the labels' too.
    task
        Whose target planes are read.
    notes
        What was met on opening and dealt with: geometries repaired or skipped, a missing georeference.
    """

    name: str
    grid: Grid
    task: Task
    notes: tuple[str, ...]

    def read(self, window: Window) -> NDArray[np.int16]:
        """Read the target planes of a window, int16 (P, H, W); `IGNORE` where not known, and outside the scene.

        Raises
        ------
        LabelError
            A code the task does not know, a number that is no code, or an overlap of classes that exclude each other.
        RasterError
            The file is damaged there.
        """
        row, column, height, width = (int(i) for i in (window.row_off, window.col_off, window.height, window.width))
        target = np.full((self.task.planes, height, width), IGNORE, dtype=np.int16)
        top, bottom = max(0, row), min(self.grid.height, row + height)
        left, right = max(0, column), min(self.grid.width, column + width)
        if top < bottom and left < right:
            inside = Window(left, top, right - left, bottom - top)
            target[:, top - row : bottom - row, left - column : right - column] = self._read(inside)
        return target

    @abstractmethod
    def _read(self, window: Window) -> NDArray[np.int16]:
        """Read a window that lies inside the scene."""


def open_labels(
    source: LabelSource, task: Task, grid: Grid, *, ignore: Sequence[int] = (), resample: bool = False
) -> Labels | None:
    """Open the labels of a scene.

    Parameters
    ----------
    source
        Its `path` is one raster file, or one or more vector files.
    task
        Whose codes, names and planes they have.
    grid
        The scene's.
    ignore
        Codes that mean "not known".
    resample
        Whether a raster on another grid is brought to `grid` by nearest neighbour.

    Returns
    -------
    The labels, or None where no polygon meets the scene.

    Raises
    ------
    MissingFileError
        A file is not there.
    GridError
        The labels lie on another grid, or in no known place on it.
    LabelError
        A layer, field, value or geometry that cannot be used.
    """
    paths = [Path(source.path)] if isinstance(source.path, str) else [Path(path) for path in source.path]
    if all(is_vector(path) for path in paths):
        return _open_vector(paths, source, task, grid, ignore)
    if len(paths) > 1:
        raise LabelError(f"{paths[0]} and {paths[1]}: a scene has one label raster, or vector files; name one file")
    for key in ("layer", "field", "values", "priority", "outside"):
        if getattr(source, key) is not None:
            raise LabelError(f"{paths[0]}: {key} is for vector labels ({', '.join(VECTOR_SUFFIXES)}); remove it")
    return _open_raster(paths[0], task, grid, ignore, resample)


@dataclass(frozen=True, eq=False)
class _RasterLabels(Labels):
    """One band of codes, or one 0/1 band per class in class order.

    What the file's mask or no-data value hides, and NaN, is not known.
    """

    path: Path
    ignore: tuple[int, ...]
    bands: tuple[int, ...]
    masked: bool
    resample: bool

    def _read(self, window: Window) -> NDArray[np.int16]:
        codes = self._codes(window)
        ignore = (*self.ignore, _NOT_KNOWN)
        if len(codes) > 1:
            return self.task.encode_masks(codes, ignore=ignore, source=self.path)
        try:
            return self.task.encode(codes[0], ignore=ignore, source=self.path)
        except LabelError:
            # The same is said again of the whole file, so that the codes and their pixels are all.
            counts: Counter[int] = Counter()
            for part in self.grid.tiles(_COUNTED_AT_ONCE):
                some, times = np.unique(self._codes(part), return_counts=True)
                counts.update(dict(zip(some.tolist(), times.tolist(), strict=True)))
            found, pixels = np.array([*counts.items()], dtype=np.int64).T
            return self.task.encode(found[None], ignore=ignore, source=self.path, pixels=pixels[None])

    def _codes(self, window: Window) -> NDArray[np.int64]:
        with contextlib.ExitStack() as stack:
            dataset: DatasetReader = stack.enter_context(open_raster(self.path))
            if self.resample:
                dataset = stack.enter_context(warped(dataset, self.grid, Resampling.nearest))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NodataShadowWarning)  # no-data counts, no alpha band
                return self._integers(read_window(dataset, self.bands, window, masked=self.masked))

    def _integers(self, found: NDArray[Any]) -> NDArray[np.int64]:
        values, hidden = np.ma.getdata(found), np.ma.getmaskarray(found)
        if np.issubdtype(values.dtype, np.floating):
            hidden = hidden | np.isnan(values)
            odd = ~hidden & ~(np.isfinite(values) & (values == np.rint(values)))
            if odd.any():
                raise LabelError(
                    f"{self.path}: holds {values[odd][0]:g} and such ({int(odd.sum())} pixels); label codes are whole "
                    "numbers: is this a map of fractions, or resampled with averages?"
                )
        return np.where(hidden, _NOT_KNOWN, np.where(hidden, 0, values).astype(np.int64))


def _open_raster(path: Path, task: Task, grid: Grid, ignore: Sequence[int], resample: bool) -> Labels:
    notes = []
    with open_raster(path) as dataset:
        own, nodata, flags = grid_of(dataset), dataset.nodata, dataset.mask_flag_enums
        alpha = {band for band in dataset.indexes if dataset.colorinterp[band - 1] == ColorInterp.alpha}
        # GDAL calls the fourth of four byte bands alpha, also where it is the fourth class.
        per_class = dataset.count == len(task.classes)
        bands = tuple(band for band in dataset.indexes if per_class or band not in alpha)
    alpha_is_class = bool(alpha.intersection(bands)) and any(MaskFlags.alpha in flags[band - 1] for band in bands)
    difference = grid.difference(own)
    if difference and own.crs is None and own.transform == Affine.identity() and own.shape == grid.shape:
        notes.append(f"{path} has no georeference; its pixels are taken as those of the image, which has its size")
        difference = None
    if difference and not resample:
        raise GridError(
            f"{path} lies on another grid than its image ({difference}, image first); correct the labels, or set "
            "data.resample: true"
        )
    if difference and (own.crs is None or grid.crs is None or alpha_is_class):
        why = "its alpha band would hide its other classes" if alpha_is_class else "one of them has no CRS"
        raise GridError(f"{path} cannot be resampled to its image's grid ({difference}): {why}")
    if len(bands) == 1:
        hidden = [row["name"] for row in task.legend if row["value"] == nodata]
        notes += [f"{path} declares no-data {nodata:g}, the value of {name}: it is not known there" for name in hidden]
    return _RasterLabels(
        str(path), grid, task, tuple(notes), path, tuple(ignore), bands, not alpha_is_class, bool(difference)
    )


@dataclass(frozen=True, eq=False)
class _VectorLabels(Labels):
    """Polygons in pixel coordinates of the grid; a pixel is in a polygon that holds its centre.

    `kinds` says what each polygon is: a class's position, k for "none of the classes", k + 1 for "not known".
    """

    polygons: NDArray[Any]
    kinds: NDArray[np.intp]
    tree: shapely.STRtree
    priority: tuple[int, ...]
    outside_known: bool

    def _read(self, window: Window) -> NDArray[np.int16]:
        k = len(self.task.classes)
        top, left, shape = window.row_off, window.col_off, (window.height, window.width)
        covered = np.zeros((k + 2, *shape), dtype=bool)
        near = self.tree.query(shapely.box(left, top, left + window.width, top + window.height))
        for kind in np.unique(self.kinds[near]):
            shapes = self.polygons[near[self.kinds[near] == kind]]
            covered[kind] = rasterize(shapes, shape, transform=Affine.translation(left, top), dtype="uint8")
        known = ~covered[k + 1] & (covered.any(axis=0) | self.outside_known)
        claims = covered[: k + 1]
        if self.task.planes == 1:
            self._settle(claims, known)
        masks = np.where(known, claims[:k], IGNORE).astype(np.int16)
        return self.task.encode_masks(masks, ignore=[IGNORE], source=self.name)

    def _settle(self, claims: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Leave each pixel to one claim, in place."""
        taken = np.zeros_like(known)
        for kind in (*self.priority, *(kind for kind in range(len(claims)) if kind not in self.priority)):
            claims[kind] &= ~taken
            if kind in self.priority:
                taken |= claims[kind]
        disputed = known & (claims.sum(axis=0) > 1)
        if disputed.any():
            names = [one.name for one in self.task.classes] + [BACKGROUND]
            those = [name for name, claim in zip(names, claims, strict=True) if (claim & disputed).any()]
            raise LabelError(
                f"{self.name}: polygons of {' and '.join(those)} overlap on {int(disputed.sum())} pixels, classes of a "
                f"{self.task.type} task exclude each other; list the winners first under labels.priority, correct the "
                "polygons, or use type multilabel"
            )


def _open_vector(
    paths: Sequence[Path], source: LabelSource, task: Task, grid: Grid, ignore: Sequence[int]
) -> Labels | None:
    k = len(task.classes)
    kinds = {BACKGROUND: k} if task.has_none else {}
    kinds |= {one.name: position for position, one in enumerate(task.classes)}
    polygons, meanings, notes = [], [], []
    for path in paths:
        stamp = existing(path, "vector file").stat().st_mtime_ns
        layer = _read_layer(path, source.layer, source.field, stamp)
        meaning = _meanings(path, layer, source, task, kinds, ignore)
        shapes, near, repaired = _on_grid(path, layer, grid)
        polygons.append(shapes)
        meanings.append(meaning[near])
        if layer.skipped:
            notes.append(f"{path}: {layer.skipped} features have no geometry; skipped")
        if repaired:
            notes.append(f"{path}: {repaired} polygons on this scene were invalid; repaired")
    shapes, meaning = np.concatenate(polygons), np.concatenate(meanings)
    if not shapes.size:
        return None
    name = ", ".join(str(path) for path in paths)
    ranks = tuple(kinds[one] for one in source.priority or ())
    known = source.outside != "ignore"
    return _VectorLabels(name, grid, task, tuple(notes), shapes, meaning, shapely.STRtree(shapes), ranks, known)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Polygons of a file with a geometry; `values` are the field's, as text (None where it is null)."""

    crs: CRS | None
    polygons: NDArray[Any]
    values: tuple[str | None, ...] | None
    fields: tuple[str, ...]
    skipped: int


@functools.lru_cache(maxsize=8)  # one file serves many scenes
def _read_layer(path: Path, layer: str | None, field: str | None, stamp: int) -> _Layer:
    """Read one layer; `stamp` is the file's time of change, so that a changed file is read again."""
    try:
        layers = [name for name, geometry in pyogrio.list_layers(path) if geometry is not None]
        if (layer not in layers) if layer else (len(layers) != 1):
            missing = f"layer {layer!r} is not there; " if layer else ""
            there = ", ".join(layers) or "none"
            raise LabelError(f"{path}: {missing}its layers with geometries are {there}; name one under labels.layer")
        meta, _, wkb, columns = pyogrio.raw.read(path, layer=layer or layers[0])
    except (DataSourceError, DataLayerError) as error:
        raise LabelError(f"{path}: cannot be read as a vector file ({error})") from error
    fields = tuple(str(name) for name in meta["fields"])
    if field is not None and field not in fields:
        raise LabelError(f"{path}: field {field!r} is not there; its fields are {', '.join(fields) or 'none'}")
    geometries = np.asarray(shapely.from_wkb(wkb), dtype=object)
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    types = shapely.get_type_id(geometries)
    for other in np.unique(types[there & ~np.isin(types, list(_POLYGON_TYPES))]):
        raise LabelError(
            f"{path}: {int((types[there] == other).sum())} of {there.sum()} geometries are of type {_TYPES[other]}; "
            "labels are polygons: buffer points and lines first"
        )
    values = None if field is None else tuple(_text(value) for value in columns[fields.index(field)][there])
    crs = None if meta["crs"] is None else CRS.from_user_input(meta["crs"])
    return _Layer(crs, shapely.force_2d(geometries[there]), values, fields, int((~there).sum()))


def _text(value: Any) -> str | None:
    """Write a field's value as a recipe would; whole numbers are whole in every type."""
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value).strip()


def _meanings(
    path: Path, layer: _Layer, source: LabelSource, task: Task, kinds: dict[str, int], ignore: Iterable[int]
) -> NDArray[np.intp]:
    """Say what each polygon of a layer is, as `_VectorLabels.kinds` does."""
    not_known = len(task.classes) + 1
    if layer.values is None:
        if len(task.classes) > 1:
            raise LabelError(
                f"{path}: the task has {len(task.classes)} classes; name the field that tells them apart under "
                f"labels.field (there are {', '.join(layer.fields) or 'none'})"
            )
        return np.zeros(len(layer.polygons), dtype=np.intp)
    if source.values is not None:
        table = {value: not_known if name is None else kinds[name] for value, name in source.values.items()}
    else:
        table = {str(code): not_known for code in ignore}
        table |= {str(task.background_value): kinds[BACKGROUND]} if BACKGROUND in kinds else {}
        table |= {str(one.value): kinds[one.name] for one in task.classes} | kinds
    unknown = [value for value in layer.values if value not in table]
    if unknown:
        counts = ", ".join(f"{value!r} ({unknown.count(value)} polygons)" for value in list(dict.fromkeys(unknown))[:5])
        raise LabelError(
            f"{path}: field {source.field!r} holds {counts}, known are {', '.join(table)}; say under labels.values "
            "which class each is (null: not known)"
        )
    return np.array([table[value] for value in layer.values if value is not None], dtype=np.intp)


def _on_grid(path: Path, layer: _Layer, grid: Grid) -> tuple[NDArray[Any], NDArray[np.intp], int]:
    """Take the polygons that may meet the grid to its pixel coordinates, and make them valid.

    Also returns which polygons of the layer they are, and how many were not valid.
    """
    if (layer.crs is None) != (grid.crs is None):
        raise GridError(
            f"{path} has CRS {crs_name(layer.crs)}, its image {crs_name(grid.crs)}; assign the one that is missing"
        )
    bounds, to_grid = grid.bounds, None
    if layer.crs is not None and grid.crs is not None and layer.crs != grid.crs:
        to_grid = pyproj.Transformer.from_crs(layer.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True)
        bounds = to_grid.transform_bounds(*bounds, direction="INVERSE")
    near = _meeting(layer.polygons, bounds)
    polygons = layer.polygons[near]
    if layer.crs is not None and to_grid is not None:
        edge = _LONGEST_EDGE_DEG if layer.crs.is_geographic else _LONGEST_EDGE_M / layer.crs.linear_units_factor[1]
        polygons = shapely.transform(shapely.segmentize(polygons, edge), to_grid.transform, interleaved=False)
    a, b, c, d, e, f, *_ = ~grid.transform
    polygons = shapely.transform(polygons, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)
    meets = _meeting(polygons, (0, 0, grid.width, grid.height))
    polygons, near = polygons[meets], near[meets]
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.make_valid(polygons[invalid], method="structure", keep_collapsed=False)
    left = ~shapely.is_empty(polygons)  # a polygon that was but a line
    return polygons[left], near[left], int(invalid.sum())


def _meeting(polygons: NDArray[Any], bounds: tuple[float, float, float, float]) -> NDArray[np.intp]:
    """Say which polygons' boxes meet (left, bottom, right, top); left > right where the antimeridian lies between."""
    x0, y0, x1, y1 = shapely.bounds(polygons).reshape(-1, 4).T
    left, bottom, right, top = bounds
    across = (x1 >= left) & (x0 <= right) if left <= right else (x1 >= left) | (x0 <= right)
    return np.flatnonzero(across & (y1 >= bottom) & (y0 <= top) & np.isfinite(x0 + y0 + x1 + y1))
