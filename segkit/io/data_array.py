"""xarray's DataArray as a raster, and maps as DataArrays: the only module that uses xarray and rioxarray.

A DataArray is recognised without importing xarray, which is loaded if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segkit.errors import UsageError
from segkit.io.grid import Grid
from segkit.io.memory_raster import ArrayDataset, MemoryRaster, check_names, check_numbers, check_valid, plain_grid
from segkit.io.paths import PathLike
from segkit.runtime.extras import describe_missing_package

if TYPE_CHECKING:
    from xarray import DataArray

    AnyMap: TypeAlias = "PathLike | DataArray | HasRaster"

# Of a coordinate from where the transform has its pixel; and where float32 has no more digits.
_MAX_SHIFT_PX, _MAX_ROUNDING_PX = 1e-3, 0.1


@runtime_checkable
class HasRaster(Protocol):
    """Something that has a raster in memory, such as a map that was predicted there."""

    def to_raster(self) -> MemoryRaster:
        """Return it."""


def is_data_array(given: object) -> TypeGuard[DataArray]:
    """Return whether an object is a DataArray.

    Raises
    ------
    UsageError
        It is a Dataset, whose variables are not in an order.
    """
    xarray = sys.modules.get("xarray")
    if xarray is None:
        return False
    if isinstance(given, xarray.Dataset):
        raise UsageError(
            'the scene is an xarray.Dataset; make its variables bands: dataset.to_array("band"), or choose one of them'
        )
    return isinstance(given, xarray.DataArray)


def as_raster(given: AnyMap) -> PathLike:
    """Return a raster in memory (a DataArray, or what has one) as a path; a path is returned unchanged."""
    if is_data_array(given):
        return data_array_raster(given)
    return given.to_raster() if isinstance(given, HasRaster) else given


def data_array_raster(
    array: DataArray,
    *,
    valid: Any = None,
    band_names: Sequence[str] | None = None,
    numbered: Sequence[int] = (),
    from_more: bool = False,
) -> MemoryRaster:
    """Return a DataArray as a raster; parts are loaded when they are read.

    Its CRS, transform and no-data value are those of rioxarray. Names of bands are `band_names`, or its ``long_name``
    as rioxarray gives it, or texts in the coordinate of its bands.

    Parameters
    ----------
    valid
        As for `array_raster`; of a DataArray, its axes may have another order.
    numbered
        Numbers of bands that are wanted if the bands have no names: if the coordinate of the bands holds these numbers,
        the bands are read in this order.
    from_more
        Whether the coordinate may hold other numbers, too; these bands are then left out.

    Raises
    ------
    UsageError
        It has other axes than bands, rows and columns, other types of values, or coordinates that are not even.
    """
    _require_rioxarray()
    rows, columns, bands = _axes(array)
    check_numbers(array.dtype, "the DataArray")
    count = 1 if bands is None else array.sizes[bands]
    if not array.size:
        raise UsageError(f"the DataArray has the sizes {dict(array.sizes)}, so it has no pixels")
    names = check_names(band_names, count) or _band_names(array, bands, count)
    positions = list(range(count))
    if not names and bands is not None and numbered:
        coordinate = _numbers(array, bands)
        if {*numbered} == {*coordinate} or (from_more and {*numbered} < {*coordinate}):
            positions = [coordinate.index(number) for number in numbered]

    def read_pixels(indices: list[int], row: slice, column: slice) -> NDArray[Any]:
        part = array.isel({rows: row, columns: column})
        if bands is None:
            return np.asarray(part.transpose(rows, columns).values)[None]
        chosen = part.isel({bands: [positions[index] for index in indices]})
        return np.asarray(chosen.transpose(bands, rows, columns).values)

    label = str(array.name or "DataArray")
    scaling = _scaling(array, bands, count)
    dataset = ArrayDataset(
        label,
        read_pixels,
        array.dtype,
        len(positions),
        _grid(array, rows, columns),
        descriptions=names,
        nodata=None if array.rio.nodata is None else float(array.rio.nodata),
        scaling=[scaling[position] for position in positions],
        valid=check_valid(_as_mask(valid, array, rows, columns), array.sizes[rows], array.sizes[columns]),
        tags={key: value for key, value in array.attrs.items() if isinstance(value, str)},
    )
    return MemoryRaster(label, dataset)


def data_array_like(
    like: DataArray,
    values: NDArray[Any],
    name: str,
    *,
    nodata: float,
    band_names: Sequence[str],
    attributes: Mapping[str, str],
) -> DataArray:
    """Return values on the grid of another DataArray, with its coordinates and CRS.

    Parameters
    ----------
    values
        (H, W), or (bands, H, W) with the axis "band" before those of `like`.
    nodata
        Value that means no data.
    band_names
        Names of the bands: the coordinate "band", and ``long_name``, which rioxarray writes into files.
    attributes
        Metadata.
    """
    from xarray import DataArray

    rows, columns, bands = _axes(like)
    kept = {key: one for key, one in like.coords.items() if bands not in one.dims and key != "band"}
    axes, long_name = [rows, columns], band_names[0] if len(band_names) == 1 else tuple(band_names)
    if values.ndim == 3:
        axes, kept = ["band", *axes], {"band": list(band_names), **kept}
    made = DataArray(values, dims=axes, coords=kept, name=name, attrs={**attributes, "long_name": long_name})
    written: DataArray = made.rio.set_spatial_dims(columns, rows).rio.write_nodata(nodata)
    return written


def _require_rioxarray() -> None:
    try:
        import rioxarray  # noqa: F401 - gives DataArrays their CRS and transform
    except ModuleNotFoundError as error:
        raise UsageError(f"a DataArray: {describe_missing_package(error)}") from error


def _axes(array: DataArray) -> tuple[str, str, str | None]:
    """Return the names of the axes of rows, columns and bands."""
    from rioxarray.exceptions import MissingSpatialDimensionError

    try:
        rows, columns = str(array.rio.y_dim), str(array.rio.x_dim)
    except MissingSpatialDimensionError as error:
        raise UsageError(
            f"the DataArray has the axes {', '.join(map(str, array.dims))}; those of rows and columns must be called y "
            "and x: array.rio.set_spatial_dims(x_dim=..., y_dim=...)"
        ) from error
    others = [str(axis) for axis in array.dims if axis not in (rows, columns)]
    if len(others) > 1:
        raise UsageError(
            f"the DataArray has the axes {', '.join(map(str, array.dims))}; a scene has one besides {rows} and "
            f'{columns}, that of its bands: choose one date, or stack them: array.stack(bands=["{others[0]}", '
            f'"{others[1]}"])'
        )
    return rows, columns, others[0] if others else None


def _as_mask(valid: Any, array: DataArray, rows: str, columns: str) -> Any:
    """Return a mask with the axes of an array in their order; what is no DataArray is returned unchanged.

    Raises
    ------
    UsageError
        It has other axes, or its pixels lie elsewhere.
    """
    if not is_data_array(valid):
        return valid
    if {*valid.dims} != {rows, columns}:
        raise UsageError(f"valid has the axes {', '.join(map(str, valid.dims))}; the scene's are {rows} and {columns}")
    for axis in (rows, columns):
        mine, theirs = _centres(valid, axis), _centres(array, axis)
        if mine is None or theirs is None or len(mine) != len(theirs):
            continue
        if np.abs(mine - theirs).max() > _MAX_ROUNDING_PX * np.abs(np.diff(theirs)).max(initial=0):
            raise UsageError(
                f"the coordinate {axis} of valid differs from that of the scene; put it onto the same pixels: "
                "valid.reindex_like(scene)"
            )
    return valid.transpose(rows, columns)


def _numbers(array: DataArray, bands: str) -> list[int]:
    """Return the numbers in the coordinate of the bands, as in a file; none if these are something else."""
    if bands not in array.coords or array[bands].dtype.kind not in "ui":
        return []
    numbers = [int(number) for number in array[bands].values]
    return numbers if len({*numbers}) == len(numbers) and min(numbers) >= 1 else []


def _of_bands(values: Sequence[Any], array: DataArray, bands: str | None) -> tuple[Any, ...]:
    """Return the values of an attribute for each band of an array, whose bands may be some of those of its file."""
    numbers = () if bands is None else _numbers(array, bands)
    if numbers and max(numbers) <= len(values):
        return tuple(values[number - 1] for number in numbers)
    return tuple(values)


def _band_names(array: DataArray, bands: str | None, count: int) -> tuple[str, ...]:
    """Return the names of the bands; none if they have no names."""
    if bands is not None and bands in array.coords and array[bands].dtype.kind in "UO":
        return tuple(str(name) for name in array[bands].values)
    given = array.attrs.get("long_name", ())
    names = _of_bands((given,) if isinstance(given, str) else given, array, bands)
    return tuple(map(str, names)) if len(names) == count and all(names) else ()


def _scaling(array: DataArray, bands: str | None, count: int) -> list[tuple[float, float]]:
    """Return scale and offset of each band that the file declares, if they have not been applied.

    Raises
    ------
    UsageError
        There are several, but not one for each band.
    """

    def values(one: str, several: str, default: float) -> tuple[float, ...]:
        given = np.ravel(array.attrs.get(one, array.attrs.get(several, default)))
        if len(given) == 1:
            return (float(given[0]),) * count
        found = _of_bands([float(value) for value in given], array, bands)
        if len(found) != count:
            raise UsageError(
                f"the DataArray has {count} bands, but {len(given)} values in its attribute {several}; correct it, or "
                "remove it and give scale= and offset="
            )
        return found

    return list(zip(values("scale_factor", "scales", 1.0), values("add_offset", "offsets", 0.0), strict=True))


def _grid(array: DataArray, rows: str, columns: str) -> Grid:
    height, width = array.sizes[rows], array.sizes[columns]
    crs, transform = array.rio.crs, _stored_transform(array)
    x, y = (_centres(array, axis) for axis in (columns, rows))
    steps = [None if centres is None else _step(centres, axis) for centres, axis in ((x, columns), (y, rows))]
    if x is None or y is None:
        return plain_grid(height, width, crs) if transform.is_identity else Grid(height, width, transform, crs)
    # The stored transform, to the last bit, unless the array was cut or turned since.
    corners = [(0.5, 0.5), (width - 0.5, height - 0.5)]
    found = [~transform @ (float(x[at]), float(y[at])) for at in (0, -1)]
    if np.abs(np.subtract(found, corners)).max() > _MAX_SHIFT_PX:
        right, down = steps[0] or transform.a, steps[1] or transform.e
        transform = Affine(right, 0, float(x[0]) - right / 2, 0, down, float(y[0]) - down / 2)
    return Grid(height, width, transform, crs)


def _stored_transform(array: DataArray) -> Affine:
    """Return the transform that rioxarray stores, or finds from coordinates.

    Raises
    ------
    UsageError
        None is stored, and the coordinate of a single row or column does not tell it.
    """
    reference = array.coords.get(array.rio.grid_mapping)
    is_stored = reference is not None and "GeoTransform" in reference.attrs
    if not is_stored and any(array.sizes[axis] == 1 and axis in array.coords for axis in _axes(array)[:2]):
        raise UsageError(
            "the DataArray has one row or column, whose coordinate does not tell the size of a pixel; store the "
            "transform: array.rio.write_transform(...)"
        )
    transform: Affine = array.rio.transform()
    return transform


def _centres(array: DataArray, axis: str) -> NDArray[np.float64] | None:
    """Return the coordinates of the pixels' centres along an axis; None if it has none."""
    if axis not in array.coords or array[axis].dtype.kind not in "uif":
        return None
    return np.asarray(array[axis].values, dtype=np.float64)


def _step(centres: NDArray[np.float64], axis: str) -> float | None:
    """Return the distance between neighbouring pixels; None of a single pixel.

    Raises
    ------
    UsageError
        The distances differ.
    """
    if len(centres) < 2:
        return None
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    even = centres[0] + step * np.arange(len(centres))
    # Coordinates may be stored as float32.
    rounding = 2 * float(np.spacing(np.float32(np.abs(centres).max())))
    tolerance = max(_MAX_SHIFT_PX * abs(step), min(rounding, _MAX_ROUNDING_PX * abs(step)))
    if not step or np.abs(centres - even).max() > tolerance:
        raise UsageError(
            f"the coordinate {axis} of the DataArray is not even (from {np.diff(centres).min():g} to "
            f"{np.diff(centres).max():g} between neighbours); a raster has equal pixels: resample it first"
        )
    return step
