"""The polygon engine against brute force and GDAL: regions, vertices, rings; whatever blocks a map is read in."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from rasterio.crs import CRS
from reference import (
    NODATA,
    NORTH_UP,
    PATTERNS,
    image_of,
    labels,
    maps,
    options,
    rasterio_polygons,
    same_polygons,
    traced,
    vertices,
)

from segkit.io.raster import open_raster, read_grid
from segkit.vector import polygons as polygons_of_map
from segkit.vector.geometry import to_shapely
from segkit.vector.tracing.generalize import Generalisation
from segkit.vector.tracing.pixel_measures import unmeasured_pixels
from segkit.vector.tracing.runs import Codes, Runs, iter_strips, read_runs
from segkit.vector.tracing.sieve import Sieve
from segkit.vector.tracing.tables import BAND_ROWS
from segkit.vector.tracing.tracer import Tracer


def check(codes, **how):
    """State everything that must hold of the polygons of `codes`."""
    polygons, own = traced(codes, **how)
    image = labels(codes)
    built = to_shapely(polygons)
    regions = [image[codes_at(polygon, codes.shape)] for polygon in built]
    assert [len(set(region.tolist())) for region in regions] == [1] * len(built)
    numbers = [int(region[0]) for region in regions]
    assert sorted(numbers) == list(range(image.max() + 1))

    np.testing.assert_array_equal(polygons.pixels, [np.count_nonzero(image == number) for number in numbers])
    np.testing.assert_array_equal(own, [codes[image == number][0] for number in numbers])
    np.testing.assert_array_equal(shapely.area(built), polygons.pixels)
    assert shapely.is_valid(built).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(built)).all()
    rings, of = shapely.get_rings(built, return_index=True)
    np.testing.assert_array_equal(shapely.is_ccw(rings), np.diff(of, prepend=-1) > 0)  # outer ones come first
    assert shapely.coverage_is_valid(built)

    expected = vertices(image)
    for number, polygon in zip(numbers, built, strict=True):
        assert {~NORTH_UP @ xy for xy in shapely.get_coordinates(polygon).tolist()} == expected[number]

    theirs, their_codes = rasterio_polygons(codes)
    same = shapely.equals(built[:, None], theirs[None, :]) & (own[:, None] == their_codes)
    assert (same.sum(axis=0) == 1).all()
    assert (same.sum(axis=1) == 1).all()


def codes_at(polygon, shape):
    """Pixels whose middle lies in a polygon, bool (H, W)."""
    rows, columns = np.indices(shape)
    x, y = NORTH_UP @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
    return shapely.contains_xy(polygon, x, y).reshape(shape)


blocks = st.tuples(st.integers(1, 7), st.integers(1, 7))


@settings(max_examples=100)
@given(maps(), blocks)
def test_polygons_are_an_exact_valid_coverage(codes, block):
    check(codes, block=block)


@pytest.mark.parametrize("codes", PATTERNS.values(), ids=PATTERNS.keys())
def test_patterns(codes):
    check(codes)
    check(codes, block=(1, 1))


@settings(max_examples=100)
@given(maps(14), blocks, st.sampled_from(options()))
def test_the_result_does_not_depend_on_blocks(codes, block, how):
    crs = CRS.from_epsg(32633)
    whole = traced(codes, crs=crs, **how)
    assert same_polygons(whole, traced(codes, crs=crs, block=(1, 1), **how))
    assert same_polygons(whole, traced(codes, crs=crs, block=block, **how))


@settings(max_examples=60)
@given(maps(), st.sampled_from(options()), st.sets(st.sampled_from([0, 1, 2])))
def test_what_is_left_out_does_not_change_the_rest(codes, how, wanted):
    everything, own = traced(codes, **how)
    chosen, chosen_codes = traced(codes, wanted=wanted, **how)
    keep = np.isin(own, list(wanted))
    assert chosen_codes.tolist() == own[keep].tolist()
    assert [one.wkb for one in to_shapely(chosen)] == [one.wkb for one in to_shapely(everything)[keep]]
    np.testing.assert_array_equal(chosen.pixels, everything.pixels[keep])


def test_a_border_that_is_gone_keeps_its_place():
    """Region 2 is left out; its border with 1 is written and forgotten before the one with 0 is simplified."""
    codes = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 2, 0], [0, 0, 0, 0]], dtype=np.uint8)
    everything, own = traced(codes, simplify="10px")
    chosen, _ = traced(codes, simplify="10px", wanted={0, 1}, block=(1, 1))
    assert [one.wkb for one in to_shapely(chosen)] == [one.wkb for one in to_shapely(everything)[own != 2]]


@settings(max_examples=40)
@given(maps())
def test_polygons_hold_what_the_map_holds(codes):
    np.testing.assert_array_equal(image_of(traced(codes), codes), codes)


def test_the_order_is_that_in_which_regions_end():
    codes = np.array([[3, 1, 2], [1, 1, 2], [4, 4, 2]], dtype=np.uint8)
    assert traced(codes)[1].tolist() == [3, 1, 4, 2]


def repeated(times):
    """A strip of noise, over and over, with a column of another class on its left that never ends."""
    strip = np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)
    strip[-1] = NODATA
    strip[:, 0] = 5
    return np.tile(strip, (times, 1))


def runs_of(codes, rows):
    """Runs of an array, some rows at a time."""
    known = {code: kind for kind, code in enumerate(np.unique(codes[codes != NODATA]).tolist())} | {NODATA: -1}
    for top in range(0, len(codes), rows):
        first, kind, row = [], [], [0]
        for line in codes[top : top + rows]:
            starts = np.flatnonzero(np.diff(line.astype(int), prepend=-1))
            first += starts.tolist()
            kind += [known[code] for code in line[starts].tolist()]
            row.append(len(first))
        yield Runs(top, np.array(row), np.array(first, np.int32), np.array(kind, np.int32), codes.shape[1])


@pytest.mark.parametrize("form", [Generalisation(), Generalisation(1.5, smooth=True)], ids=["exact", "simplified"])
def test_memory_follows_what_is_open_and_not_the_map(form):
    wanted = np.array([True, True, False])

    def used(times):
        tracer = Tracer(50, NORTH_UP, unmeasured_pixels(), form)
        for runs in runs_of(repeated(times), 10):
            tracer.trace(runs, wanted)
        assert len(tracer.finish(40 * times).class_index) == 0  # the last row is no data but for what is not wanted
        return tracer._tables.free[1::2].tolist()

    assert used(180) == used(60)


@pytest.mark.parametrize("holes", [False, True])
def test_the_sieve_holds_back_what_is_small_and_not_the_map(holes):
    sieve = Sieve(50, 12, (1, 1), holes=holes, rows=12)
    held = 0
    for runs in runs_of(repeated(60), 10):
        sieve.sift(runs, runs.lengths(), np.arange(3, dtype=np.int32))
        held = max(held, sieve._held.height)
    assert held < 100


def test_borders_that_cross_bands_fit():
    codes = np.random.default_rng(1).integers(0, 2, (2 * BAND_ROWS // 3 + 20, 5), dtype=np.uint8)
    codes = np.kron(codes, np.ones((3, 3), dtype=np.uint8))
    how = {"simplify": "2px", "smooth": True}
    whole = traced(codes, **how)
    assert same_polygons(whole, traced(codes, block=(1000, 15), **how))
    assert shapely.coverage_is_valid(to_shapely(whole[0]))
    exact = to_shapely(traced(codes)[0])
    assert shapely.union_all(to_shapely(whole[0])).equals(shapely.union_all(exact))


@pytest.mark.parametrize("tolerance", ["3px", "30px"])
def test_what_lies_beyond_a_band_is_not_crossed(tolerance):
    """Two borders run side by side across the end of a band, as far from straight as they may be."""
    walk = np.random.default_rng(2).integers(-2, 3, BAND_ROWS).cumsum().repeat(2)
    columns = np.arange(walk.min() - 3, walk.max() + 6)
    codes = (columns > walk[:, None]).astype(np.uint8) + (columns > walk[:, None] + 3)
    polygons, own = traced(codes, simplify=tolerance)
    built, exact = to_shapely(polygons), traced(codes)
    assert own.tolist() == exact[1].tolist()
    assert shapely.is_valid(built).all()
    assert shapely.coverage_is_valid(built)
    assert shapely.union_all(built).equals(shapely.union_all(to_shapely(exact[0])))


@pytest.mark.parametrize("seed", [176, 233, 310])
def test_what_lies_on_the_end_of_a_band_is_not_crossed(seed):
    """Noise around that row; these are maps in which it would happen if its vertices were forgotten."""
    random = np.random.default_rng(seed)
    side = int(random.integers(1, 4))
    drawn = random.integers(0, 2 + seed % 2, (30 // side + 2, 40 // side + 1))
    codes = np.zeros((BAND_ROWS + 16, 40), dtype=np.uint8)
    codes[BAND_ROWS - 10 :] = np.kron(drawn, np.ones((side, side), dtype=int))[:26, :40]
    built = to_shapely(traced(codes, simplify=("2px", "5px", "20px")[seed % 3])[0])
    assert shapely.is_valid(built).all()
    assert shapely.coverage_is_valid(built)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_codes_of_any_type(tmp_path, write_raster, dtype):
    codes = np.random.default_rng(0).choice(np.array([0, 1, 3, 100], dtype=dtype), (30, 200))
    with open_raster(write_raster("map.tif", codes, nodata=3)) as dataset:
        met = []
        parts = list(read_runs(dataset, 1, Codes(3, met.append), block=(7, 33)))
    values = np.array([*met, 3])  # the last one stands for -1
    found = np.concatenate([np.repeat(values[runs.class_index], runs.lengths()).reshape(-1, 200) for runs in parts])
    np.testing.assert_array_equal(found, codes)
    assert sorted(met) == [0, 1, 100]


def test_strips_are_whole_blocks(write_raster):
    path = write_raster("map.tif", np.zeros((100, 20000), dtype=np.uint8), tiled=True, blockxsize=64, blockysize=32)
    with open_raster(path) as dataset:
        windows = list(iter_strips(dataset))
    assert [window.height for window in windows] == [100]
    path = write_raster("wide.tif", np.zeros((100, 200_000), dtype=np.uint8), blockysize=8)
    with open_raster(path) as dataset:
        windows = list(iter_strips(dataset))
    assert [(window.row_off, window.height) for window in windows] == [
        *((top, 16) for top in range(0, 96, 16)),
        (96, 4),
    ]


NLCD = SHARED / "label_maps" / "nlcd.tif"


def directed_edges(frame, grid):
    """Edges as pairs of corner numbers, forwards and backwards, with their lengths in pixels."""
    places, ring = shapely.get_coordinates(shapely.get_rings(frame.geometry), return_index=True)
    corners = np.rint((places - grid.transform[2::3][:2]) / (grid.transform.a, grid.transform.e)).astype(int)
    start, end = (part[ring[1:] == ring[:-1]] for part in (corners[:-1], corners[1:]))
    number, many = np.array([1, grid.width + 1]), (grid.width + 1) * (grid.height + 1)
    forward, back = (a @ number * many + b @ number for a, b in ((start, end), (end, start)))
    return forward, back, np.abs(end - start).sum(axis=1)


@pytest.mark.skipif(not NLCD.exists(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("how", "count"), [({}, 41_563), ({"simplify": "3px"}, 41_563), ({"min_area": "12px", "simplify": "100m"}, None)]
)
def test_a_real_map(how, count):
    frame = polygons_of_map(NLCD, background=True, **how)
    assert count is None or len(frame) == count
    assert shapely.is_valid(frame.geometry).all()
    with open_raster(NLCD) as dataset:
        grid = read_grid(dataset)
        codes = dataset.read(1)
    assert frame["pixels"].sum() == grid.height * grid.width
    if not how:
        pixel = abs(grid.transform.determinant)
        np.testing.assert_allclose(frame.area, frame["pixels"] * pixel, rtol=1e-9)
        assert frame.groupby("class_id")["pixels"].sum().tolist() == np.unique(codes, return_counts=True)[1].tolist()
    if "min_area" in how:
        assert frame["pixels"].min() >= 12
    assert frame["area_ha"].sum() == pytest.approx(grid.hectares().sum(), rel=1e-8)
    # A valid coverage: each directed edge is there once, and all but those of the rim have their reverse.
    forward, back, length = directed_edges(frame, grid)
    assert np.diff(np.sort(forward)).all()
    rim = ~np.isin(forward, back, kind="sort")
    assert length[rim].sum() == 2 * (grid.width + grid.height)
