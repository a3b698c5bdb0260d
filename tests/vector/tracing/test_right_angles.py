"""Right-angled outlines of rotated shapes, against the shapes that were rasterized."""

import numpy as np
import pytest
import rasterio.features
import shapely
from shapely import affinity

from segkit.vector.tracing.right_angles import MAX_AREA_CHANGE, fit_outline

SQUARE_PIXELS = (1.0, 0.0, 1.0)
SHAPES = {
    "rectangle": [(0, 0), (1, 0), (1, 0.6), (0, 0.6)],
    "L": [(0, 0), (1, 0), (1, 0.4), (0.4, 0.4), (0.4, 1), (0, 1)],
    "U": [(0, 0), (1, 0), (1, 1), (0.7, 1), (0.7, 0.4), (0.3, 0.4), (0.3, 1), (0, 1)],
}


def turned(name, size, degrees, shift=(0.3, 0.7)):
    shape = affinity.scale(shapely.Polygon(SHAPES[name]), size, size, origin=(0, 0))
    return affinity.translate(affinity.rotate(shape, degrees, origin="center"), 20 + shift[0], 20 + shift[1])


def pixel_outline(shape, side=90):
    """Return the outline of the pixels whose centre lies in a shape, as a polygon."""
    image = rasterio.features.rasterize([(shape, 1)], (side, side), dtype="uint8")
    [outline] = [shapely.geometry.shape(one) for one, code in rasterio.features.shapes(image) if code]
    return outline


def fit(outline, frame=SQUARE_PIXELS, tolerance=2.0, direction=np.nan):
    x, y = shapely.get_coordinates(outline.exterior)[:-1].T.copy()
    direction, newx, newy = fit_outline(x, y, frame, tolerance, direction)
    return direction, shapely.Polygon(np.column_stack((newx, newy))) if newx.size else None


def turns(polygon, frame=SQUARE_PIXELS):
    """Return the angles between neighbouring edges, in degrees."""
    a, b, d = frame
    x, y = shapely.get_coordinates(polygon.exterior)[:-1].T
    u, v = a * x + b * y, d * y
    heading = np.degrees(np.arctan2(np.roll(v, -1) - v, np.roll(u, -1) - u))
    return np.abs((np.diff(heading, append=heading[0]) + 180) % 360 - 180)


def iou(one, other):
    return one.intersection(other).area / one.union(other).area


@pytest.mark.parametrize(("name", "corners"), [("rectangle", 4), ("L", 6), ("U", 8)])
def test_a_rotated_shape_gets_its_own_corners(name, corners):
    new, old = [], []
    for degrees in np.linspace(0, 90, 25, endpoint=False):
        shape = turned(name, 40, degrees)
        outline = pixel_outline(shape)
        direction, found = fit(outline)
        assert len(found.exterior.coords) - 1 == corners
        np.testing.assert_allclose(turns(found), 90, atol=1e-6)
        assert abs((np.degrees(direction) - degrees + 45) % 90 - 45) < 1.5
        assert abs(found.area / outline.area - 1) <= MAX_AREA_CHANGE
        new.append(iou(found, shape))
        old.append(iou(outline, shape))
    assert np.mean(new) > np.mean(old) + 0.005
    assert np.min(np.subtract(new, old)) > -0.01


def test_an_outline_along_the_pixels_stays_exactly():
    for corners in SHAPES.values():
        shape = affinity.translate(affinity.scale(shapely.Polygon(corners), 20, 20, origin=(0, 0)), 5, 5)
        _, found = fit(pixel_outline(shape))
        assert found.equals(shape)


def test_right_angles_are_those_on_the_ground():
    # Pixels twice as high as wide, and the two axes not at right angles.
    frame = (0.5, 0.1, 1.0)
    for degrees in (10, 35, 70):
        on_ground = turned("L", 40, degrees)
        inverse = [1 / frame[0], -frame[1] / frame[0] / frame[2], 0, 1 / frame[2], 0, 0]
        shape = affinity.affine_transform(on_ground, inverse)
        _, found = fit(pixel_outline(shape, side=140), frame)
        assert len(found.exterior.coords) - 1 == 6
        np.testing.assert_allclose(turns(found, frame), 90, atol=1e-6)
        assert iou(found, shape) > 0.94


def test_a_long_diagonal_stays_and_a_short_one_does_not():
    for cut, corners in ((22, 5), (5, 4)):
        shape = shapely.Polygon([(5, 5), (45, 5), (45, 45 - cut), (45 - cut, 45), (5, 45)])
        _, found = fit(pixel_outline(shape), tolerance=4.0)
        assert len(found.exterior.coords) - 1 == corners
        assert set(np.round(turns(found)).tolist()) == ({45, 90} if corners == 5 else {90})


def test_ragged_edges_and_rounded_corners_become_straight():
    random = np.random.default_rng(4)
    for degrees in (0, 20, 45):
        shape = turned("L", 44, degrees)
        image = rasterio.features.rasterize([(shape.buffer(-3).buffer(3), 1)], (90, 90), dtype="uint8")
        near = rasterio.features.rasterize([(shape.boundary.buffer(0.8), 1)], image.shape, dtype="uint8")
        image ^= near & (random.random(image.shape) < 0.12)
        outline = max(
            (shapely.geometry.shape(one) for one, code in rasterio.features.shapes(image) if code), key=shapely.area
        )
        _, found = fit(shapely.Polygon(outline.exterior))
        assert len(found.exterior.coords) - 1 == 6
        assert iou(found, shape) > 0.94


def test_what_is_not_right_angled_keeps_its_outline():
    cross = shapely.union(shapely.box(20, 30, 60, 40), affinity.rotate(shapely.box(20, 30, 60, 40), 65))
    for shape in (shapely.Polygon([(10, 10), (70, 20), (20, 60)]), cross, shapely.box(3, 3, 4, 4)):
        assert fit(pixel_outline(shape))[1] is None
    # A disc gets one with diagonals, within the same limits.
    disc = pixel_outline(shapely.Point(40, 40).buffer(20))
    _, found = fit(disc)
    assert shapely.hausdorff_distance(found.boundary, disc.boundary, densify=0.05) <= 2.75


def test_a_given_direction_is_used():
    hole = pixel_outline(affinity.translate(affinity.rotate(shapely.box(0, 0, 9, 8), 30), 20, 20))
    direction, found = fit(hole, direction=np.radians(30))
    assert direction == np.radians(30)
    x, y = shapely.get_coordinates(found.exterior)[:2].T
    turn = np.degrees(np.arctan2(y[1] - y[0], x[1] - x[0])) - 30
    assert turn / 90 == pytest.approx(np.rint(turn / 90))
