import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from segkit.io.coverage import Coverage

# On pixel corners and edges as often as anywhere.
NUMBERS = st.one_of(st.integers(-3, 15), st.floats(-3, 15, width=32))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=9)


def polygon(points):
    return shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)


def intersections(shape, window):
    left, top, right, bottom = (
        window.col_off,
        window.row_off,
        window.col_off + window.width,
        window.row_off + window.height,
    )
    return np.array(
        [
            [shapely.intersection(shape, shapely.box(x, y, x + 1, y + 1)).area for x in range(left, right)]
            for y in range(top, bottom)
        ]
    )


@settings(deadline=None, max_examples=60)
@given(POINTS, POINTS, st.sampled_from([Window(0, 0, 12, 11), Window(-4, -4, 20, 20), Window(5, 3, 1, 6)]))
def test_fractions_are_the_areas_of_the_intersections(outer, hole, window):
    shape = shapely.difference(polygon(outer), polygon(hole))
    # GEOS intersects slivers without an area with a pixel and returns the whole pixel.
    shape = shapely.union_all([each for each in shapely.get_parts(shape) if each.area > 1e-9])
    if not shape.is_empty:
        np.testing.assert_allclose(Coverage(shape).fractions(window), intersections(shape, window), atol=1e-7)


def test_fractions_agree_with_exactextract(tmp_path):
    """Coverage of a ragged shape with a hole, pixel by pixel."""
    exactextract = pytest.importorskip("exactextract")
    import geopandas

    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = random.uniform(20, 45, 400)
    ragged = shapely.Polygon(np.stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)], axis=1))
    shape = shapely.difference(ragged, shapely.Point(47.3, 51.1).buffer(9))
    transform = Affine(1, 0, 0, 0, -1, 100)  # y up
    with rasterio.open(
        tmp_path / "r.tif", "w", driver="GTiff", width=100, height=100, count=1, dtype="uint8", transform=transform,
        crs="EPSG:32622",
    ) as file:  # fmt: skip
        file.write(np.ones((1, 100, 100), np.uint8))
    zones = geopandas.GeoDataFrame(geometry=[shape], crs="EPSG:32622")
    [found] = exactextract.exact_extract(str(tmp_path / "r.tif"), zones, ["cell_id", "coverage"])
    expected = np.zeros(100 * 100)
    expected[found["properties"]["cell_id"]] = found["properties"]["coverage"]
    in_pixels = shapely.transform(shape, lambda xy: xy * [1, -1] + [0, 100])
    fractions = Coverage(in_pixels).fractions(Window(0, 0, 100, 100))
    np.testing.assert_allclose(fractions.ravel(), expected, atol=1e-6)  # float32 there


def test_parts_side_by_side_are_the_whole():
    shape = shapely.union(polygon([(1.2, 0.3), (18.7, 4.4), (7.5, 19.1)]), shapely.box(15.5, 10.25, 19, 12))
    coverage, whole = Coverage(shape), Coverage(shape).fractions(Window(0, 0, 20, 20))
    for left in range(0, 20, 7):
        for top in range(0, 20, 6):
            window = Window(left, top, min(7, 20 - left), min(6, 20 - top))
            np.testing.assert_allclose(coverage.fractions(window), whole[window.toslices()], atol=1e-12)
            part = coverage.part_of(window)
            outside = np.ones((20, 20), dtype=bool)
            if part is not None:
                outside[part.toslices()] = False
            assert not whole[window.toslices()][outside[window.toslices()]].any()
