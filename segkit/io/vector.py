"""Read vector files. This is the only module that opens them; the extension selects the allowed GDAL drivers.

pyogrio tries all drivers of its GDAL, and some of them open other files and URLs or run programs that a file refers to.
So files are opened in pyogrio's GDAL through ctypes, with a list of allowed drivers, and read as Arrow tables.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import DataError
from segkit.io.files import require_file
from segkit.io.grid import find_crs_problem
from segkit.io.wkb import MAX_NESTING, is_too_deep

if TYPE_CHECKING:
    import pandas
    import pyarrow

# Drivers that may open a file, by its extension. GeoParquet is read by pyarrow.
DRIVERS = {
    ".shp": ("ESRI Shapefile",),
    ".gpkg": ("GPKG",),
    ".geojson": ("GeoJSON",),
    ".json": ("GeoJSON",),
    ".fgb": ("FlatGeobuf",),
    ".gml": ("GML",),
    ".kml": ("LIBKML", "KML"),
    ".parquet": (),
}
VECTOR_SUFFIXES = tuple(DRIVERS)

# GDAL's settings for the reading thread while it reads: references to other files are not followed.
_READ_CONFIG = {
    "LIBKML_RESOLVE_STYLE": "NO",
    "GML_SKIP_RESOLVE_ELEMS": "ALL",
    "GML_SKIP_CORRUPTED_FEATURES": "NO",
    "OGR_SQLITE_ALLOW_EXTERNAL_ACCESS": "NO",
}
_LATIN1_OPTION = "ENCODING=ISO-8859-1"  # for shapefiles without a declared encoding
# Allowed statements of a GeoPackage's schema. Virtual tables of other modules (VirtualText, VirtualShape) read other
# files.
_GEOPACKAGE_SQL = re.compile(
    r"CREATE (TABLE|VIEW|INDEX|UNIQUE INDEX|TRIGGER)\b"
    r'|CREATE VIRTUAL TABLE (IF NOT EXISTS )?("([^"]|"")*"|\w+) USING (rtree|fts3|fts4|fts5)\s*\(',
    re.IGNORECASE,
)
_MAX_VIEW_STEPS = 10**8  # of SQLite, which takes some seconds for them
_WKT = re.compile(r"[A-Z0-9_]+\[")
_ODD_JSON = (AttributeError, RecursionError)  # what lists in the place of keys, and deep ones, raise
_GDAL_OF_VECTOR, _CE_FAILURE, _WKB_NONE = 0x04, 3, 100
_HTTP_RESULT_BYTES = 256  # more than a CPLHTTPResult
_FETCH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 6)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a vector file.

    Parameters
    ----------
    crs
        None if the file has none.
    geometries
        Geometries in two dimensions, None for features without one. None for a table without geometries.
    attributes
        The other columns.
    """

    crs: CRS | None
    geometries: NDArray[Any] | None
    attributes: pandas.DataFrame

    def frame(self) -> Any:
        """Return a GeoDataFrame, or a DataFrame for a table."""
        import geopandas

        if self.geometries is None:
            return self.attributes
        crs = None if self.crs is None else self.crs.to_wkt()
        return geopandas.GeoDataFrame(self.attributes, geometry=self.geometries, crs=crs)


def is_vector(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a vector file, by its extension."""
    return Path(path).suffix.lower() in DRIVERS


def layer_names(path: str | os.PathLike[str]) -> dict[str, bool]:
    """Return {name: has geometries} of a file's layers.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is not in the format of its extension.
    """
    file = _require_vector_file(path)
    if file.suffix.lower() == ".parquet":
        return {file.stem: True}
    with _open_dataset(file) as dataset:
        return {name: has for name, has, _ in dataset.layers()}


def read_layer(path: str | os.PathLike[str], layer: str | None = None, *, option: str | None = None) -> Layer:
    """Read one layer of a vector file.

    Parameters
    ----------
    layer
        Its name; by default the only layer with geometries.
    option
        Option or key that names the layer, for messages.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is damaged or not in the format of its extension; the layer does not exist; or there are several and
        no `layer` is given.
    """
    file = _require_vector_file(path)
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file, layer, option)
    with _open_dataset(file) as dataset:
        layers = dataset.layers()
        spatial = [name for name, has, _ in layers if has]
        layer_name = layer if layer is not None else spatial[0] if len(spatial) == 1 else None
        handle = next((handle for name, _, handle in layers if name == layer_name), None)
        if handle is None:
            raise _missing_layer_error(file, layer, spatial, option)
        return dataset.read(handle)


def _missing_layer_error(file: Path, layer: str | None, existing: Sequence[str], option: str | None) -> DataError:
    missing = f"has no layer {layer!r}; " if layer is not None else ""
    names = ", ".join(existing) or "none"
    advice = f"give one with {option}" if option is not None else "keep only one in the file"
    return DataError(f"{file}: {missing}its layers with geometries are {names}; {advice}")


def _require_vector_file(path: str | os.PathLike[str]) -> Path:
    file = require_file(path, "vector file")
    if not is_vector(file):
        raise DataError(
            f"{file}: {file.suffix or 'a file without extension'} is not a vector format that segkit reads; "
            f"convert it to one of {', '.join(DRIVERS)}"
        )
    if not file.is_file():
        raise DataError(f"{file} is a folder; give a file")
    return file


def _unreadable_error(file: Path) -> DataError:
    # GDAL's message is left out because it may quote the content of another file.
    name = " or ".join(DRIVERS[file.suffix.lower()]) or "GeoParquet"
    return DataError(
        f"{file}: cannot be read as a vector file; it is damaged, or not in the format of its extension ({name})"
    )


def _read_parquet(file: Path, layer: str | None, option: str | None) -> Layer:
    import geopandas
    from pyarrow import ArrowException, parquet
    from pyproj.exceptions import CRSError
    from shapely.errors import ShapelyError

    if layer not in (None, file.stem):
        raise _missing_layer_error(file, layer, [file.stem], option)
    try:
        columns = json.loads((parquet.read_schema(file).metadata or {})[b"geo"])["columns"]
        # PROJ would take other texts for file names.
        if any(isinstance(crs := one.get("crs"), str) and not _WKT.match(crs) for one in columns.values()):
            raise _unreadable_error(file)
        table = parquet.read_table(file)
        _check_texts(file, table)
        for name in columns.keys() & table.column_names:
            _check_nesting(file, table.column(name).to_pylist())
        frame = geopandas.read_parquet(file)
        crs = None if frame.crs is None else CRS.from_user_input(frame.crs.to_wkt())
        geometries = _force_2d(frame.geometry.to_numpy())
    except DataError:
        raise
    except (ArrowException, CRSError, ShapelyError, OSError, ValueError, KeyError, TypeError, *_ODD_JSON) as error:
        raise _unreadable_error(file) from error
    return Layer(crs, geometries, frame.drop(columns=frame.geometry.name))


def _check_texts(file: Path, table: pyarrow.Table) -> None:
    """Raise a DataError if a text is not UTF-8, which else would come up when it is used."""
    from pyarrow import ArrowException

    for name in table.column_names:
        try:
            table.column(name).validate(full=True)
        except ArrowException as error:
            raise DataError(
                f"{file}: field {name!r} holds text that is not in the encoding that the file declares; of a "
                "shapefile, correct or remove its .cpg; else the file is damaged"
            ) from error


def _check_nesting(file: Path, geometries: Iterable[Any]) -> None:
    if is_too_deep(one for one in geometries if isinstance(one, bytes)):
        raise DataError(
            f"{file}: a geometry holds collections inside each other, more than {MAX_NESTING}; write it flat"
        )


def _force_2d(geometries: Any) -> NDArray[Any]:
    import shapely

    return np.asarray(shapely.force_2d(np.asarray(geometries, dtype=object)), dtype=object)


class _Dataset:
    """A vector file that GDAL has opened."""

    def __init__(self, file: Path, handle: int) -> None:
        self._file, self._handle, self._gdal = file, handle, _gdal()

    def layers(self) -> list[tuple[str, bool, int]]:
        """Return (name, has geometries, handle) of each layer."""
        gdal, found = self._gdal, []
        for number in range(gdal.GDALDatasetGetLayerCount(self._handle)):
            layer = gdal.GDALDatasetGetLayer(self._handle, number)
            if layer is None:
                raise _unreadable_error(self._file)
            name = gdal.OGR_L_GetName(layer).decode(errors="replace")
            found.append((name, gdal.OGR_L_GetGeomType(layer) != _WKB_NONE, layer))
        if not found:
            raise _unreadable_error(self._file)
        return found

    def read(self, layer: int) -> Layer:
        """Read a whole layer."""
        import pandas
        import shapely
        from pyarrow import ArrowException

        try:
            table = self._table(layer)
            rows = table.num_rows
            marks = [(field.metadata or {}).get(b"ARROW:extension:name") for field in table.schema]
            geometries = None
            if b"ogc.wkb" in marks:
                place = marks.index(b"ogc.wkb")
                wkb = table.column(place).to_numpy()
                _check_nesting(self._file, wkb)
                geometries = _force_2d(shapely.from_wkb(wkb))
                table = table.remove_column(place)
            attributes = table.to_pandas() if table.num_columns else pandas.DataFrame(index=range(rows))
            crs = self._crs(layer) if geometries is not None else None
        except DataError:
            raise
        except (ArrowException, shapely.errors.ShapelyError, OSError, ValueError, KeyError) as error:
            raise _unreadable_error(self._file) from error
        if crs is not None and (problem := find_crs_problem(crs.to_wkt())):
            raise DataError(f"{self._file}: its CRS cannot be used ({problem}); write the CRS into the file again")
        return Layer(crs, geometries, attributes)

    def _table(self, layer: int) -> pyarrow.Table:
        import pyarrow as pa

        gdal = self._gdal
        stream = (ctypes.c_void_p * 5)()  # an ArrowArrayStream
        gdal.CPLErrorReset()
        if not gdal.OGR_L_GetArrowStream(layer, stream, _string_list(["INCLUDE_FID=NO"])):
            raise _unreadable_error(self._file)
        table = pa.RecordBatchReader._import_from_c(ctypes.addressof(stream)).read_all()
        _check_texts(self._file, table)
        # If the file is damaged, some drivers end a layer early and report it only here. An unknown CRS is not damage.
        failed = gdal.CPLGetLastErrorType() >= _CE_FAILURE and not gdal.CPLGetLastErrorMsg().startswith(
            b"Cannot import "
        )
        # The header of a FlatGeobuf has the number of features.
        short = self._file.suffix.lower() == ".fgb" and table.num_rows < gdal.OGR_L_GetFeatureCount(layer, 0)
        if failed or short:
            raise _unreadable_error(self._file)
        return table

    def _crs(self, layer: int) -> CRS | None:
        gdal = self._gdal
        reference = gdal.OGR_L_GetSpatialRef(layer)
        if not reference:
            return None
        authority, code = gdal.OSRGetAuthorityName(reference, None), gdal.OSRGetAuthorityCode(reference, None)
        if authority and code:
            return CRS.from_user_input(f"{authority.decode()}:{code.decode()}")
        text = ctypes.c_void_p()
        gdal.OSRExportToWktEx(reference, ctypes.byref(text), _string_list(["FORMAT=WKT2_2019"]))
        try:
            wkt = ctypes.string_at(text).decode() if text else ""
        finally:
            gdal.VSIFree(text)
        return CRS.from_wkt(wkt) if wkt else None


@contextmanager
def _open_dataset(file: Path) -> Iterator[_Dataset]:
    """Open a file with the drivers of its extension only; raise a DataError if it refers to a URL."""
    suffix, gdal = file.suffix.lower(), _gdal()
    options: list[str] = []
    if suffix == ".gpkg":
        _check_geopackage(file)
    if suffix == ".gml":
        options = ["DOWNLOAD_SCHEMA=NO", "WRITE_GFS=NO", f"XSD={_gml_schema(file) or '/vsimem/none'}"]
    urls: list[bytes] = []

    def fetch(url: bytes, *_: Any) -> Any:
        urls.append(url)
        return gdal.VSICalloc(1, _HTTP_RESULT_BYTES)  # an empty result, which GDAL frees

    callback = _FETCH_CALLBACK(fetch)
    before = {name: gdal.CPLGetThreadLocalConfigOption(name.encode(), None) for name in _READ_CONFIG}
    gdal.CPLPushErrorHandler(ctypes.cast(gdal.CPLQuietErrorHandler, ctypes.c_void_p))
    gdal.CPLHTTPPushFetchCallback(ctypes.cast(callback, ctypes.c_void_p), None)
    dataset = None
    try:
        for name, value in _READ_CONFIG.items():
            gdal.CPLSetThreadLocalConfigOption(name.encode(), value.encode())
        dataset = _gdal_open(file, options)
        if suffix == ".shp":
            layer = gdal.GDALDatasetGetLayer(dataset, 0)
            if layer is None or not gdal.OGR_L_TestCapability(layer, b"StringsAsUTF8"):
                gdal.GDALClose(dataset)
                dataset = None
                dataset = _gdal_open(file, [_LATIN1_OPTION])
        yield _Dataset(file, dataset)
    finally:
        if dataset is not None:
            gdal.GDALClose(dataset)
        for name, old in before.items():
            gdal.CPLSetThreadLocalConfigOption(name.encode(), old)
        gdal.CPLHTTPPopFetchCallback()
        gdal.CPLPopErrorHandler()
        if urls:
            raise DataError(
                f"{file}: refers to a URL for its CRS or schema, and URLs are not opened; write the CRS into the file"
            )


def _gdal_open(file: Path, options: Sequence[str]) -> int:
    # An absolute path cannot be taken for a driver prefix such as "GeoJSON:".
    name = os.fsencode(file.absolute())
    drivers = DRIVERS[file.suffix.lower()]
    dataset: int | None = _gdal().GDALOpenEx(name, _GDAL_OF_VECTOR, _string_list(drivers), _string_list(options), None)
    if dataset is None:
        raise _unreadable_error(file)
    return dataset


def _gml_schema(file: Path) -> Path | None:
    """Return the schema beside a GML file; raise a DataError if it includes others, which may be URLs."""
    schema = file.absolute().with_suffix(".xsd")
    if not schema.is_file():
        return None
    if b"include" in schema.read_bytes():
        raise DataError(
            f"{schema}: includes another schema, which segkit does not open; move it to another folder, or convert "
            f"{file.name} to a GeoPackage"
        )
    return schema


def _check_geopackage(file: Path) -> None:
    """Raise a DataError for a file that is not an SQLite database, and for tables and views that are not harmless.

    Virtual tables may read other files, and views may have rows without end.
    """
    for mode in ("mode=ro", "immutable=1"):  # the second for a write-ahead log in a read-only folder
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True)) as database:
                rows = database.execute("SELECT name, sql, type FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
                tables = [name for name, sql, _ in rows if not _GEOPACKAGE_SQL.match(str(sql))]
                views = [name for name, _, kind in rows if kind == "view"] if not tables else []
                endless = [name for name in views if not _is_bounded(database, name, file.stat().st_size)]
            break
        except sqlite3.OperationalError:
            continue
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unreadable_error(file) from error
    else:
        raise _unreadable_error(file)
    if tables:
        raise DataError(
            f"{file}: table {tables[0]!r} is a virtual table that may read other files; export the layer to a new "
            "GeoPackage"
        )
    if endless:
        raise DataError(
            f"{file}: {endless[0]!r} is a view that cannot be read, or has more rows than fit in the file; export the "
            "layer to a new GeoPackage"
        )


def _is_bounded(database: sqlite3.Connection, view: str, most: int) -> bool:
    """Return whether SQLite alone can count the rows of a view in some seconds, and they are not more than `most`."""
    quoted = view.replace('"', '""')
    database.set_progress_handler(lambda: 1, _MAX_VIEW_STEPS)
    try:
        (rows,) = database.execute(f'SELECT count(*) FROM (SELECT * FROM "{quoted}" LIMIT {most + 1})').fetchone()  # noqa: S608
    except sqlite3.OperationalError:
        return False
    finally:
        database.set_progress_handler(None, 0)
    return int(rows) <= most


def _string_list(texts: Sequence[str]) -> Any:
    """Return a list of strings for GDAL (char **)."""
    return (ctypes.c_char_p * (len(texts) + 1))(*(text.encode() for text in texts), None)


@functools.cache
def _gdal() -> Any:
    """Return pyogrio's GDAL as a ctypes library."""
    import pyogrio._io

    # Windows looks for a symbol in one library only, not in its dependencies.
    package = Path(pyogrio._io.__file__).parent
    files = [Path(pyogrio._io.__file__), *sorted((package.parent / "pyogrio.libs").glob("gdal*.dll"))]
    libraries = (ctypes.CDLL(str(file)) for file in files)
    gdal = next((library for library in libraries if hasattr(library, "OGR_L_GetArrowStream")), None)
    if gdal is None:
        raise DataError(
            "vector files cannot be opened: pyogrio's GDAL was not found, or is older than 3.6; install pyogrio again"
        )
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "GDALOpenEx": (pointer, [text, ctypes.c_uint, pointer, pointer, pointer]),
        "GDALClose": (number, [pointer]),
        "GDALDatasetGetLayerCount": (number, [pointer]),
        "GDALDatasetGetLayer": (pointer, [pointer, number]),
        "OGR_L_GetName": (text, [pointer]),
        "OGR_L_GetGeomType": (number, [pointer]),
        "OGR_L_GetSpatialRef": (pointer, [pointer]),
        "OGR_L_GetArrowStream": (ctypes.c_bool, [pointer, pointer, pointer]),
        "OGR_L_GetFeatureCount": (ctypes.c_int64, [pointer, number]),
        "OGR_L_TestCapability": (number, [pointer, text]),
        "OSRGetAuthorityName": (text, [pointer, text]),
        "OSRGetAuthorityCode": (text, [pointer, text]),
        "OSRExportToWktEx": (number, [pointer, pointer, pointer]),
        "VSICalloc": (pointer, [ctypes.c_size_t, ctypes.c_size_t]),
        "VSIFree": (None, [pointer]),
        "CPLErrorReset": (None, []),
        "CPLGetLastErrorType": (number, []),
        "CPLGetLastErrorMsg": (text, []),
        "CPLPushErrorHandler": (None, [pointer]),
        "CPLPopErrorHandler": (None, []),
        "CPLGetThreadLocalConfigOption": (text, [text, text]),
        "CPLSetThreadLocalConfigOption": (None, [text, text]),
        "CPLHTTPPushFetchCallback": (number, [pointer, pointer]),
        "CPLHTTPPopFetchCallback": (number, []),
        "OGRSetNonLinearGeometriesEnabledFlag": (None, [number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(gdal, name)
        function.restype, function.argtypes = result, arguments
    gdal.OGRSetNonLinearGeometriesEnabledFlag(0)  # arcs become lines, as in pyogrio
    return gdal
