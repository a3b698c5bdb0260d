"""Names of bands in a STAC item beside a raster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from segkit.io.paths import FileSet
from segkit.io.remote import Remote

_MAX_BYTES = 10**7
BAND_KEYS = ("bands", "eo:bands")  # STAC 1.1, and the eo extension before
COMMON_NAME_KEYS = ("eo:common_name", "common_name")


def read_stac_names(raster: Path, count: int) -> list[str | None]:
    """Return the names of a raster's bands in the STAC item beside it, the common names if it has them.

    The item is called like the raster, with .json in the place of its extension or after it; one of its assets is the
    raster (https://github.com/radiantearth/stac-spec, "Item"; https://github.com/stac-extensions/eo).

    Returns
    -------
    `count` names, None where there is none: no such item, or not as many bands in it.
    """
    raster = _file_of(raster)
    for path in _item_paths(raster):
        for bands in _asset_bands(_read_item(path), raster.name):
            if len(bands) == count:
                return [_band_name(band) for band in bands]
    return [None] * count


def find_stac_items(raster: Path) -> list[Path]:
    """Return the STAC items beside a raster that name its bands."""
    raster = _file_of(raster)
    return [path for path in _item_paths(raster) if any(_asset_bands(_read_item(path), raster.name))]


def _file_of(raster: Path) -> Path:
    """Return the first file of a raster that stands for others, as an open dataset does."""
    return raster.files[0] if isinstance(raster, FileSet) and raster.files else raster


def _item_paths(raster: Path) -> tuple[Path, ...]:
    """Return where a STAC item of a raster may be: called like it, with .json in place of its extension or after it."""
    if isinstance(raster, FileSet | Remote) or not raster.name:
        return ()
    return raster.with_suffix(".json"), raster.with_name(f"{raster.name}.json")


def _read_item(path: Path) -> Mapping[str, Any]:
    """Return the content of a STAC item; nothing if it cannot be read, or is another JSON file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        item = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return item if isinstance(item, dict) else {}


def _asset_bands(item: Mapping[str, Any], name: str) -> Iterator[list[Any]]:
    """Yield the lists of bands of the assets of an item that are the file of a name."""
    assets = item.get("assets")
    for asset in assets.values() if isinstance(assets, dict) else ():
        href = asset.get("href") if isinstance(asset, dict) else None
        if isinstance(href, str) and _file_name(href) == name:
            for key in BAND_KEYS:
                if isinstance(asset.get(key), list):
                    yield asset[key]


def _file_name(href: str) -> str:
    try:
        return PurePosixPath(urlsplit(href).path).name
    except ValueError:  # such as http://[x
        return ""


def _band_name(band: Any) -> str | None:
    found = (band.get(key) for key in (*COMMON_NAME_KEYS, "name")) if isinstance(band, dict) else ()
    return next((name for name in found if isinstance(name, str) and name), None)
