"""Damage that a decoder noticed, but that GDAL reports as a warning only: it fills in other pixels."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable
from typing import TypeVar

from rasterio.errors import RasterioIOError

T = TypeVar("T")

# Of libjpeg. Bytes between two parts of a picture are skipped, and its pixels are right.
_DAMAGE = re.compile(r"(Corrupt JPEG data(?!: \d+ extraneous bytes)|Premature end of JPEG file).*")


class _Listener(logging.Handler):
    """Notes the first such warning of each thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.of_thread = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if found := _DAMAGE.search(record.getMessage()):
            self.of_thread.damage = found[0]


@functools.cache
def _listener() -> _Listener:
    listener = _Listener()
    logging.getLogger("rasterio").addHandler(listener)
    return listener


def require_undamaged(read: Callable[[], T]) -> T:
    """Return what a function read of a raster.

    The same pixels come from GDAL's cache the next time, without a warning.

    Raises
    ------
    RasterioIOError
        A decoder warned of damage.
    """
    of_thread = _listener().of_thread
    of_thread.damage = None
    try:
        found = read()
    finally:  # a raster that reads others by this function has dealt with their damage
        damage, of_thread.damage = of_thread.damage, None
    if damage:
        raise RasterioIOError(damage)
    return found
