"""A mosaic reads as one file with the same pixels does."""

import itertools
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

from segkit.errors import DataError, GridError, MissingFileError, RasterError, UsageError
from segkit.io import mosaic_dataset
from segkit.io.class_table import Legend
from segkit.io.grid import Grid
from segkit.io.mosaic import Mosaic
from segkit.io.mosaic_warp import warp_raster
from segkit.io.paths import list_files
from segkit.io.pixel_rules import PixelRules
from segkit.io.raster import open_raster, read_grid
from segkit.io.scene import Scene

PLACE = Affine(10, 0, 500_000, 0, -10, 9_000_000)


def write(path, pixels, transform=PLACE, *, mask=None, after=None, crs="EPSG:32622", **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, crs=crs, transform=transform, **profile) as dataset:
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
        if after:
            after(dataset)
    return path


def cut(folder, pixels, windows, *, transform=PLACE, mask=None, **profile):
    """Write each (top, left, height, width) of an array as a file; return their names in order."""
    return [
        write(
            folder / f"{number:02}.tif",
            pixels[:, top : top + height, left : left + width],
            transform @ Affine.translation(left, top),
            mask=None if mask is None else mask[top : top + height, left : left + width],
            **profile,
        )
        for number, (top, left, height, width) in enumerate(windows)
    ]


def image(height=40, width=50, bands=2, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 200, (bands, height, width)).astype(dtype)


QUARTERS = [(0, 0, 20, 25), (0, 25, 20, 25), (20, 0, 20, 25), (20, 25, 20, 25)]
SIZE = 24


@st.composite
def cuts(draw):
    """Files (top, left, height, width) of a raster of SIZE x SIZE, which may overlap and leave holes."""
    edges = (
        draw(st.lists(st.integers(1, SIZE - 1), max_size=2, unique=True)),
        draw(st.lists(st.integers(1, SIZE - 1), max_size=2, unique=True)),
    )
    rows, columns = ([0, *sorted(each), SIZE] for each in edges)
    found = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            if draw(st.integers(0, 5)) == 0:
                continue
            above, before, below, after = (draw(st.sampled_from([0, 0, 1, 4])) for _ in range(4))
            first, start = max(0, top - above), max(0, left - before)
            found.append((first, start, min(SIZE, bottom + below) - first, min(SIZE, right + after) - start))
    found = found or [(0, 0, SIZE, SIZE)]
    # The corners, so that the mosaic has the extent of the whole.
    return draw(st.permutations([*found, (0, 0, 1, 1), (SIZE - 1, SIZE - 1, 1, 1)]))


@st.composite
def windows(draw):
    """A window that may extend beyond the raster."""
    top, left = draw(st.integers(-3, SIZE - 1)), draw(st.integers(-3, SIZE - 1))
    return Window(left, top, draw(st.integers(1, SIZE + 3 - left)), draw(st.integers(1, SIZE + 3 - top)))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cuts(),
    st.lists(windows(), min_size=3, max_size=3),
    st.sampled_from(["first", "last", "mean"]),
    st.sampled_from(["nodata", "mask", "nan", "none"]),
    st.integers(0, 3),
)
def test_any_cut_of_a_raster_reads_as_the_whole(tmp_path_factory, files, reads, overlap, kind, seed):
    """Oracle: the whole in one file, in which the pixels of no file are masked. Overlapping files hold the same."""
    folder = tmp_path_factory.mktemp("cut")
    covered = np.zeros((SIZE, SIZE), dtype=bool)
    for top, left, height, width in files:
        covered[top : top + height, left : left + width] = True
    random = np.random.default_rng(seed)
    pixels = image(SIZE, SIZE, dtype="float32" if kind == "nan" else "uint8", seed=seed)
    gaps = random.random((2, SIZE, SIZE)) < 0.2
    valid = covered.copy()
    profile, mask = {}, None
    if kind == "mask":
        mask = (~gaps[0] * 255).astype(np.uint8)
        valid &= ~gaps[0]
    elif kind == "nodata":
        pixels[gaps], profile = 7, {"nodata": 7}
    elif kind == "nan":
        pixels[gaps], profile = np.nan, {"nodata": np.nan}
    paths = cut(folder / "tiles", pixels, files, mask=mask, **profile)
    whole = Scene.from_files(write(folder / "whole.tif", pixels, mask=mask, **profile))
    scene = Scene.from_files(Mosaic(paths, overlap))
    assert scene.grid == whole.grid
    with scene.open() as reader, whole.open() as expected:
        for window in reads:
            found, truth = reader.read(window), expected.read(window)
            inside = whole.read().valid & valid
            shown = np.zeros((int(window.height), int(window.width)), dtype=bool)
            top, left = int(window.row_off), int(window.col_off)
            for row in range(shown.shape[0]):
                for column in range(shown.shape[1]):
                    r, c = row + top, column + left
                    shown[row, column] = 0 <= r < SIZE and 0 <= c < SIZE and inside[r, c]
            np.testing.assert_array_equal(found.valid, shown)
            np.testing.assert_array_equal(found.pixels[:, shown], truth.pixels[:, shown])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts(), windows(), st.sampled_from(["first", "last"]), st.booleans())
def test_any_cut_of_a_map_reads_as_the_whole(tmp_path_factory, files, window, overlap, has_nodata):
    """Stored values and masks, as maps and labels are read."""
    folder = tmp_path_factory.mktemp("cut")
    codes = image(SIZE, SIZE, bands=1, dtype="uint8") % 5
    profile = {"nodata": 3} if has_nodata else {}
    paths = cut(folder / "tiles", codes, files, **profile)
    covered = np.zeros((SIZE, SIZE), dtype=bool)
    for top, left, height, width in files:
        covered[top : top + height, left : left + width] = True
    assume(window.row_off + window.height > 0 and window.col_off + window.width > 0)
    window = window.intersection(Window(0, 0, SIZE, SIZE))
    with open_raster(Mosaic(paths, overlap)) as dataset:
        rows, columns = window.toslices()
        truth = covered & (codes[0] != 3) if has_nodata else covered
        np.testing.assert_array_equal(dataset.read_masks(1, window=window) > 0, truth[rows, columns])
        found = dataset.read([1], window=window, masked=True)
        np.testing.assert_array_equal(~np.ma.getmaskarray(found[0]), truth[rows, columns])
        shown = covered[rows, columns]
        np.testing.assert_array_equal(found.data[0][shown], codes[0][rows, columns][shown])
        assert dataset.layout.is_covered == covered.all()
        # By this, readers decide whether to ask for the mask.
        assert (MaskFlags.all_valid in dataset.mask_flag_enums[0]) == (covered.all() and not has_nodata)


@pytest.mark.parametrize("overlap", ["first", "last", "mean"])
def test_where_files_differ_the_rule_decides(tmp_path, overlap):
    """Where one of them is no data, the other is used."""
    one, other = (np.full((1, 6, 6), value, dtype=np.uint8) for value in (10, 20))
    one[0, 0, 4], other[0, 1, 0] = 0, 0
    paths = [
        write(tmp_path / "a.tif", one, nodata=0),
        write(tmp_path / "b.tif", other, PLACE @ Affine.translation(4, 0), nodata=0),
    ]
    tile = Scene.from_files(Mosaic(paths, overlap)).read()
    shared = {"first": 10, "last": 20, "mean": 15}[overlap]
    expected = np.array([[10] * 4 + [shared] * 2 + [20] * 4] * 6)
    expected[0, 4], expected[1, 4] = 20, 10
    np.testing.assert_array_equal(tile.pixels[0], expected)
    assert tile.valid.all()


def test_overlapping_files_need_a_rule(tmp_path):
    paths = cut(tmp_path, image(), [(0, 0, 40, 30), (0, 20, 40, 30)])
    with pytest.raises(
        UsageError, match=r"00.tif and .*01.tif overlap by 10 x 40 pixels; say which to take; add --mos"
    ):
        Scene.from_files(Mosaic(paths))
    with pytest.raises(UsageError, match="overlap is 'both'; it is one of first, last, mean"):
        Mosaic(paths, "both")
    with open_raster(Mosaic(paths, "mean")) as dataset, pytest.raises(UsageError, match="only imagery has a mean"):
        dataset.read([1])


def quarters(tmp_path, **changes):
    """Write four quarters of an image; return a function that writes the last one anew with other properties."""
    pixels = image(**changes)
    paths = cut(tmp_path / "tiles", pixels, QUARTERS)
    last = pixels[:, 20:, 25:]

    def anew(pixels=last, transform=PLACE @ Affine.translation(25, 20), **profile):
        paths[3].unlink()
        return write(paths[3], pixels, transform, **profile)

    return pixels, paths, anew


def describe_bands(*names):
    def after(dataset):
        dataset.descriptions = names

    return after


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"pixels": image(20, 25, 3)},
            RasterError,
            "00.tif has 2 bands, .*03.tif 3; files of one mosaic have the same",
        ),
        (
            {"crs": "EPSG:32623"},
            GridError,
            r"03.tif is not on the grid of .*00.tif \(CRS EPSG:32622 against EPSG:32623\)",
        ),
        ({"crs": None}, GridError, "03.tif is not on the grid of .*one of them has no CRS"),
        (
            {"transform": PLACE @ Affine.translation(25.4, 20)},
            GridError,
            r"\(shifted by 0.4 columns and 0 rows\); a mosaic has one grid",
        ),
        (
            {"transform": PLACE @ Affine.translation(25, 20) @ Affine.scale(2)},
            GridError,
            r"\(pixels of 10 x 10 against 20 x 20\)",
        ),
        ({"transform": Affine.identity()}, GridError, "03.tif: has no georeference, so its place beside the other"),
        (
            {"after": lambda d: setattr(d, "scales", (0.1, 0.1))},
            RasterError,
            r"declares scales \(1.0, 1.0\) and .*03.tif",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_that_does_not_fit_is_named_with_the_difference(tmp_path, changes, error, message):
    _, paths, anew = quarters(tmp_path)
    anew(**changes)
    with pytest.raises(error, match=message) as found:
        Scene.from_files(Mosaic(paths))
    assert "\n" not in str(found.value)


def test_other_names_of_bands_are_refused_and_missing_ones_are_not(tmp_path):
    paths = [
        write(tmp_path / "a.tif", image(), after=describe_bands("B04", None)),
        write(tmp_path / "b.tif", image(), PLACE @ Affine.translation(50, 0), after=describe_bands(None, "B08")),
    ]
    assert Scene.from_files(Mosaic(paths)).band_names == ("B04", "B08")
    paths[1].unlink()
    write(paths[1], image(), PLACE @ Affine.translation(50, 0), after=describe_bands("B08", "B04"))
    with pytest.raises(RasterError, match=r"band 1 is B04 in .*a.tif, but B08 in .*b.tif"):
        Scene.from_files(Mosaic(paths))


def test_imagery_may_have_other_types_and_no_data_values_in_each_file(tmp_path):
    """Each file is read as if it were alone; so are scales, if they are applied. Maps need one no-data value."""
    pixels, paths, anew = quarters(tmp_path)
    part = pixels[:, 20:, 25:].astype("float32")
    part[:, 3, 3] = -9
    anew(part, nodata=-9, after=lambda dataset: setattr(dataset, "scales", (0.5, 0.5)))
    tile = Scene.from_files(Mosaic(paths), scaled=True).read()
    expected = pixels.astype("float32")
    expected[:, 20:, 25:] *= 0.5
    assert not tile.valid[23, 28]
    assert tile.valid.sum() == tile.valid.size - 1
    np.testing.assert_array_equal(tile.pixels[:, tile.valid], expected[:, tile.valid])
    with (
        open_raster(Mosaic(paths)) as dataset,
        pytest.raises(RasterError, match=r"00.tif has the no-data value none, .*03.tif -9; files of one mosaic"),
    ):
        _ = dataset.nodata


def test_an_alpha_band_that_is_imagery_is_no_mask_but_holes_are(tmp_path):
    """As near-infrared in NAIP, which GDAL calls alpha."""
    pixels = image(bands=4, dtype="uint8")
    pixels[3, 5, 5] = 0
    alpha = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    paths = cut(
        tmp_path, pixels, QUARTERS[:1] + QUARTERS[2:], after=lambda dataset: setattr(dataset, "colorinterp", alpha)
    )
    tile = Scene.from_files(Mosaic(paths), bands=(1, 2, 3, 4)).read()
    holes = np.zeros((40, 50), dtype=bool)
    holes[:20, 25:] = True
    np.testing.assert_array_equal(tile.valid, ~holes)
    np.testing.assert_array_equal(tile.pixels[:, ~holes], pixels[:, ~holes])


@pytest.mark.parametrize("resampling", [Resampling.bilinear, Resampling.nearest])
def test_a_mosaic_is_warped_as_one_raster(tmp_path, monkeypatch, resampling):
    """Oracle: the whole in one file, warped by GDAL. There is no seam between files nor between blocks."""
    monkeypatch.setattr("segkit.io.block_warp._BLOCK_PX", 16)
    pixels = np.add.outer(np.arange(40), np.arange(50))[None].astype("uint16") * 20 + image(bands=1)
    pixels[0, 10:13, 20:30] = 0
    whole = write(tmp_path / "whole.tif", pixels, nodata=0)
    paths = cut(tmp_path / "tiles", pixels, QUARTERS, nodata=0)
    finer = Grid(90, 100, PLACE @ Affine.translation(2.3, 1.7) @ Affine.scale(0.41), rasterio.CRS.from_epsg(32622))
    with (
        open_raster(whole) as dataset,
        open_raster(Mosaic(paths)) as mosaic,
        warp_raster(dataset, finer, resampling) as one,
        warp_raster(mosaic, finer, resampling) as other,
    ):
        window = Window(3, 5, 80, 70)
        truth, found = one.read([1], window=window, masked=True), other.read([1], window=window, masked=True)
        np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(truth))
        assert np.abs(found.astype(int) - truth.astype(int)).max() <= (1 if resampling == Resampling.bilinear else 0)
        np.testing.assert_array_equal(other.read([1], window=Window(20, 30, 9, 9)), found.data[:, 25:34, 17:26])
        np.testing.assert_array_equal(other.read_masks(1, window=window) == 0, np.ma.getmaskarray(truth)[0])


def test_stacked_mosaics_of_other_resolutions_are_resampled_as_files_are(tmp_path):
    """Bands of 10 m and 20 m, tiled; both in tiles and in one file."""
    fine, coarse = image(bands=1), image(20, 25, bands=1, seed=1) * 100
    place = PLACE @ Affine.scale(2)
    tiles = [(0, 0, 10, 25), (10, 0, 10, 25)]
    stacks = [
        [write(tmp_path / "fine.tif", fine), write(tmp_path / "coarse.tif", coarse, place)],
        [Mosaic(cut(tmp_path / "f", fine, QUARTERS)), Mosaic(cut(tmp_path / "c", coarse, tiles, transform=place))],
    ]
    with pytest.raises(GridError, match="lie on different grids"):
        Scene.from_files(stacks[1])
    whole, mosaics = (Scene.from_files(stack, resample=True).read() for stack in stacks)
    np.testing.assert_array_equal(mosaics.valid, whole.valid)
    assert np.abs(mosaics.pixels - whole.pixels).max() <= 1


def test_a_tile_of_another_crs_is_warped_to_the_first_one(tmp_path):
    """As granules of two UTM zones; the oracle is the tile warped by itself."""
    pixels = image(bands=1)
    first = write(tmp_path / "a.tif", pixels, nodata=0)
    x, y = rasterio.warp.transform("EPSG:32622", "EPSG:32623", [500_400], [9_000_000])
    other = write(tmp_path / "b.tif", pixels, Affine(10, 0, x[0], 0, -10, y[0]), crs="EPSG:32623", nodata=0)
    scene = Scene.from_files(Mosaic([first, other], "first"), resample=True)
    tile = scene.read()
    grid = scene.grid
    assert grid.height > 40
    assert grid.width > 60
    with rasterio.open(other) as dataset:
        alone = rasterio.vrt.WarpedVRT(
            dataset, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width, resampling=1
        ).read(1)
    origin = [round(value) for value in ~grid.transform @ (500_000, 9_000_000)]
    expected = alone.copy()
    part = expected[origin[1] : origin[1] + 40, origin[0] : origin[0] + 50]
    part[pixels[0] > 0] = pixels[0][pixels[0] > 0]
    np.testing.assert_array_equal(tile.valid, expected > 0)
    assert np.abs(tile.pixels[0] - expected)[tile.valid].max() <= 1
    with (
        open_raster(Mosaic([first, other], "first").with_resampling()) as mosaic,
        pytest.raises(GridError, match=r"b.tif is not on the grid of .*a.tif; only imagery is resampled"),
    ):
        mosaic.read([1])


def test_a_tile_on_both_sides_of_the_antimeridian_has_no_place_in_degrees(tmp_path):
    first = write(tmp_path / "a.tif", image(bands=1), Affine(0.01, 0, 179.4, 0, -0.01, 0.5), crs="EPSG:4326")
    x, y = rasterio.warp.transform("EPSG:4326", "EPSG:32660", [179.9], [0.5])
    other = write(tmp_path / "b.tif", image(bands=1), Affine(1000, 0, x[0], 0, -1000, y[0]), crs="EPSG:32660")
    with pytest.raises(GridError, match=r"b\.tif: crosses the antimeridian"):
        Scene.from_files(Mosaic([first, other], "first"), resample=True)


def test_a_tile_on_another_grid_has_the_same_pixels_in_every_window(tmp_path):
    """With the pixels that GDAL gives for each window by itself, this test fails."""
    first = write(tmp_path / "a.tif", image(bands=1))
    x, y = rasterio.warp.transform("EPSG:32622", "EPSG:4326", [500_400], [9_000_000])
    pixels = np.random.default_rng(2).integers(900, 1100, (1, 300, 300), dtype=np.uint16)
    pixels[:, :, 200:] = 0
    other = write(tmp_path / "b.tif", pixels, Affine(2e-4, 0, x[0], 0, -2e-4, y[0]), crs="EPSG:4326")
    scene = Scene.from_files(Mosaic([first, other], "first"), resample=True, rules=PixelRules(nodata=(0,)))
    whole = scene.read()
    mixed = whole.pixels[0, :, 70:][whole.valid[:, 70:]]
    assert mixed.min() >= 900, "no data is not mixed with data"
    with scene.open() as reader:
        for row in range(0, scene.grid.height, 97):
            window = Window(61, row, 83, min(50, scene.grid.height - row))
            np.testing.assert_array_equal(reader.read(window).pixels, whole.pixels[:, *window.toslices()])


def test_the_grid_is_that_of_the_whole_to_the_last_digit(tmp_path):
    """Also in degrees, whose sums are not exact; south-up and rotated ones keep their transform."""
    for number, transform in enumerate(
        [
            Affine(1 / 10800, 0, 11.3, 0, -1 / 10800, 47.1),
            Affine(10, 0, 500_000, 0, 10, 9_000_000),
            Affine(8, 6, 500_000, 6, -8, 9_000_000),
        ]
    ):
        paths = cut(tmp_path / str(number), image(), QUARTERS[::-1], transform=transform, crs="EPSG:4326")
        with open_raster(Mosaic(paths)) as dataset:
            assert read_grid(dataset) == Grid(40, 50, transform, rasterio.CRS.from_epsg(4326))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic_dataset, "_open_files_limit", lambda: 3)
    pixels = image()
    paths = cut(tmp_path, pixels, [(0, left, 40, 5) for left in range(0, 50, 5)])
    scene = Scene.from_files(Mosaic(paths))
    open_now, most = set(), [0]
    original = mosaic_dataset.open_raster

    class Counting:
        def __init__(self, path, **options):
            self.path, self.context = path, original(path, **options)

        def __enter__(self):
            open_now.add(self.path)
            most[0] = max(most[0], len(open_now))
            return self.context.__enter__()

        def __exit__(self, *error):
            open_now.remove(self.path)
            return self.context.__exit__(*error)

    monkeypatch.setattr(mosaic_dataset, "open_raster", Counting)
    with scene.open() as reader:
        for _ in range(2):
            np.testing.assert_array_equal(reader.read(scene.grid.full_window).pixels, pixels)
    assert most == [3]
    assert not open_now


def test_names_files_and_pickles(tmp_path, monkeypatch):
    cut(tmp_path / "north", image(), QUARTERS)
    for number in range(2):
        (tmp_path / "north" / f"{number:02}.tif").rename(tmp_path / "north" / f"north_{number}.tif")
    (tmp_path / "north" / "notes.txt").write_text("no raster")
    monkeypatch.chdir(tmp_path)
    folder, pattern = Mosaic("north"), Mosaic("north/north_*.tif", "last")
    assert [file.name for file in folder.files] == ["02.tif", "03.tif", "north_0.tif", "north_1.tif"]
    assert (folder.stem, folder.name, str(folder)) == ("north", "north.tif", "north")
    assert (pattern.stem, str(pattern), pattern.parent) == ("north", "north/north_*.tif", Path("north"))
    assert Mosaic("north/*.tif").stem == "north"
    assert str(Mosaic(["north/02.tif", "north/03.tif"])) == "north/02.tif and 1 more"
    assert list_files(pattern) == pattern.files
    for one in (folder, pattern, pattern.with_resampling()):
        other = pickle.loads(pickle.dumps(one))
        assert (other, hash(other), other.files, other.overlap) == (one, hash(one), one.files, one.overlap)
    assert folder != pattern
    assert Path("north") != folder
    (tmp_path / "elsewhere").mkdir()
    absolute = pattern.absolute()
    monkeypatch.chdir("elsewhere")
    assert all(file.is_absolute() and file.exists() for file in absolute.files)
    with pytest.raises(MissingFileError, match=r"north/north_\*.tif: contains no rasters"):
        _ = Mosaic("north/north_*.tif").files
    with pytest.raises(UsageError, match=r"02.tif is in the mosaic 2 times"):
        _ = Mosaic([tmp_path / "north/02.tif", tmp_path / "north/0*.tif"]).files
    with pytest.raises(UsageError, match="needs at least one file"):
        Mosaic([])


def test_the_description_tells_any_change_of_a_file(tmp_path):
    _, paths, anew = quarters(tmp_path)
    before = Mosaic(paths).describe()
    assert before == Mosaic(tmp_path / "tiles").describe()
    assert before.startswith("4 files of ")
    assert Mosaic(paths, "first").describe() != before
    assert Mosaic(paths[:3]).describe() != before
    anew(image(20, 25, seed=5))
    assert Mosaic(paths).describe() != before


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    pixels, paths, anew = quarters(tmp_path)
    scene = Scene.from_files(Mosaic(paths))
    with scene.open() as reader:
        anew(transform=PLACE @ Affine.translation(26, 20))
        with pytest.raises(GridError, match=r"03.tif: .*changed since the mosaic was opened"):
            reader.read(scene.grid.full_window)
    with pytest.raises(GridError, match="its grid has changed since the scene was opened"), scene.open():
        pass
    anew()
    np.testing.assert_array_equal(scene.read().pixels, pixels)


def test_a_damaged_file_is_named(tmp_path):
    _, paths, _ = quarters(tmp_path, height=400, width=500)
    scene = Scene.from_files(Mosaic(paths))
    paths[2].write_bytes(paths[2].read_bytes()[:-500])
    with scene.open() as reader, pytest.raises(RasterError, match=r"02.tif"):
        reader.read(scene.grid.full_window)


def test_virtual_rasters_among_the_files_are_refused_unless_they_are_allowed(tmp_path):
    pixels, paths, _ = quarters(tmp_path)
    virtual = tmp_path / "tiles" / "04.vrt"
    rasterio.shutil.copy(paths[3], virtual, driver="VRT")
    mosaic = Mosaic([*paths[:3], virtual])
    with pytest.raises(RasterError, match=r"04.vrt: is a virtual raster .*; if you trust it, add --vrt"):
        Scene.from_files(mosaic, vrt=False)
    with pytest.raises(RasterError, match=r"file or URL; convert it to GeoTIFF"):
        Scene.from_files(mosaic, vrt=None)  # as where there is no such option
    np.testing.assert_array_equal(Scene.from_files(mosaic, vrt=True).read().pixels, pixels)


def test_class_tables_must_be_the_same(tmp_path):
    codes = image(bands=1, dtype="uint8") % 3
    tags = {"segkit_classes": '[{"value": 1, "name": "forest"}]'}
    paths = cut(tmp_path, codes, QUARTERS, after=lambda dataset: dataset.update_tags(**tags))
    with open_raster(Mosaic(paths)) as dataset:
        assert [one.name for one in Legend.from_dataset(dataset).classes] == ["forest"]
    with rasterio.open(paths[2], "r+") as dataset:
        dataset.update_tags(segkit_classes='[{"value": 1, "name": "water"}]')
    with pytest.raises(DataError, match=r"00.tif and .*02.tif list different classes"), open_raster(Mosaic(paths)):
        pass
    colored = cut(tmp_path / "c", codes, QUARTERS)
    for path, color in zip(colored, ((1, 2, 3, 255), (1, 2, 3, 255), (9, 9, 9, 255), (1, 2, 3, 255)), strict=True):
        with rasterio.open(path, "r+") as dataset:
            dataset.write_colormap(1, {1: color})
    with (
        open_raster(Mosaic(colored)) as dataset,
        pytest.raises(DataError, match=r"and .*02.tif list different classes"),
    ):
        Legend.from_dataset(dataset)


def test_threads_read_one_mosaic_through_readers_of_their_own(tmp_path):
    pixels = image(200, 200)
    scene = Scene.from_files(Mosaic(cut(tmp_path, pixels, [(0, left, 200, 20) for left in range(0, 200, 20)])))
    wrong = []

    def read(seed):
        random = np.random.default_rng(seed)
        with scene.open() as reader:
            for _ in range(10):
                top, left = random.integers(0, 150, 2)
                found = reader.read(Window(left, top, 50, 50)).pixels
                if not np.array_equal(found, pixels[:, top : top + 50, left : left + 50]):
                    wrong.append((top, left))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
