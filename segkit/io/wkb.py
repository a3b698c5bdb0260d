"""Well-known binary (WKB) of geometries from strangers."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# GDAL's limit, too. The parser of shapely (GEOS) calls itself for each level, until the process dies.
MAX_NESTING = 32
_COLLECTIONS = range(4, 13)  # multipoint to multisurface; a collection is 7
_LINES, _POLYGONS = (2, 8), (3, 17)
_Z, _M, _SRID = 1 << 31, 1 << 30, 1 << 29  # in PostGIS's spelling; in that of ISO, 1000 is added for z, 2000 for m
# How points, lines and polygons begin, which hold no other geometries.
_PLAIN = frozenset(struct.pack("<BI", 1, kind + more) for kind in (1, 2, 3) for more in (0, 1000, 2000, 3000))


def is_too_deep(geometries: Iterable[bytes | None]) -> bool:
    """Whether one of the geometries holds collections inside each other, more than `MAX_NESTING`."""
    return any(one is not None and one[:5] not in _PLAIN and _is_too_deep(one) for one in geometries)


def _is_too_deep(wkb: bytes) -> bool:
    at, left = 0, [1]  # parts that are to come on each level
    try:
        while left and len(left) - 1 <= MAX_NESTING:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            order = "<I" if wkb[at] else ">I"
            (code,) = struct.unpack_from(order, wkb, at + 1)
            at += 9 if code & _SRID else 5
            iso, kind = divmod(code & 0xFFFF, 1000)
            size = 8 * (2 + max((0, 1, 1, 2)[iso % 4], bool(code & _Z) + bool(code & _M)))
            if kind in _COLLECTIONS:
                left += struct.unpack_from(order, wkb, at)
                at += 4
            elif kind in _POLYGONS:
                (rings,) = struct.unpack_from(order, wkb, at)
                at += 4
                for _ in range(rings):
                    at += 4 + size * struct.unpack_from(order, wkb, at)[0]
            else:
                at += 4 + size * struct.unpack_from(order, wkb, at)[0] if kind in _LINES else size
    except (IndexError, struct.error):
        return False  # it ends too early, which parsers say
    return bool(left)
