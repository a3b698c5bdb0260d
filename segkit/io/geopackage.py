"""Replace layers in a GeoPackage without changing its other contents."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from segkit.errors import OutputError, UsageError
from segkit.io.files import as_output_error, atomic_write, check_output, describe_error
from segkit.io.paths import PathLike
from segkit.io.vector import read_layer
from segkit.runtime.version import VERSION

# Tables in which a GeoPackage lists its layers, by column `table_name`.
_LAYER_TABLES = (
    "gpkg_contents",
    "gpkg_geometry_columns",
    "gpkg_extensions",
    "gpkg_ogr_contents",
    "gpkg_metadata_reference",
    "gpkg_data_columns",
)
_STYLE_TABLE = "layer_styles"
# QGIS drops this comment when it saves a style, so a style without it was changed by a user.
STYLE_MARK = "<!-- written by segkit -->"
# The tables of a sample of points; version 0.2 wrote no metadata to it.
_SAMPLE_TABLES = ("points", "pixels", "design", "strata", "classes")

# A layer's name may not start with any of these, as GDAL declares.
_NO_FIRST_CHARACTERS = "`~!@#$%^&*()+-={}|[]\\:\";'<>?,./ "
# What pyogrio, which takes paths for URLs, cuts off: parameters behind a semicolon, an archive, line ends.
_CUT_OFF = (";", "!", "\n", "\r", "\t")

Contents = dict[tuple[str, str], Any]


def check_vector_path(path: Path) -> None:
    """Raise a UsageError if a vector file cannot be written to a path because of a character in it."""
    if found := [character for character in _CUT_OFF if character in str(path)]:
        raise UsageError(f"{str(path)!r}: vector files cannot be written to a path with {found[0]!r}; rename it")


def layer_name(path: Path) -> str:
    """Return the name of the layer of a file that has only one: that of the file, as far as a layer may have it."""
    return path.stem.lstrip(_NO_FIRST_CHARACTERS) or "layer"


def check_target(output: PathLike, layers: Sequence[str], what: str, *, overwrite: bool) -> Path:
    """Return the path of a GeoPackage into which layers can be written.

    Parameters
    ----------
    what
        What is written, for the message: "labels are".

    Raises
    ------
    UsageError, OutputExistsError
        It exists and `overwrite` is false, has another extension, or as `check_layers`.
    """
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() != ".gpkg":
        raise UsageError(f"{target}: {what} written as a GeoPackage; give a file name that ends in .gpkg")
    check_vector_path(target)
    check_layers(target, layers)
    return target


@contextmanager
def replace_layers(target: Path, layers: Sequence[str], counts: Mapping[str, int]) -> Iterator[Path]:
    """Yield a temporary file to which layers are written; it gets its name once they are read back.

    Other contents of the file are kept.

    Parameters
    ----------
    counts
        {layer: number of features} of those that are read back.

    Raises
    ------
    OutputError
        It could not be written, or reads back differently.
    """
    with atomic_write(target) as part, as_output_error(target, RuntimeError):  # pyogrio's errors are RuntimeErrors
        others = copy_without_layers(target, part, layers)
        yield part
        if any(len(read_layer(part, layer).attributes) != count for layer, count in counts.items()):
            raise OutputError(f"{target}: could not be read back after writing; check the disk and try again")
        verify_copy(part, layers, others)


def check_layers(path: Path, layers: Sequence[str]) -> None:
    """Raise an error if layers of a GeoPackage cannot be replaced without a loss.

    Parameters
    ----------
    path
        The file, which need not exist.
    layers
        The layers to be written into it.

    Raises
    ------
    UsageError
        The file is a damaged GeoPackage or another database; a layer of this name was not written by segkit, or has a
        trigger or an index of a user.
    """
    if not _is_database(path):
        return
    try:
        with _connect(path, "mode=ro") as database:
            _check(database, path, layers)
    except sqlite3.Error as error:
        raise UsageError(f"{path} is a database that cannot be read ({error}); give another file") from error


def copy_without_layers(path: Path, part: Path, layers: Sequence[str]) -> Contents:
    """Copy the GeoPackage `path` to `part` without `layers`, and return its other contents.

    A file that does not exist or is not a database is not copied.

    Raises
    ------
    UsageError
        As `check_layers`.
    OutputError
        The copy could not be made.
    """
    check_layers(path, layers)
    if not _is_database(path):
        return {}
    try:
        with _connect(path, "mode=ro") as database, _connect(part, "mode=rwc") as copy:
            database.backup(copy)  # includes the write-ahead log
            copy.execute("PRAGMA journal_mode = DELETE")
            for layer in layers:
                _remove_layer(copy, layer)
            copy.commit()
            stale = sorted(set(_segkit_layers(copy)).difference(layers))
        other_contents = _read_other_contents(part, layers)
    except sqlite3.Error as error:
        raise OutputError(f"{path.name} could not be written: {describe_error(error, path.parent)}") from error
    if stale:
        warnings.warn(
            f"{path}: has other layers of segkit ({', '.join(stale)}), which are kept; remove them if they are out of "
            "date",
            stacklevel=2,
        )
    return other_contents


def verify_copy(part: Path, layers: Sequence[str], other_contents: Contents) -> None:
    """Check that the other contents of a GeoPackage are as before layers were written.

    Raises
    ------
    OutputError
        Something is missing or has changed.
    """
    if not other_contents:
        return
    found = _read_other_contents(part, layers)
    changed = sorted(name for (kind, name), what in other_contents.items() if found.get((kind, name)) != what)
    if changed:
        raise OutputError(f"{part.name}: {', '.join(changed)} would be changed; give another file")


def write_layer(part: Path, layer: str, table: Any, *, geometry_type: str | None = None) -> None:
    """Add a layer (of a GeoDataFrame, also without a CRS) or a table, marked as written by segkit."""
    import pyogrio

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.write_dataframe(
            table, part, layer=layer, driver="GPKG", geometry_type=geometry_type, append=part.exists(),
            promote_to_multi=geometry_type == "MultiPolygon" or None, layer_metadata={"segkit_version": VERSION},
        )  # fmt: skip


def write_styles(part: Path, styles: Mapping[str, tuple[str, str]]) -> None:
    """Write the styles of layers, with which QGIS opens them; a default style made by a user stays the default.

    Parameters
    ----------
    styles
        {layer: name of the style, and its text}.
    """
    import pandas
    import pyogrio

    rows = [
        {
            "f_table_catalog": "", "f_table_schema": "", "f_table_name": layer, "f_geometry_column": "geom",
            "styleName": name, "styleQML": text, "styleSLD": "", "useAsDefault": True,
            "description": "written by segkit", "owner": "", "ui": "", "update_time": pandas.Timestamp.now("UTC"),
        }
        for layer, (name, text) in styles.items()
    ]  # fmt: skip
    if not add_styles(part, rows):
        pyogrio.write_dataframe(pandas.DataFrame(rows), part, layer=_STYLE_TABLE, driver="GPKG", append=True)


def add_styles(part: Path, styles: Sequence[dict[str, Any]]) -> bool:
    """Add rows to the table of styles; return False if there is no such table.

    A default style made by a user stays the default.
    """
    with _connect(part, "mode=rw") as database:
        if not _find_objects(database, _STYLE_TABLE):
            return False
        for style in styles:
            has_default = "SELECT 1 FROM layer_styles WHERE useAsDefault AND lower(f_table_name) = lower(?)"
            row = dict(style)
            if database.execute(has_default, (row["f_table_name"],)).fetchone():
                row["useAsDefault"] = False
            row["update_time"] = row["update_time"].strftime("%Y-%m-%dT%H:%M:%S.000Z")
            columns, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
            database.execute(f"INSERT INTO layer_styles ({columns}) VALUES ({marks})", list(row.values()))  # noqa: S608
        database.commit()
    return True


@contextmanager
def _connect(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as database:
        yield database


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except FileNotFoundError:
        return False


def _find_objects(database: sqlite3.Connection, name: str) -> list[tuple[str, str]]:
    """Return type and name of the database objects with a name, ignoring case."""
    query = "SELECT type, name FROM sqlite_master WHERE lower(name) = lower(?)"
    return database.execute(query, (name,)).fetchall()


def _check(database: sqlite3.Connection, path: Path, layers: Sequence[str]) -> None:
    if not _find_objects(database, "gpkg_contents"):
        raise UsageError(f"{path} is a database but not a GeoPackage; give another file")
    for layer in layers:
        existing = _find_objects(database, layer)
        if not existing:
            continue
        if existing[0][0] != "table" or not _is_segkit_layer(database, layer):
            raise UsageError(
                f"{path}: its layer {existing[0][1]!r} was written by another program and would be replaced; rename it "
                "or give another file"
            )
        query = (
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL "
            "AND lower(tbl_name) = lower(?)"
        )
        for kind, name in database.execute(query, (layer,)):
            if not name.lower().startswith((f"rtree_{layer.lower()}_", "trigger_insert_", "trigger_delete_")):
                raise UsageError(
                    f"{path}: the {kind} {name!r} of layer {layer!r} would be lost when the layer is replaced; remove "
                    "it, or give another file"
                )


def _is_segkit_layer(database: sqlite3.Connection, layer: str) -> bool:
    """Return whether segkit wrote a layer, by its metadata."""
    return layer.lower() in {name.lower() for name in _segkit_layers(database)}


def _segkit_layers(database: sqlite3.Connection) -> list[str]:
    """Return the layers that segkit wrote."""
    sample = [*_SAMPLE_TABLES] if all(_find_objects(database, name) for name in _SAMPLE_TABLES) else []
    if not _find_objects(database, "gpkg_metadata_reference"):
        return sample
    query = (
        "SELECT DISTINCT table_name FROM gpkg_metadata_reference JOIN gpkg_metadata ON gpkg_metadata.id = md_file_id "
        "WHERE table_name IS NOT NULL AND metadata LIKE '%segkit_version%'"
    )
    return sample + [name for (name,) in database.execute(query)]


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _remove_layer(database: sqlite3.Connection, layer: str) -> None:
    """Remove a layer, its index, its entries, and its style if segkit wrote it."""
    if not _find_objects(database, layer):
        return
    for (column,) in database.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE lower(table_name) = lower(?)", (layer,)
    ).fetchall():
        database.execute(f"DROP TABLE IF EXISTS {_quote(f'rtree_{layer}_{column}')}")
    database.execute(f"DROP TABLE {_quote(layer)}")
    if _find_objects(database, "gpkg_metadata_reference"):
        mine = "SELECT md_file_id FROM gpkg_metadata_reference WHERE lower(table_name) = lower(?)"
        others = "SELECT md_file_id FROM gpkg_metadata_reference WHERE lower(ifnull(table_name, '')) <> lower(?)"
        database.execute(
            f"DELETE FROM gpkg_metadata WHERE id IN ({mine}) AND id NOT IN ({others})",  # noqa: S608
            (layer, layer),
        )
    for table in _LAYER_TABLES:
        if _find_objects(database, table):
            database.execute(f"DELETE FROM {table} WHERE lower(table_name) = lower(?)", (layer,))  # noqa: S608
    if _find_objects(database, _STYLE_TABLE):
        database.execute(
            "DELETE FROM layer_styles WHERE lower(f_table_name) = lower(?) AND instr(styleQML, ?)", (layer, STYLE_MARK)
        )


def _read_other_contents(path: Path, layers: Sequence[str]) -> Contents:
    """Return the contents of a GeoPackage except `layers`: tables, views, triggers, indexes and their entries."""
    replaced = {layer.lower() for layer in layers}
    found: Contents = {}
    with _connect(path, "mode=ro") as database:
        for kind, name, table, sql in database.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master"
        ).fetchall():
            low = table.lower()
            rtrees = tuple(f"rtree_{layer}_" for layer in replaced)
            if low in replaced or low in _LAYER_TABLES or low.startswith(rtrees):
                continue
            if low in ("gpkg_metadata", _STYLE_TABLE, "gpkg_spatial_ref_sys") or low.startswith("sqlite_"):
                continue
            rows = None
            if kind == "table" and not sql.upper().startswith("CREATE VIRTUAL"):
                (rows,) = database.execute(f"SELECT count(*) FROM {_quote(name)}").fetchone()  # noqa: S608
            found[kind, name] = sql, rows
        for table in _LAYER_TABLES:
            if _find_objects(database, table):
                # GDAL updates the timestamps of entries.
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                compared = ", ".join(column for column in columns if column not in ("timestamp", "last_change"))
                for row in database.execute(f"SELECT {compared} FROM {table}").fetchall():  # noqa: S608
                    if not any(isinstance(value, str) and value.lower() in {*replaced, _STYLE_TABLE} for value in row):
                        found["entry", f"{table} {row}"] = row
        if _find_objects(database, _STYLE_TABLE):
            query = "SELECT f_table_name, styleName, useAsDefault, styleQML, styleSLD FROM layer_styles"
            for row in database.execute(query).fetchall():
                if STYLE_MARK not in str(row[3]):
                    found["style", f"style {row[1]!r} of {row[0]}"] = row
    return found
