import itertools
import struct

import pytest
import shapely

from segkit.io.wkb import MAX_NESTING, is_too_deep

PLAIN = [
    shapely.Point(1, 2), shapely.Point(), shapely.LineString([(0, 0), (1, 1)]), shapely.box(0, 0, 1, 1),
    shapely.box(0, 0, 9, 9) - shapely.box(2, 2, 3, 3), shapely.MultiPoint([(0, 0), (1, 1)]), shapely.Polygon(),
    shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3)]),
]  # fmt: skip


def nested(levels):
    """Return collections inside each other, each beside geometries of all kinds."""
    found = shapely.GeometryCollection(PLAIN)
    for _ in range(levels - 2):  # a multipolygon is a level, too
        found = shapely.GeometryCollection([*PLAIN, found])
    return found


@pytest.mark.parametrize(
    ("byte_order", "flavor", "z"), [*itertools.product([0, 1], ["extended", "iso"], [False, True])]
)
def test_levels_are_counted_however_they_are_written(byte_order, flavor, z):
    def wkb(geometry):
        geometry = shapely.set_srid(shapely.force_3d(geometry) if z else geometry, 32622)
        return shapely.to_wkb(geometry, byte_order=byte_order, flavor=flavor, include_srid=flavor == "extended")

    assert not is_too_deep([None, *map(wkb, PLAIN), wkb(nested(MAX_NESTING))])
    assert is_too_deep([wkb(PLAIN[0]), wkb(nested(MAX_NESTING + 1))])


def test_what_ends_too_early_is_no_deep_geometry():
    whole = shapely.to_wkb(nested(4))
    assert not any(is_too_deep([whole[:end]]) for end in range(len(whole)))


def test_many_levels_without_an_end():
    assert is_too_deep([struct.pack("<BII", 1, 7, 1) * 100_000])
