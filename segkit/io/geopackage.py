"""GeoPackages that hold more than segkit writes: only its own layers are replaced, all else stays as it is."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from segkit.errors import OutputError, UsageError
from segkit.io.files import because

# Tables in which a GeoPackage lists its layers, by column `table_name`.
_LISTS = (
    "gpkg_contents",
    "gpkg_geometry_columns",
    "gpkg_extensions",
    "gpkg_ogr_contents",
    "gpkg_metadata_reference",
    "gpkg_data_columns",
)
_STYLES = "layer_styles"
# What QGIS drops when it saves a style: where it is missing, somebody has made the style their own.
STYLE_MARK = "<!-- written by segkit -->"
# Of a sample of points; 0.2 wrote no metadata to it.
_SAMPLE = ("points", "pixels", "design", "strata", "classes")

Kept = dict[tuple[str, str], Any]


def check_layers(path: Path, layers: Sequence[str]) -> None:
    """Refuse a GeoPackage of which layers cannot be replaced without a loss, before any work.

    Parameters
    ----------
    path
        A file that is there, or is not.
    layers
        What is to be written into it.

    Raises
    ------
    UsageError
        It is a damaged GeoPackage, or another database; segkit did not write a layer of that name; or somebody has
        added a trigger or an index to it.
    """
    if not _is_database(path):
        return
    try:
        with _connected(path, "mode=ro") as database:
            _check(database, path, layers)
    except sqlite3.Error as error:
        raise UsageError(f"{path} is a database that cannot be read ({error}); name another file") from error


def begin(path: Path, part: Path, layers: Sequence[str]) -> Kept:
    """Make `part` a copy of the GeoPackage `path` without `layers`, and return what else is in it.

    A file that is not there, or is no database, is not copied.

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
        with _connected(path, "mode=ro") as database, _connected(part, "mode=rwc") as copy:
            database.backup(copy)  # with what is in a write-ahead log
            copy.execute("PRAGMA journal_mode = DELETE")
            for layer in layers:
                _remove(copy, layer)
            copy.commit()
            stale = sorted(set(_own(copy)).difference(layers))
        kept = _kept(part, layers)
    except sqlite3.Error as error:
        raise OutputError(f"{path.name} could not be written: {because(error, path.parent)}") from error
    if stale:
        warnings.warn(
            f"{path}: holds other layers of segkit ({', '.join(stale)}); they stay: remove them where they are "
            "out of date",
            stacklevel=2,
        )
    return kept


def verify(part: Path, layers: Sequence[str], kept: Kept) -> None:
    """Compare what else a GeoPackage holds with what was in it before layers were written.

    Raises
    ------
    OutputError
        Something is missing or has changed.
    """
    if not kept:
        return
    found = _kept(part, layers)
    changed = sorted(name for (kind, name), what in kept.items() if found.get((kind, name)) != what)
    if changed:
        raise OutputError(f"{part.name}: {', '.join(changed)} would not stay as it is; name another file")


def add_styles(part: Path, styles: Sequence[dict[str, Any]]) -> bool:
    """Add rows to the table of styles; return False where there is no such table.

    A layer's default style that somebody made stays the default.
    """
    with _connected(part, "mode=rw") as database:
        if not _names(database, _STYLES):
            return False
        for style in styles:
            own = "SELECT 1 FROM layer_styles WHERE useAsDefault AND lower(f_table_name) = lower(?)"
            row = dict(style)
            if database.execute(own, (row["f_table_name"],)).fetchone():
                row["useAsDefault"] = False
            row["update_time"] = row["update_time"].strftime("%Y-%m-%dT%H:%M:%S.000Z")
            columns, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
            database.execute(f"INSERT INTO layer_styles ({columns}) VALUES ({marks})", list(row.values()))  # noqa: S608
        database.commit()
    return True


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as database:
        yield database


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except FileNotFoundError:
        return False


def _names(database: sqlite3.Connection, name: str) -> list[tuple[str, str]]:
    """Return kind and name of what has this name, in whatever case."""
    query = "SELECT type, name FROM sqlite_master WHERE lower(name) = lower(?)"
    return database.execute(query, (name,)).fetchall()


def _check(database: sqlite3.Connection, path: Path, layers: Sequence[str]) -> None:
    if not _names(database, "gpkg_contents"):
        raise UsageError(f"{path} is a database and no GeoPackage; name another file")
    for layer in layers:
        there = _names(database, layer)
        if not there:
            continue
        if there[0][0] != "table" or not _is_ours(database, layer):
            raise UsageError(
                f"{path}: its layer {there[0][1]!r} is not segkit's and would be replaced; rename it, "
                "or name another file"
            )
        query = (
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL "
            "AND lower(tbl_name) = lower(?)"
        )
        for kind, name in database.execute(query, (layer,)):
            if not name.lower().startswith((f"rtree_{layer.lower()}_", "trigger_insert_", "trigger_delete_")):
                raise UsageError(
                    f"{path}: the {kind} {name!r} of layer {layer!r} would be lost when the layer is replaced; remove "
                    "it, or name another file"
                )


def _is_ours(database: sqlite3.Connection, layer: str) -> bool:
    """Return whether segkit wrote a layer: its metadata says so."""
    return layer.lower() in {name.lower() for name in _own(database)}


def _own(database: sqlite3.Connection) -> list[str]:
    """Return the layers that segkit wrote."""
    sample = [*_SAMPLE] if all(_names(database, name) for name in _SAMPLE) else []
    if not _names(database, "gpkg_metadata_reference"):
        return sample
    query = (
        "SELECT DISTINCT table_name FROM gpkg_metadata_reference JOIN gpkg_metadata ON gpkg_metadata.id = md_file_id "
        "WHERE table_name IS NOT NULL AND metadata LIKE '%segkit_version%'"
    )
    return sample + [name for (name,) in database.execute(query)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _remove(database: sqlite3.Connection, layer: str) -> None:
    """Remove a layer, its index, its entries and the style that segkit gave it."""
    if not _names(database, layer):
        return
    for (column,) in database.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE lower(table_name) = lower(?)", (layer,)
    ).fetchall():
        database.execute(f"DROP TABLE IF EXISTS {_quoted(f'rtree_{layer}_{column}')}")
    database.execute(f"DROP TABLE {_quoted(layer)}")
    if _names(database, "gpkg_metadata_reference"):
        mine = "SELECT md_file_id FROM gpkg_metadata_reference WHERE lower(table_name) = lower(?)"
        others = "SELECT md_file_id FROM gpkg_metadata_reference WHERE lower(ifnull(table_name, '')) <> lower(?)"
        database.execute(
            f"DELETE FROM gpkg_metadata WHERE id IN ({mine}) AND id NOT IN ({others})",  # noqa: S608
            (layer, layer),
        )
    for table in _LISTS:
        if _names(database, table):
            database.execute(f"DELETE FROM {table} WHERE lower(table_name) = lower(?)", (layer,))  # noqa: S608
    if _names(database, _STYLES):
        database.execute(
            "DELETE FROM layer_styles WHERE lower(f_table_name) = lower(?) AND instr(styleQML, ?)", (layer, STYLE_MARK)
        )


def _kept(path: Path, layers: Sequence[str]) -> Kept:
    """Return what a GeoPackage holds besides layers: each table, view, trigger and index, and what lists say of it."""
    own = {layer.lower() for layer in layers}
    found: Kept = {}
    with _connected(path, "mode=ro") as database:
        for kind, name, table, sql in database.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master"
        ).fetchall():
            low = table.lower()
            if low in own or low in _LISTS or low.startswith(tuple(f"rtree_{layer}_" for layer in own)):
                continue
            if low in ("gpkg_metadata", _STYLES, "gpkg_spatial_ref_sys") or low.startswith("sqlite_"):
                continue
            rows = None
            if kind == "table" and not sql.upper().startswith("CREATE VIRTUAL"):
                (rows,) = database.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()  # noqa: S608
            found[kind, name] = sql, rows
        for table in _LISTS:
            if _names(database, table):
                # GDAL renews the times of entries.
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                wanted = ", ".join(column for column in columns if column not in ("timestamp", "last_change"))
                for row in database.execute(f"SELECT {wanted} FROM {table}").fetchall():  # noqa: S608
                    if not any(isinstance(value, str) and value.lower() in {*own, _STYLES} for value in row):
                        found["entry", f"{table} {row}"] = row
        if _names(database, _STYLES):
            query = "SELECT f_table_name, styleName, useAsDefault, styleQML, styleSLD FROM layer_styles"
            for row in database.execute(query).fetchall():
                if STYLE_MARK not in str(row[3]):
                    found["style", f"style {row[1]!r} of {row[0]}"] = row
    return found
