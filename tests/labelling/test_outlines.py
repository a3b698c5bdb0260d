"""Outlines of windows in the CRS of several scenes."""

import numpy as np
import pytest
from rasterio.crs import CRS
from shapely import box

from segkit.errors import UsageError
from segkit.labelling.outlines import reproject

LAST_ZONE, DEGREES = CRS.from_epsg(32760), CRS.from_epsg(4326)


def test_a_shape_over_the_antimeridian_is_refused_in_degrees():
    """In Fiji the antimeridian is 316 km east of the middle of zone 60; in degrees a box there spans the earth."""
    before, over = box(800_000, 8e6, 801_000, 8.001e6), box(790_000, 8e6, 830_000, 8.001e6)
    west, _, east, _ = reproject(np.array([before], dtype=object), LAST_ZONE, DEGREES)[0].bounds
    assert 179 < west < east < 180
    with pytest.raises(UsageError, match="EPSG:32760 reaches over the antimeridian"):
        reproject(np.array([before, over], dtype=object), LAST_ZONE, DEGREES)
    assert reproject(np.array([], dtype=object), LAST_ZONE, DEGREES).size == 0
