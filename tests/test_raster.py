import subprocess
import sys
import warnings

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from conftest import SHARED, UTM
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from segkit.errors import (
    GridError,
    MissingFileError,
    OutputError,
    OutputExistsError,
    RasterError,
    SegkitError,
    UsageError,
)
from segkit.grid import Grid
from segkit.raster import MapFormat, Scene, grid_of, open_raster, writing_map

COUNT = np.arange(1, 61, dtype="uint8").reshape(3, 4, 5)
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
ODD = sorted(file for file in (SHARED / "odd").rglob("*.*") if file.suffix != ".txt") if SHARED.is_dir() else []

GRID = Grid(70, 90, UTM, CRS.from_epsg(32622))
CLASSES = MapFormat(
    np.dtype("uint8"), 255, ("class",), {"legend": '{"a": "ä"}', "model": "m"}, {0: "#e8e8e8", 7: "#d55e00"}
)


def test_what_is_no_raster_file_is_refused(tmp_path, write_raster):
    text, folder, vrt = tmp_path / "text.tif", tmp_path / "folder.tif", tmp_path / "vrt.tif"
    text.write_text("not a raster")
    folder.mkdir()
    rasterio.shutil.copy(write_raster("a.tif", COUNT), vrt, driver="VRT")
    with rasterio.open(vrt) as dataset:  # GDAL would follow it to any file
        assert dataset.driver == "VRT"
    for path, error, words in [
        (tmp_path / "none.tif", MissingFileError, "no such raster"),
        (folder, RasterError, "is a folder, not a raster; name a file"),
        (text, RasterError, r"text\.tif: not a raster that segkit reads \(GTiff, "),
        (vrt, RasterError, r"vrt\.tif: not a raster that segkit reads"),
    ]:
        with pytest.raises(error, match=words):
            Scene.of(path)


def test_complex_numbers_and_control_points_are_refused(tmp_path, write_raster):
    with pytest.raises(RasterError, match=r"slc\.tif: holds complex numbers"):
        Scene.of(write_raster("slc.tif", np.ones((2, 2), "complex64")))
    corners = ((0, 0), (0, 5), (4, 0))
    points = [rasterio.control.GroundControlPoint(row, column, row, column) for row, column in corners]
    with pytest.raises(RasterError, match="ground control points only; warp it"):
        Scene.of(write_raster("gcp.tif", COUNT, gcps=points, transform=None))


def test_a_damaged_file_says_where(write_raster):
    path = write_raster("a.tif", np.random.default_rng(0).integers(0, 255, (600, 300), "uint8"), compress="DEFLATE")
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(RasterError, match=r"a\.tif: cannot be read at rows 400 to 600, columns 10 to 300; the file is"):
        Scene.of(path).read(Window(10, 400, 290, 200))


def test_files_are_stacked_in_order_and_bands_count_from_one(write_raster):
    a, b = write_raster("a.tif", COUNT), write_raster("b.tif", COUNT[:2].astype("float32") / 4)
    whole = Scene.of([a, b])
    assert (whole.name, whole.bands) == ("a", (1, 2, 3, 4, 5))
    assert whole.band_names == ("a:1", "a:2", "a:3", "b:1", "b:2")
    tile = whole.read()
    assert tile.pixels.dtype == np.float32
    assert tile.valid.all()
    assert np.array_equal(tile.pixels, np.concatenate([COUNT, COUNT[:2] / 4]))
    some = Scene.of([a, b], bands=[5, 1, 3], name="mine")
    assert some.name == "mine"
    assert some.band_names == ("b:2", "a:1", "a:3")
    assert np.array_equal(some.read().pixels, tile.pixels[[4, 0, 2]])
    assert np.array_equal(Scene.of(str(a), bands=[2]).read().pixels, COUNT[[1]])


def test_descriptions_name_the_bands(write_raster):
    path = write_raster("a.tif", COUNT)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("red", None, "nir")
    assert Scene.of(path).band_names == ("red", "2", "nir")


@pytest.mark.parametrize("band", [0, -1, 4])
def test_a_band_that_is_not_there_is_an_error(write_raster, band):
    a = write_raster("a.tif", COUNT)
    with pytest.raises(RasterError, match=rf"a\.tif: band {band} was asked for, there are 3 \(counted from 1\)"):
        Scene.of(a, bands=[1, band])
    with pytest.raises(RasterError, match="and the files stacked on it: band 7 was asked for, there are 6"):
        Scene.of([a, a], bands=[7])


def test_no_file_is_an_error():
    with pytest.raises(UsageError, match="at least one file"):
        Scene.of([])


def test_files_on_different_grids_are_refused(write_raster):
    a, b = write_raster("a.tif", COUNT), write_raster("b.tif", COUNT, transform=UTM @ Affine.translation(1, 0))
    with pytest.raises(GridError) as caught:
        Scene.of([a, b])
    assert str(caught.value) == (
        f"{a} and {b} lie on different grids (transform (10, 0, 600000, 0, -10, 9000000) against "
        "(10, 0, 600010, 0, -10, 9000000)); a scene has one grid: warp one of them, or set resample: true"
    )
    nowhere = write_raster("c.tif", COUNT, crs=None)
    with pytest.raises(GridError, match=r"without a CRS on both .*a\.tif and .*c\.tif neither can be resampled"):
        Scene.of([a, nowhere], resample=True)


@pytest.mark.parametrize("hidden", [-1.7976931348623157e308, -3.4e38, -9999, 0, np.nan])
def test_a_band_without_data_is_nan_and_the_pixel_valid_whatever_the_number(write_raster, hidden):
    pixels = np.full((2, 2, 3), 5.0)
    pixels[0, 0, 0] = hidden
    pixels[:, 1, 1] = hidden
    tile = Scene.of(write_raster("a.tif", pixels, nodata=hidden)).read()
    expected = np.where(np.isnan(hidden) & np.isnan(pixels) | (pixels == hidden), np.nan, 5)
    assert np.array_equal(tile.pixels, expected, equal_nan=True)
    assert tile.valid.tolist() == [[True, True, True], [True, False, True]]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_data_unless_declared(write_raster, number):
    pixels = np.ones((2, 2, 2), "float32")
    pixels[1, 0, 1] = number
    tile = Scene.of(write_raster("a.tif", pixels)).read()
    assert tile.valid.tolist() == [[True, False], [True, True]]
    assert Scene.of(write_raster("b.tif", pixels), bands=[1]).read().valid.all()


def test_a_mask_hides_pixels(write_raster):
    mask = np.full((4, 5), 255, "uint8")
    mask[1:3, 2] = 0
    alpha = np.concatenate([COUNT, mask[None]])
    for path in (
        write_raster("internal.tif", COUNT, mask=mask),
        write_raster("alpha.tif", alpha, colorinterp=RGBA),
        write_raster("nodata.tif", np.where(mask, COUNT, 0), nodata=0),
    ):
        scene = Scene.of(path)
        tile = scene.read()
        assert scene.bands == (1, 2, 3)  # an alpha band is a mask and no imagery
        assert np.array_equal(tile.valid, mask > 0)
        assert np.array_equal(tile.pixels[:, tile.valid], COUNT[:, mask > 0])


def test_an_alpha_band_that_is_chosen_is_imagery(write_raster):
    """Near-infrared, which GDAL calls alpha where it is the fourth of four byte bands."""
    nir = np.zeros((4, 5), "uint8")
    nir[0] = 90
    path = write_raster("naip.tif", np.concatenate([COUNT, nir[None]]), colorinterp=RGBA)
    tile = Scene.of(path, bands=[1, 2, 3, 4]).read()
    assert tile.valid.all()
    assert np.array_equal(tile.pixels, np.concatenate([COUNT, nir[None]]))
    with pytest.raises(RasterError, match="holds alpha bands only"):
        Scene.of(write_raster("mask.tif", nir, colorinterp=[ColorInterp.alpha]))


def test_a_pixel_is_valid_where_every_file_is(write_raster):
    a = np.ones((2, 3), "uint8")
    b = a.copy()
    a[0, 0] = b[1, 2] = 0
    tile = Scene.of([write_raster("a.tif", a, nodata=0), write_raster("b.tif", b)]).read()
    assert tile.valid.tolist() == [[False, True, True], [True, True, True]]
    tile = Scene.of([write_raster("c.tif", a, nodata=0), write_raster("d.tif", b, nodata=0)]).read()
    assert tile.valid.tolist() == [[False, True, True], [True, True, False]]


@settings(max_examples=30)
@given(*[st.integers(-6, 8)] * 2, *[st.integers(1, 12)] * 2)
def test_a_window_is_a_cut_of_the_scene_and_no_data_beyond(scene, column, row, width, height):
    whole = scene.read()
    tile = scene.read(Window(column, row, width, height))
    assert tile.valid.shape == (height, width)
    for r, c in np.ndindex(height, width):
        inside = 0 <= row + r < 4 and 0 <= column + c < 5
        assert tile.valid[r, c] == (inside and whole.valid[row + r, column + c])
        expected = whole.pixels[:, row + r, column + c] if inside else np.full(3, np.nan)
        assert np.array_equal(tile.pixels[:, r, c], expected, equal_nan=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=4, width=5, dtype="uint8", transform=UTM, crs=32622, nodata=7
    ) as dataset:
        dataset.write(COUNT)
    return Scene.of(path)


def test_resampling_is_bilinear_between_pixel_centres(write_raster):
    ramp = np.tile(np.arange(0, 80, 10, dtype="float32"), (8, 1))
    a = write_raster("a.tif", np.ones((8, 8), "uint8"))
    b = write_raster("b.tif", ramp, transform=UTM @ Affine.translation(0.5, 0))
    tile = Scene.of([a, b], resample=True).read()
    assert np.allclose(tile.pixels[1, :, 1:], ramp[:, 1:] - 5)


MASK = np.full((8, 8), 255, "uint8")
MASK[2:4, 2:4] = 0


@pytest.mark.parametrize("how", ["plain", "nodata", "alpha", "internal"])
def test_resampling_keeps_what_is_no_data(write_raster, how):
    """Two columns of the grid lie beyond the file; where the file is masked, so is the scene."""
    a = write_raster("a.tif", np.ones((8, 8), "uint8"))
    options = {"transform": UTM @ Affine.translation(2, 0)}
    sevens = np.full((8, 8), 7, "uint8")
    b = {
        "plain": lambda: write_raster("b.tif", sevens, **options),
        "nodata": lambda: write_raster("b.tif", np.where(MASK, sevens, 0), nodata=0, **options),
        "alpha": lambda: write_raster(
            "b.tif", np.stack([sevens, MASK]), colorinterp=[ColorInterp.gray, ColorInterp.alpha], **options
        ),
        "internal": lambda: write_raster("b.tif", sevens, mask=MASK, **options),
    }[how]()
    tile = Scene.of([a, b], resample=True).read()
    expected = np.zeros((8, 8), bool)
    expected[:, 2:] = True if how == "plain" else MASK[:, :-2] > 0
    assert np.array_equal(tile.valid, expected)
    assert (tile.pixels[1, tile.valid] == 7).all()


def test_an_alpha_band_as_imagery_is_not_resampled(write_raster):
    a = write_raster("a.tif", COUNT)
    moved = UTM @ Affine.translation(2, 0)
    b = write_raster("b.tif", COUNT[:2], colorinterp=[ColorInterp.gray, ColorInterp.alpha], transform=moved)
    with pytest.raises(GridError, match="band 5, b:2, is marked as alpha"):
        Scene.of([a, b], bands=[4, 5], resample=True)
    assert Scene.of([a, b], resample=True).bands == (1, 2, 3, 4)


@pytest.mark.skipif(not ODD, reason="the shared files are not here")
@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_an_odd_file_opens_with_a_sane_mask_or_is_refused(path):
    refused = {"gcp.tif", "cog_gcps.tif", "RGB.byte.gcp.vrt", "corrupt.tif"}
    if path.name in refused:
        with pytest.raises(SegkitError, match=path.name):
            Scene.of(path).read()
        return
    scene = Scene.of(path)
    window = Window(0, 0, min(scene.grid.width, 1100), min(scene.grid.height, 1100))
    tile = scene.read(window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            assert scene.grid == Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
            pixels = dataset.read(scene.bands, window=window).astype("float32")
            assert np.array_equal(
                tile.valid, (dataset.dataset_mask(window=window) > 0) & np.isfinite(pixels).all(axis=0)
            )
    known = np.isfinite(tile.pixels)
    assert np.array_equal(tile.pixels[known], pixels[known])
    assert known[:, tile.valid].any(axis=0).all()


def write_map(path, values, grid=GRID, form=CLASSES, **options):
    with writing_map(path, grid, form, **options) as out:
        for window in grid.tiles(32):
            rows, columns = window.toslices()
            out.write(values[:, rows, columns], window)


def random_map(grid=GRID, bands=1, high=9):
    return np.random.default_rng(0).integers(0, high, (bands, *grid.shape))


def test_a_map_is_a_cog_that_says_what_it_holds(tmp_path):
    values = random_map().astype("uint8")
    write_map(tmp_path / "map.tif", values)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert np.array_equal(dataset.read(), values)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert grid_of(dataset) == GRID
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 255
        assert dataset.descriptions == ("class",)
        assert CLASSES.tags.items() <= dataset.tags().items()
        assert dataset.tags()["AREA_OR_POINT"] == "Area"
        colors = dataset.colormap(1)
        assert (colors[0], colors[7], colors[255]) == ((232, 232, 232, 255), (213, 94, 0, 255), (0, 0, 0, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_a_map_of_many_bands_and_a_scale(tmp_path):
    form = MapFormat(np.dtype("uint8"), 255, ("a", "b"), {}, scale=1 / 254, overviews="average")
    values = random_map(bands=2, high=255).astype("uint8")
    write_map(tmp_path / "p.tif", values, form=form)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert np.array_equal(dataset.read(), values)
        assert dataset.descriptions == ("a", "b")
        assert dataset.scales == (1 / 254, 1 / 254)
        assert dataset.nodatavals == (255, 255)


def test_a_map_of_many_classes(tmp_path):
    form = MapFormat(np.dtype("uint16"), 65535, ("class",), {}, {300: "#0000ff"})
    write_map(tmp_path / "map.tif", random_map(high=60_000).astype("uint16"), form=form)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint16",), 65535)
        assert np.array_equal(dataset.read(), random_map(high=60_000))
        assert dataset.colormap(1)[300] == (0, 0, 255, 255)


@pytest.mark.parametrize(("overviews", "found"), [("mode", {0, 200}), ("average", {0, 50, 100, 150, 200})])
def test_overviews_of_classes_are_classes(tmp_path, overviews, found):
    grid = Grid(600, 700, UTM, GRID.crs)
    form = MapFormat(np.dtype("uint8"), 255, ("class",), {}, overviews=overviews)
    write_map(tmp_path / "map.tif", random_map(grid, high=2) * 200, grid, form)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) == found


def test_windows_never_written_are_no_data_in_overviews_too(tmp_path):
    grid = Grid(1300, 1100, UTM, GRID.crs)
    with writing_map(tmp_path / "map.tif", grid, CLASSES) as out:
        out.write(np.full((1, 300, 200), 7, "uint8"), Window(0, 0, 200, 300))
    with rasterio.open(tmp_path / "map.tif") as dataset:
        values = dataset.read(1)
        assert (values[:300, :200] == 7).all()
        assert (values == 7).sum() == 300 * 200
        assert (values == 255).sum() == values.size - 300 * 200
        factor = dataset.overviews(1)[0]
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        assert (overview.read(1) == 7).sum() == 300 * 200 / factor**2


@pytest.mark.parametrize(
    ("transform", "crs"),
    {
        "north-up": (Affine(1 / 3, 0, -60.1, 0, -1 / 7, -3.3), 4326),
        "south-up": (Affine(0.1, 0, 0.3, 0, 0.7, -2.1), 32722),
        "rotated": (UTM @ Affine.rotation(12.3) @ Affine.shear(3, 1), 32622),
        "mirrored": (UTM @ Affine.scale(-1, 1), 32622),
        "no CRS": (UTM, None),
        "nowhere": (Affine.identity(), None),
    }.values(),
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 2)])
def test_a_map_lies_where_its_scene_lies_to_the_last_bit(tmp_path, transform, crs, shape):
    grid = Grid(*shape, transform, CRS.from_epsg(crs) if crs else None)
    values = random_map(grid).astype("uint8")
    write_map(tmp_path / "map.tif", values, grid)
    with open_raster(tmp_path / "map.tif") as dataset:
        assert grid_of(dataset) == grid
        assert tuple(dataset.transform) == tuple(transform)
        assert np.array_equal(dataset.read(), values)


@pytest.mark.parametrize("name", ["working.tif", "map.of.2020.tiff", "ß [1].tif"])
def test_any_file_name_will_do(tmp_path, name):
    write_map(tmp_path / name, random_map())
    with rasterio.open(tmp_path / name) as dataset:
        assert np.array_equal(dataset.read(), random_map())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, RasterError])
def test_a_map_that_is_interrupted_leaves_nothing(tmp_path, there, error):
    path = tmp_path / "map.tif"
    if there:
        path.write_text("old")
    with pytest.raises(error), writing_map(path, GRID, CLASSES, overwrite=True) as out:  # noqa: PT012
        out.write(random_map()[:, :5], Window(0, 0, 90, 5))
        assert not there or path.read_text() == "old"
        raise error
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("map.tif", "old")] * there


def test_a_map_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "map.tif"
    write_map(path, random_map())
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        write_map(path, 0 * random_map())
    assert path.read_bytes() == before
    write_map(path, 0 * random_map(), overwrite=True)
    with rasterio.open(path) as dataset:
        assert not dataset.read().any()
    with pytest.raises(UsageError, match="does not exist; make it first"):
        write_map(tmp_path / "no" / "map.tif", random_map())


def moved(path):
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.transform = UTM @ Affine.translation(1e-9, 0)


def changed(path):
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(np.array([[250]], "uint8"), 1, window=Window(44, 33, 1, 1))


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (moved, "the written map lies on another grid"),
        (changed, "reads back differently at rows 0 to 70, columns 0 to 90"),
        (cut, "does not read back"),
        (emptied, "does not read back"),
    ],
)
def test_damage_is_found_before_the_map_has_its_name(tmp_path, monkeypatch, damage, words):
    copy = rasterio.shutil.copy

    def faulty(source, target, **options):
        copy(source, target, **options)
        damage(target)

    monkeypatch.setattr(rasterio.shutil, "copy", faulty)
    with pytest.raises(OutputError, match=rf"map\.tif: .*{words}"):
        write_map(tmp_path / "map.tif", random_map())
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
import numpy as np
from affine import Affine
from rasterio.crs import CRS
from segkit.errors import OutputError
from segkit.grid import Grid
from segkit.raster import MapFormat, writing_map

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
grid = Grid(1100, 1100, Affine(10, 0, 0, 0, -10, 0), CRS.from_epsg(32622))
noise = np.random.default_rng(0).integers(0, 255, (1, 1100, 1100), dtype="uint8")
for kilobytes in (50, 600, 1240, 1400):  # never enough; some stop the working file, some the finished one
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, resource.RLIM_INFINITY))
    try:
        with writing_map(sys.argv[1], grid, MapFormat(np.dtype("uint8"), 255, ("class",), {})) as out:
            for window in grid.tiles(512):
                out.write(noise[:, *window.toslices()], window)
    except OutputError as error:
        print(kilobytes, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path):
    """A file that may not grow stands for a disk that is full."""
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "map.tif"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["50", "600", "1240", "1400"], done.stderr
    assert done.stdout.count("is the disk full") == 4
    assert not list(tmp_path.iterdir())


def test_what_lies_beside_an_older_map_goes_with_it(tmp_path):
    target, beside = tmp_path / "map.tif", tmp_path / "map.tif.aux.xml"
    for _ in range(2):
        with writing_map(target, Grid(8, 8, UTM, CRS.from_epsg(32622)), CLASSES, overwrite=True) as writer:
            writer.write(np.ones((1, 8, 8), dtype=np.uint8), Window(0, 0, 8, 8))
        assert not beside.exists()
        beside.write_text("<PAMDataset/>")


def test_a_file_that_changes_its_grid_is_not_warped_unasked(write_raster):
    scene = Scene.of(write_raster("a.tif", np.ones((1, 4, 4), dtype=np.uint8)))
    write_raster("a.tif", np.ones((1, 5, 4), dtype=np.uint8))
    with pytest.raises(GridError, match="another grid than when"):
        scene.read()
