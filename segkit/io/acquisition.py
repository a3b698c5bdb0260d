"""When a scene was acquired, as far as its metadata or its name say it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from segkit.errors import SegkitError
from segkit.io.paths import FileSet, list_files
from segkit.io.product import Product
from segkit.io.raster import open_raster
from segkit.io.remote import Remote
from segkit.io.safe import find_metadata
from segkit.io.stac import find_stac_items
from segkit.io.stac_item import read_items

Period = tuple[datetime, datetime]

# Year, month, day and, after a T, a time: 20240701, 2024-07-01, 20240701T101559.
_DATE = re.compile(
    r"(?<![0-9])((?:19|20)[0-9]{2})([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12][0-9]|3[01])(?:T([0-9]{6}))?(?![0-9])"
)
_SAFE_START = re.compile(rb"<PRODUCT_START_TIME>([^<]+)<")
_LAST_SECOND = timedelta(days=1, seconds=-1)


def find_acquisition(files: Iterable[Path]) -> Period | None:
    """Return when the first and the last file of a scene were acquired, in UTC; None if none of them says it.

    The first of these that has a date counts for a file: the STAC item that it is, or that lies beside it; the metadata
    of a SAFE product; GDAL's ACQUISITIONDATETIME; the first date in its name, which may have a time (20240701,
    2024-07-01, 20240701T101559). A date without a time is the whole day.
    """
    found = [period for file in files if (period := _find_period(file)) is not None]
    return (min(start for start, _ in found), max(end for _, end in found)) if found else None


def _find_period(file: Path) -> Period | None:
    if isinstance(file, FileSet) and not isinstance(file, Product):
        return find_acquisition(list_files(file))
    for find in (_of_product, _of_item_beside, _of_metadata):
        with suppress(SegkitError, OSError, ValueError):
            if (period := find(file)) is not None:
                return period
    return _of_name(file.stem)


def _of_product(file: Path) -> Period | None:
    if not isinstance(file, Product):
        return None
    source = Path(os.fspath(file))
    if source.is_file():
        return _of_properties(read_items(source)[file.stem])
    metadata = find_metadata(source)
    start = None if metadata is None else _SAFE_START.search(metadata.read_bytes())
    return None if start is None else (_parse(start[1].decode()),) * 2


def _of_item_beside(file: Path) -> Period | None:
    items = (item for path in find_stac_items(file) for item in read_items(path).values())
    return next((period for item in items if (period := _of_properties(item)) is not None), None)


def _of_properties(item: Mapping[str, Any]) -> Period | None:
    """Return the date, or start and end, of an item."""
    properties = item.get("properties")
    if not isinstance(properties, dict):
        return None
    keys = ("datetime", "datetime") if properties.get("datetime") else ("start_datetime", "end_datetime")
    start, end = (properties.get(key) for key in keys)
    return (_parse(start), _parse(end)) if isinstance(start, str) and isinstance(end, str) else None


def _of_metadata(file: Path) -> Period | None:
    if isinstance(file, Product | Remote):
        return None
    with open_raster(file) as dataset:
        text = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME")
    return (_parse(text),) * 2 if text else None


def _of_name(name: str) -> Period | None:
    return next(_dates(name), None)


def _dates(name: str) -> Iterator[Period]:
    for year, _, month, day, time in _DATE.findall(name):
        with suppress(ValueError):  # such as 31 February
            start = datetime.strptime(f"{year}{month}{day}{time or '000000'}+0000", "%Y%m%d%H%M%S%z")
            yield start, start if time else start + _LAST_SECOND


def _parse(text: str) -> datetime:
    """Return a time of ISO 8601 in UTC; one without a zone is taken as UTC.

    Raises
    ------
    ValueError
        It is no time, or not in the years 1 to 9999 in UTC.
    """
    moment = datetime.fromisoformat(text.strip())
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text}: {error}") from error
