"""Vector files: the only module that opens them. The ending decides the format; no other GDAL driver may open it.

pyogrio tries all drivers that its GDAL has, and some of them follow what a file says to other files, programs and URLs.
So files are opened in pyogrio's GDAL through ctypes, with a list of allowed drivers, and read as Arrow tables.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import DataError
from segkit.io.files import existing

if TYPE_CHECKING:
    import pandas
    import pyarrow

# Ending: the drivers that may open such a file. GeoParquet is read by pyarrow.
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

# GDAL's settings for the thread that reads, while it reads: references to other files stay unresolved.
_CONFIG = {
    "LIBKML_RESOLVE_STYLE": "NO",
    "GML_SKIP_RESOLVE_ELEMS": "ALL",
    "GML_SKIP_CORRUPTED_FEATURES": "NO",
    "OGR_SQLITE_ALLOW_EXTERNAL_ACCESS": "NO",
}
_LATIN = "ENCODING=ISO-8859-1"  # of a shapefile that does not say its encoding
# What a GeoPackage's schema may hold. Virtual tables of other modules (VirtualText, VirtualShape) read other files.
_GEOPACKAGE_SQL = re.compile(
    r"CREATE (TABLE|VIEW|INDEX|UNIQUE INDEX|TRIGGER)\b"
    r'|CREATE VIRTUAL TABLE (IF NOT EXISTS )?("([^"]|"")*"|\w+) USING (rtree|fts3|fts4|fts5)\s*\(',
    re.IGNORECASE,
)
_WKT = re.compile(r"[A-Z0-9_]+\[")
_OF_VECTOR, _FAILURE, _NO_GEOMETRY = 0x04, 3, 100
_RESULT_BYTES = 256  # more than a CPLHTTPResult
_FETCH = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 6)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a vector file.

    Parameters
    ----------
    crs
        None where the file names none.
    geometries
        In two dimensions; None where a feature has none. A table has no geometries at all: None.
    attributes
        The other columns.
    """

    crs: CRS | None
    geometries: NDArray[Any] | None
    attributes: pandas.DataFrame

    def frame(self) -> Any:
        """Return a GeoDataFrame; of a table, a DataFrame."""
        import geopandas

        if self.geometries is None:
            return self.attributes
        crs = None if self.crs is None else self.crs.to_wkt()
        return geopandas.GeoDataFrame(self.attributes, geometry=self.geometries, crs=crs)


def is_vector(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a vector file, by its ending."""
    return Path(path).suffix.lower() in DRIVERS


def layer_names(path: str | os.PathLike[str]) -> dict[str, bool]:
    """Return the names of a file's layers, and whether each has geometries.

    Raises
    ------
    MissingFileError
        Nothing is there.
    DataError
        The file is not of the format that its ending names.
    """
    file = _vector_file(path)
    if file.suffix.lower() == ".parquet":
        return {file.stem: True}
    with _opened(file) as dataset:
        return {name: has for name, has, _ in dataset.layers()}


def read_layer(path: str | os.PathLike[str], layer: str | None = None, *, option: str | None = None) -> Layer:
    """Read one layer of a vector file.

    Parameters
    ----------
    layer
        Its name; by default the only layer with geometries.
    option
        Where the user names a layer, for messages.

    Raises
    ------
    MissingFileError
        Nothing is there.
    DataError
        The file is damaged or not of the format that its ending names; there is no such layer, or none is named and
        there are several.
    """
    file = _vector_file(path)
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file, layer, option)
    with _opened(file) as dataset:
        layers = dataset.layers()
        spatial = [name for name, has, _ in layers if has]
        wanted = layer if layer is not None else spatial[0] if len(spatial) == 1 else None
        handle = next((handle for name, _, handle in layers if name == wanted), None)
        if handle is None:
            raise _no_layer(file, layer, spatial, option)
        return dataset.read(handle)


def _no_layer(file: Path, layer: str | None, there: Sequence[str], option: str | None) -> DataError:
    missing = f"layer {layer!r} is not there; " if layer is not None else ""
    names = ", ".join(there) or "none"
    advice = f"name one under {option}" if option is not None else "leave one in the file"
    return DataError(f"{file}: {missing}its layers with geometries are {names}; {advice}")


def _vector_file(path: str | os.PathLike[str]) -> Path:
    file = existing(path, "vector file")
    if not is_vector(file):
        raise DataError(
            f"{file}: {file.suffix or 'a file without ending'} is not a vector format that segkit reads; "
            f"convert it to one of {', '.join(DRIVERS)}"
        )
    if not file.is_file():
        raise DataError(f"{file} is a folder; name a file")
    return file


def _damaged(file: Path) -> DataError:
    # GDAL's message is left out: it may quote what it has read, and that may be another file.
    name = " or ".join(DRIVERS[file.suffix.lower()]) or "GeoParquet"
    return DataError(
        f"{file}: cannot be read as a vector file; it is damaged, or not in the format of its ending ({name})"
    )


def _read_parquet(file: Path, layer: str | None, option: str | None) -> Layer:
    import geopandas
    from pyarrow import ArrowException, parquet
    from pyproj.exceptions import CRSError
    from shapely.errors import ShapelyError

    if layer not in (None, file.stem):
        raise _no_layer(file, layer, [file.stem], option)
    try:
        columns = json.loads((parquet.read_schema(file).metadata or {})[b"geo"])["columns"]
        # PROJ takes other texts for names of files.
        if any(isinstance(crs := one.get("crs"), str) and not _WKT.match(crs) for one in columns.values()):
            raise _damaged(file)
        frame = geopandas.read_parquet(file)
        crs = None if frame.crs is None else CRS.from_user_input(frame.crs.to_wkt())
        geometries = _flat(frame.geometry.to_numpy())
    except (ArrowException, CRSError, ShapelyError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file) from error
    return Layer(crs, geometries, frame.drop(columns=frame.geometry.name))


def _flat(geometries: Any) -> NDArray[Any]:
    import shapely

    return np.asarray(shapely.force_2d(np.asarray(geometries, dtype=object)), dtype=object)


class _Dataset:
    """A vector file that GDAL has opened."""

    def __init__(self, file: Path, handle: int) -> None:
        self._file, self._handle, self._gdal = file, handle, _gdal()

    def layers(self) -> list[tuple[str, bool, int]]:
        """Return name, whether it has geometries, and handle of each layer."""
        gdal, found = self._gdal, []
        for number in range(gdal.GDALDatasetGetLayerCount(self._handle)):
            layer = gdal.GDALDatasetGetLayer(self._handle, number)
            if layer is None:
                raise _damaged(self._file)
            name = gdal.OGR_L_GetName(layer).decode(errors="replace")
            found.append((name, gdal.OGR_L_GetGeomType(layer) != _NO_GEOMETRY, layer))
        if not found:
            raise _damaged(self._file)
        return found

    def read(self, layer: int) -> Layer:
        """Read all of a layer."""
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
                geometries = _flat(shapely.from_wkb(table.column(place).to_numpy()))
                table = table.remove_column(place)
            attributes = table.to_pandas() if table.num_columns else pandas.DataFrame(index=range(rows))
            crs = self._crs(layer) if geometries is not None else None
        except (ArrowException, shapely.errors.ShapelyError, OSError, ValueError, KeyError) as error:
            raise _damaged(self._file) from error
        return Layer(crs, geometries, attributes)

    def _table(self, layer: int) -> pyarrow.Table:
        import pyarrow as pa

        gdal = self._gdal
        stream = (ctypes.c_void_p * 5)()  # an ArrowArrayStream
        gdal.CPLErrorReset()
        if not gdal.OGR_L_GetArrowStream(layer, stream, _strings(["INCLUDE_FID=NO"])):
            raise _damaged(self._file)
        table = pa.RecordBatchReader._import_from_c(ctypes.addressof(stream)).read_all()
        # Some drivers end a layer early where the file is damaged, and say so here only. A CRS that is not known is no
        # damage.
        failed = gdal.CPLGetLastErrorType() >= _FAILURE and not gdal.CPLGetLastErrorMsg().startswith(b"Cannot import ")
        # A FlatGeobuf's header says how many features there are.
        short = self._file.suffix.lower() == ".fgb" and table.num_rows < gdal.OGR_L_GetFeatureCount(layer, 0)
        if failed or short:
            raise _damaged(self._file)
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
        gdal.OSRExportToWktEx(reference, ctypes.byref(text), _strings(["FORMAT=WKT2_2019"]))
        try:
            wkt = ctypes.string_at(text).decode() if text else ""
        finally:
            gdal.VSIFree(text)
        return CRS.from_wkt(wkt) if wkt else None


@contextmanager
def _opened(file: Path) -> Iterator[_Dataset]:
    """Open a file with the drivers of its ending and no other; refuse one that refers to a URL."""
    suffix, gdal = file.suffix.lower(), _gdal()
    options: list[str] = []
    if suffix == ".gpkg":
        _check_geopackage(file)
    if suffix == ".gml":
        options = ["DOWNLOAD_SCHEMA=NO", "WRITE_GFS=NO", f"XSD={_schema_of(file) or '/vsimem/none'}"]
    urls: list[bytes] = []

    def fetch(url: bytes, *_: Any) -> Any:
        urls.append(url)
        return gdal.VSICalloc(1, _RESULT_BYTES)  # an empty result, which GDAL frees

    callback = _FETCH(fetch)
    before = {name: gdal.CPLGetThreadLocalConfigOption(name.encode(), None) for name in _CONFIG}
    gdal.CPLPushErrorHandler(ctypes.cast(gdal.CPLQuietErrorHandler, ctypes.c_void_p))
    gdal.CPLHTTPPushFetchCallback(ctypes.cast(callback, ctypes.c_void_p), None)
    dataset = None
    try:
        for name, value in _CONFIG.items():
            gdal.CPLSetThreadLocalConfigOption(name.encode(), value.encode())
        dataset = _open(file, options)
        if suffix == ".shp":
            layer = gdal.GDALDatasetGetLayer(dataset, 0)
            if layer is None or not gdal.OGR_L_TestCapability(layer, b"StringsAsUTF8"):
                gdal.GDALClose(dataset)
                dataset = None
                dataset = _open(file, [_LATIN])
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
                f"{file}: refers to a URL for its CRS or schema, which is not opened; write the CRS into the file"
            )


def _open(file: Path, options: Sequence[str]) -> int:
    # An absolute path is never taken for a prefix of a driver, such as "GeoJSON:".
    name = os.fsencode(file.absolute())
    drivers = DRIVERS[file.suffix.lower()]
    dataset: int | None = _gdal().GDALOpenEx(name, _OF_VECTOR, _strings(drivers), _strings(options), None)
    if dataset is None:
        raise _damaged(file)
    return dataset


def _schema_of(file: Path) -> Path | None:
    """Return the schema beside a GML file; refuse one that includes others, which may lie at a URL."""
    schema = file.absolute().with_suffix(".xsd")
    if not schema.is_file():
        return None
    if b"include" in schema.read_bytes():
        raise DataError(
            f"{schema}: includes another schema, which segkit does not open; move it away, or convert {file.name} to "
            "a GeoPackage"
        )
    return schema


def _check_geopackage(file: Path) -> None:
    """Refuse what is no SQLite database, and virtual tables that read other files."""
    for mode in ("mode=ro", "immutable=1"):  # the second for a write-ahead log in a folder that is read-only
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True)) as database:
                rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            break
        except sqlite3.OperationalError:
            continue
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _damaged(file) from error
    else:
        raise _damaged(file)
    for name, sql in rows:
        if not _GEOPACKAGE_SQL.match(str(sql)):
            raise DataError(
                f"{file}: table {name!r} is a virtual table that may read other files; export the layer to a new "
                "GeoPackage"
            )


def _strings(texts: Sequence[str]) -> Any:
    """Return a list of strings as GDAL takes it."""
    return (ctypes.c_char_p * (len(texts) + 1))(*(text.encode() for text in texts), None)


@functools.cache
def _gdal() -> Any:
    """Return the GDAL that pyogrio uses, as a library of ctypes."""
    import pyogrio._io

    # Windows looks for a name in one library only, and not in those that it needs.
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
    gdal.OGRSetNonLinearGeometriesEnabledFlag(0)  # arcs come as lines, as pyogrio has it
    return gdal
