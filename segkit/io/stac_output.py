"""Parts of the STAC items that segkit writes: fields, links, classes, and the file itself.

https://github.com/radiantearth/stac-spec, version 1.1.0, with extensions of https://github.com/stac-extensions.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from segkit.errors import UsageError
from segkit.io.files import atomic_write, check_output
from segkit.io.paths import PathLike
from segkit.io.remote import Remote

STAC_VERSION = "1.1.0"
ITEM_SUFFIX = ".json"
ITEM_TYPE = "application/geo+json"
# Versions of the extensions whose fields segkit writes.
EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in {
        "classification": "2.0.0", "mlm": "1.4.0", "processing": "1.1.0", "projection": "2.0.0", "raster": "1.1.0",
    }.items()
}  # fmt: skip


def check_item_path(path: PathLike, *, overwrite: bool) -> Path:
    """Return the path of an item if it can be written.

    Raises
    ------
    UsageError
        It does not end in .json, or as for `segkit.io.files.check_output`.
    OutputExistsError
        It exists, and `overwrite` is false.
    """
    require_item_suffix(Path(path))
    return check_output(path, overwrite=overwrite)


def require_item_suffix(path: Path) -> None:
    """Raise a UsageError if a path does not end like a STAC item."""
    if path.suffix.lower() != ITEM_SUFFIX:
        raise UsageError(f"{path}: STAC items are JSON files; name a file that ends in {ITEM_SUFFIX}")


def make_item(
    path: Path,
    properties: Mapping[str, Any],
    assets: Mapping[str, Any],
    links: Sequence[Mapping[str, Any]],
    extensions: Iterable[str],
    *,
    footprint: tuple[dict[str, Any], list[float]] | None = None,
) -> dict[str, Any]:
    """Return an item that is called like its file.

    Parameters
    ----------
    path
        Where it is written.
    extensions
        Keys of `EXTENSIONS`.
    footprint
        Geometry and bounding box as `segkit.io.footprint.find_footprint` returns them.
    """
    geometry, bbox = footprint or (None, None)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [EXTENSIONS[name] for name in extensions],
        "id": path.stem,
        "geometry": geometry,
        **({} if bbox is None else {"bbox": bbox}),
        "properties": dict(properties),
        "links": list(links),
        "assets": dict(assets),
    }


def write_item(item: Mapping[str, Any], path: Path) -> None:
    """Write an item; an existing file is replaced only by a complete one."""
    text = json.dumps(item, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def make_href(file: Path, item: Path) -> str:
    """Return the reference from an item to a file.

    It is relative, so that both can be moved together; URLs stay URLs, without their secrets. Between drives of Windows
    there are no relative paths, so it is absolute there.
    """
    if isinstance(file, Remote):
        return str(file)
    path = Path(os.fspath(file))
    target, folder = (Path(os.path.realpath(each)) for each in (path.parent, item.parent))
    try:
        relative = os.path.relpath(target / path.name, folder)
    except ValueError:
        return (target / path.name).as_uri()
    return quote(Path(relative).as_posix(), safe="/~")


def format_time(moment: datetime) -> str:
    """Return a time in UTC as RFC 3339; a time without a zone is taken as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def make_classes(rows: Sequence[Mapping[str, Any]], pixels: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return classes as the extension *classification* has them.

    Its names hold only letters, digits, "-" and "_"; other names are written in these, and are in full in `title`.

    Parameters
    ----------
    rows
        Classes with name, value and, if known, color ("#rrggbb").
    pixels
        Number of pixels by name, if they were counted.
    """
    taken: set[str] = set()
    found = []
    for row in rows:
        name = _plain_name(row["name"])
        name = f"{name}-{row['value']}" if not name or name in taken else name
        taken.add(name)
        color = row.get("color")
        found.append(
            {"value": row["value"], "name": name, "title": row["name"]}
            | ({"color_hint": color.removeprefix("#").upper()} if color else {})
            | ({"count": pixels[row["name"]]} if pixels and row["name"] in pixels else {})
        )
    return found


def to_ascii(text: str) -> str:
    """Return a text without accents, and without characters that ASCII does not have."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _plain_name(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z-]+", "_", to_ascii(name)).strip("_")
