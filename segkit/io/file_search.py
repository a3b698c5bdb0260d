"""Find the files of a folder, a glob or a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from segkit.errors import DataError, MissingFileError, UsageError
from segkit.io.files import require_file
from segkit.io.name_pattern import NamePattern
from segkit.io.paths import FileSet
from segkit.io.points import POINT_TABLE_SUFFIXES
from segkit.io.product import PRODUCT_SUFFIXES, find_products
from segkit.io.remote import Remote
from segkit.io.vector import VECTOR_SUFFIXES

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".jp2", ".img", ".png", ".dat", ".bsq", ".bil", ".bip")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".webp")
IMAGE_SUFFIXES = RASTER_SUFFIXES + PICTURE_SUFFIXES + PRODUCT_SUFFIXES
LABEL_SUFFIXES = RASTER_SUFFIXES + VECTOR_SUFFIXES + POINT_TABLE_SUFFIXES
# Beside others these are previews and lists of files, or name bands, so they are used only where there are no others.
_SECONDARY = PICTURE_SUFFIXES + POINT_TABLE_SUFFIXES
_TERTIARY = (".json",)


def expand_paths(path: Path, what: str, suffixes: tuple[str, ...], pattern: NamePattern | None = None) -> list[Path]:
    """Return the files of a path: those in a folder, those that match a glob, or the path itself (a file, a mosaic).

    Of a folder or a glob, pictures (JPEG, WebP) and tables are used only if there are no other files, and STAC items
    only if there are no pictures either. Products are returned as such if `suffixes` has theirs.

    Parameters
    ----------
    what
        What the files are for, for messages.
    pattern
        Only files of a folder or a glob whose names match it are used.

    Raises
    ------
    UsageError
        It is a URL, but not of a single file.
    MissingFileError
        The path does not exist, or no file has one of the suffixes and matches.
    """
    if isinstance(path, FileSet):
        return [require_file(path)]
    products = find_products(path) if {*PRODUCT_SUFFIXES} & {*suffixes} else None
    if products is not None:
        return _require_products(path, products)
    if isinstance(path, Remote):
        if os.fspath(path).endswith("/") or "*" in str(path):
            raise UsageError(
                f"{path}: folders and globs work only for local files; list each remote file here or in a table"
            )
        return [path]
    if path.is_dir():
        found: Iterable[Path] = path.iterdir()
    elif not path.exists() and glob.has_magic(str(path)):
        found = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - a pattern of a whole path
    else:
        return [require_file(path)]
    visible = sorted(file for file in found if not file.name.startswith("."))
    files = [file for file in visible if file.suffix.lower() in suffixes]
    matching = [file for file in files if pattern is None or pattern.match(file)]
    if not matching:
        raise MissingFileError(_describe_missing(path, what, suffixes, pattern, visible, files))
    primary = [file for file in matching if file.suffix.lower() not in (*_SECONDARY, *_TERTIARY)]
    used = primary or [file for file in matching if file.suffix.lower() not in _TERTIARY] or matching
    if not {*PRODUCT_SUFFIXES} & {*suffixes}:
        return used
    found_products = [(file, find_products(file)) for file in used]
    return _require_products(path, [one for file, each in found_products for one in ([file] if each is None else each)])


def _require_products(path: Path, products: Sequence[Path]) -> list[Path]:
    if not products:
        raise DataError(f"{path}: holds catalogues or collections of STAC, but no items; give the files of the items")
    return list(products)


def _describe_missing(
    path: Path,
    what: str,
    suffixes: tuple[str, ...],
    pattern: NamePattern | None,
    visible: list[Path],
    files: list[Path],
) -> str:
    """Return the message about a folder or a glob without files."""
    if files and pattern is not None:
        return (
            f"{path}: contains no {what} whose names match the pattern {pattern.text!r}; the first of its "
            f"{len(files)} files is {files[0].name}"
        )
    if pictures := [file.name for file in visible if file.suffix.lower() in PICTURE_SUFFIXES]:
        return (
            f"{path}: contains only pictures such as {pictures[0]}, and their compression changes the codes of {what}; "
            "give the original files (PNG, GeoTIFF)"
        )
    if products := [file.name for file in visible if file.suffix.lower() == PRODUCT_SUFFIXES[0]]:
        return f"{path}: contains products such as {products[0]}, which are images of one scene each, but no {what}"
    message = f"{path}: contains no {what} ({', '.join(suffixes)})"
    if path.is_dir() and (inside := _first_below(path, suffixes)) is not None:
        example = Path(path.name) / "**" / f"*{inside.suffix}"
        message += f"; some are in sub-folders, such as {inside.relative_to(path)}: use the glob {example.as_posix()}"
    return message


def _first_below(folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    found = (file for file in folder.rglob("*") if file.suffix.lower() in suffixes and not file.name.startswith("."))
    return next(found, None)


def folder_key(path: Path, file: Path) -> str:
    """Return what the wildcards in the folders of a glob stand for in one of its files: "a/b"; "" without any."""
    folders = path if path.name == "**" else path.parent
    if not glob.has_magic(str(folders)):
        return ""
    found = re.fullmatch(_glob_regex(folders.as_posix()), file.parent.as_posix())
    return "" if found is None else "/".join(group for group in found.groups() if group)


def _glob_regex(pattern: str) -> str:
    """Return a regular expression for the folders of a glob, with a group for each wildcard."""
    parts = []
    for piece in re.findall(r"/\*\*(?=/|$)|^\*\*(?=/|$)|\*+|\?|\[!?[^]]+\]|.", pattern):
        if piece == "/**":
            parts.append("(?:/(.+))?")
        elif piece == "**":
            parts.append("(.*)")
        elif piece.startswith("*"):
            parts.append("([^/]*)")
        elif piece == "?":
            parts.append("([^/])")
        elif len(piece) > 1:
            parts.append(f"({piece.replace('[!', '[^')})")
        else:
            parts.append(re.escape(piece))
    return "".join(parts)
