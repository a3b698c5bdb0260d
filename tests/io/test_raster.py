import contextlib
import dataclasses
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED, UTM
from rasterio._err import CPLE_AppDefinedError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
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
from segkit.io import cog
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer
from segkit.io.grid import Grid
from segkit.io.raster import ignore_not_georeferenced, open_raster, read_grid, read_window, vrt_description
from segkit.io.scene import Scene
from segkit.io.warp import warp_to

COUNT = np.arange(1, 61, dtype="uint8").reshape(3, 4, 5)
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
ODD = sorted(file for file in (SHARED / "odd").rglob("*.*") if file.suffix != ".txt") if SHARED.is_dir() else []

GRID = Grid(70, 90, UTM, CRS.from_epsg(32622))
CLASSES = MapProfile(
    np.dtype("uint8"), 255, ("class",), {"legend": '{"a": "ä"}', "model": "m"}, {0: "#e8e8e8", 7: "#d55e00"}
)


def test_what_is_no_raster_file_is_refused(tmp_path, write_raster):
    text, folder = tmp_path / "text.tif", tmp_path / "folder.tif"
    text.write_text("not a raster")
    folder.mkdir()
    for path, error, words in [
        (tmp_path / "none.tif", MissingFileError, "no such raster"),
        (folder, RasterError, "is a folder, not a raster; name a file"),
        (text, RasterError, r"text\.tif: not a raster that segkit reads \(GTiff, "),
    ]:
        with pytest.raises(error, match=words):
            Scene.from_files(path)


def test_a_virtual_raster_is_read_on_request_only(tmp_path, write_raster):
    vrt, source = tmp_path / "a vrt.tif", write_raster("a.tif", COUNT)
    rasterio.shutil.copy(source, vrt, driver="VRT")
    with rasterio.open(vrt) as dataset:  # GDAL would follow it to any file
        assert dataset.driver == "VRT"
    for ask in (
        Scene.from_files,
        lambda path: Scene.from_files([source, path]),
        lambda path: open_raster(path, vrt=False).__enter__(),
    ):
        with pytest.raises(RasterError, match=r"a vrt\.tif: is a virtual .*can read any other file or URL;.*add --vrt"):
            ask(vrt)
    # Where it cannot be allowed, that is not offered.
    with pytest.raises(RasterError, match="any other file or URL; convert it to GeoTIFF"), open_raster(vrt):
        pass
    scene = Scene.from_files([source, vrt], vrt=True)
    assert np.array_equal(scene.read().pixels, np.concatenate([COUNT, COUNT]))
    with pytest.raises(RasterError, match="add --vrt"):
        dataclasses.replace(scene, vrt=False).read()
    assert not Scene.from_files(source).vrt
    # What is no VRT is not asked to be trusted.
    (tmp_path / "text.tif").write_text("not a raster")
    for trust in (True, False):
        with pytest.raises(RasterError, match="not a raster that segkit reads"):
            Scene.from_files(tmp_path / "text.tif", vrt=trust)


def test_bands_of_a_virtual_raster_may_have_different_types(tmp_path, write_raster):
    vrt, counts, rest = tmp_path / "a.vrt", COUNT[0].astype("uint16"), COUNT[0] + np.float32(0.25)
    write_raster("b.tif", rest)
    rasterio.shutil.copy(write_raster("a.tif", counts), vrt, driver="VRT")
    text = vrt.read_text().replace(f"{tmp_path}/", "").replace(">BAND<", ">OTHER<")
    assert ">OTHER<" in text
    band = re.search(r"(?s)  <VRTRasterBand.*</VRTRasterBand>\n", text)[0]
    second = band.replace("a.tif", "b.tif").replace('"UInt16"', '"Float32"').replace('band="1"', 'band="2"')
    vrt.write_text(text.replace(band, band + second))
    scene = Scene.from_files(vrt, vrt=True)
    assert np.array_equal(scene.read().pixels, [counts, rest])
    with open_raster(vrt, vrt=True) as dataset:
        found = read_window(dataset, [2, 1], Window(1, 0, 3, 2), masked=True)
    assert np.array_equal(found, [rest[:2, 1:4], counts[:2, 1:4]])


def test_names_that_are_not_utf8_are_refused(tmp_path, write_raster):
    """GDAL passes their bytes on, and rasterio loses errors whose text it cannot decode."""
    path, vrt = write_raster("a.tif", COUNT), tmp_path / "a.vrt"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(1, "hQhe")
    path.write_bytes(path.read_bytes().replace(b"hQhe", "höhe".encode("latin-1")))
    with pytest.raises(RasterError, match=r"a\.tif: the name of a band is not UTF-8 .*name the bands again"):
        Scene.from_files(path)
    vrt.write_bytes(vrt.read_bytes().replace(b"a.tif", b"\xe4.tif"))
    with pytest.raises(RasterError, match=r"a\.vrt: is not UTF-8 .*byte 0xe4.*gdalbuildvrt"):
        Scene.from_files(vrt, vrt=True)


def test_complex_numbers_and_control_points_are_refused(tmp_path, write_raster):
    with pytest.raises(RasterError, match=r"slc\.tif: holds complex numbers"):
        Scene.from_files(write_raster("slc.tif", np.ones((2, 2), "complex64")))
    corners = ((0, 0), (0, 5), (4, 0))
    points = [rasterio.control.GroundControlPoint(row, column, row, column) for row, column in corners]
    with pytest.raises(RasterError, match="ground control points only; warp it"):
        Scene.from_files(write_raster("gcp.tif", COUNT, gcps=points, transform=None))


def test_a_damaged_file_says_where(write_raster):
    path = write_raster("a.tif", np.random.default_rng(0).integers(0, 255, (600, 300), "uint8"), compress="DEFLATE")
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(RasterError, match=r"a\.tif: cannot be read at rows 400 to 600, columns 10 to 300; the file is"):
        Scene.from_files(path).read(Window(10, 400, 290, 200))


def quietly(act, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return act(*args, **options)


FORMATS = {
    "plain.tif": {"driver": "GTiff"},
    "tiled.tif": {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band"},
    "deflate.tif": {"driver": "GTiff", "compress": "DEFLATE", "mask": True},
    "cog.tif": {"driver": "COG", "COMPRESS": "LZW", "BLOCKSIZE": 128},
    "lossless.jp2": {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64},
    "a.png": {"driver": "PNG"},
    "bsq.dat": {"driver": "ENVI", "INTERLEAVE": "BSQ"},
    "bil.dat": {"driver": "ENVI", "INTERLEAVE": "BIL"},
    "bip.dat": {"driver": "ENVI", "INTERLEAVE": "BIP"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_an_error_at_any_length(tmp_path, write_raster, name):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 90, 70), "uint8")
    options = dict(FORMATS[name])
    mask = np.where(pixels[0] > 30, 255, 0).astype("uint8") if options.pop("mask", False) else None
    path, driver = tmp_path / name, options.pop("driver")
    if driver == "GTiff":
        write_raster(name, pixels, mask=mask, **options)
    else:
        rasterio.shutil.copy(write_raster("source.tif", pixels), path, driver=driver, **options)
    whole, content = Scene.from_files(path).read(), path.read_bytes()
    assert np.array_equal(whole.pixels[:, whole.valid], pixels[:, whole.valid])
    done = 0
    # The last bytes of a file may say nothing: that a PNG ends, what a COG's last tile starts with.
    for size in [*range(0, len(content) - 60, len(content) // 25), *range(len(content) - 60, len(content), 6)]:
        path.write_bytes(content[:size])
        with contextlib.suppress(RasterError):
            tile = Scene.from_files(path).read()
            assert len(content) - size <= 12
            assert np.array_equal(tile.pixels, whole.pixels)
            assert np.array_equal(tile.valid, whole.valid)
            done += 1
    assert done <= 2


def test_sparse_blocks_are_no_damage(write_raster):
    path = write_raster("a.tif", np.zeros((40, 40), "uint8"), sparse_ok=True, tiled=True, blockxsize=16, blockysize=16)
    assert path.stat().st_size < 1000
    assert Scene.from_files(path).read().valid.all()


def test_an_envi_file_may_start_with_something_else(tmp_path, write_raster):
    path, header = tmp_path / "a.dat", tmp_path / "a.hdr"
    rasterio.shutil.copy(write_raster("a.tif", COUNT), path, driver="ENVI")
    path.write_bytes(b"12345" + path.read_bytes())
    header.write_text(header.read_text().replace("header offset = 0", "header offset = 5"))
    assert np.array_equal(Scene.from_files(path).read().pixels, COUNT)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        RasterError, match=r"a\.dat: has 64 bytes, but its header \(\.hdr\) declares 65, so it is truncated"
    ):
        Scene.from_files(path)


def test_an_erdas_file_is_to_be_converted(tmp_path, write_raster):
    """GDAL reads zeros if its .ige file is truncated."""
    rasterio.shutil.copy(write_raster("a.tif", COUNT), tmp_path / "a.img", driver="HFA")
    with pytest.raises(RasterError, match=r"a\.img: not a raster .* convert it to GeoTIFF: gdal_translate IN OUT\.tif"):
        Scene.from_files(tmp_path / "a.img")


def virtual(url, side):
    return (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI>'
        '</Metadata><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>'
        f"{url}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def pam(url):
    return f'<PAMDataset><Metadata domain="overviews"><MDI key="Overview_File">{url}</MDI></Metadata></PAMDataset>'


SIDES = {
    ".msk": lambda url: virtual(url, 32),
    ".MSK": lambda url: virtual(url, 32),
    ".ovr": lambda url: virtual(url, 16),
    ".OVR": lambda url: f"<GDALTileIndexDataset><IndexDataset>{url}</IndexDataset></GDALTileIndexDataset>",
    ".aux": lambda url: "EHFA_HEADER_TAG" + virtual(url, 32),
    ".aux.xml": pam,
    ".msk.aux.xml": pam,
    ".msk.ovr": lambda url: virtual(url, 16),
    ".ovr.ovr": lambda url: virtual(url, 8),
}


def ask_all(path):
    """Whatever segkit asks GDAL of a raster, and more."""
    with open_raster(path) as dataset:
        vrt_description(dataset)
        dataset.read(out_shape=(1, 5, 5))
        dataset.read_masks(1, out_shape=(5, 5))
        grid = read_grid(dataset)
        with warp_to(dataset, Grid(7, 7, grid.transform, grid.crs), Resampling.bilinear) as other:
            other.read()
    return Scene.from_files(path).read()


@pytest.mark.parametrize("ending", [*SIDES, "metadata", ".ovr.Ovr", ".msk.Ovr", ".Msk"])
def test_what_lies_beside_a_raster_leads_nowhere(tmp_path, write_raster, monkeypatch, ending):
    """Endings of mixed case are found by a GDAL that lists the folder; here they are not looked at."""
    for name, value in {"GDAL_HTTP_TIMEOUT": "1", "GDAL_HTTP_MAX_RETRY": "0", "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    path = write_raster("a.tif", np.full((32, 32), 7, "uint8"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        url = f"/vsicurl/http://127.0.0.1:{listening.getsockname()[1]}/secret.tif"
        if first := ending.removesuffix(".aux.xml").rpartition(".")[0] or ending.endswith("k.aux.xml") * ".msk":
            write_raster(f"a.tif{first}", np.full((32 if first == ".msk" else 16,) * 2, 7, "uint8"))
        if ending == "metadata":
            with rasterio.open(path, "r+") as dataset:
                dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=url)
        else:
            (tmp_path / f"a.tif{ending}").write_text(SIDES.get(ending, SIDES[".ovr"])(url))
        if ending.endswith(("Ovr", "Msk")):
            assert ask_all(path).valid.all()
        else:
            with pytest.raises(
                RasterError, match=r"a\.tif.*(another file or URL for|is not a complete (GeoTIFF|ERDAS file))"
            ):
                ask_all(path)
        with pytest.raises(BlockingIOError):  # nobody called
            listening.accept()


def test_true_files_beside_a_raster_are_read(tmp_path, write_raster):
    path = write_raster("a.tif", COUNT)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(COUNT[0] > 3)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    path.with_name("a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="2"><Description>red</Description></PAMRasterBand></PAMDataset>'
    )
    path.with_name("a.aux").write_text("\\relax")  # LaTeX's
    assert {each.name for each in tmp_path.iterdir()} == {
        f"a.{ending}" for ending in ("aux", "tif", "tif.aux.xml", "tif.msk", "tif.msk.ovr", "tif.ovr")
    }
    scene = Scene.from_files(path)
    assert scene.band_names == ("1", "red", "3")
    assert np.array_equal(scene.read().valid, COUNT[0] > 3)
    with open_raster(path) as dataset:
        assert dataset.overviews(1) == [2]
    other = quietly(write_raster, "b.tif", COUNT, transform=None)
    (tmp_path / "b.tfw").write_text("2\n0\n0\n-2\n11\n19\n")
    assert Scene.from_files(other).grid.transform == Affine(2, 0, 10, 0, -2, 20)
    # Without its mask, which GDAL would leave out without a word, pixels would be valid that are not.
    mask = tmp_path / "a.tif.msk"
    (tmp_path / "a.tif.msk.ovr").unlink()
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(
        RasterError, match=r"a\.tif\.msk: GDAL would read this file with a\.tif, but it is not a complete"
    ):
        Scene.from_files(path)


def test_metadata_that_gdal_refuses_is_reported(write_raster):
    """GDAL's error comes later, as something that is no RasterioError."""
    path = write_raster("a.tif", COUNT)
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>/vsicurl/http://127.0.0.1:9/x</SRS></PAMDataset>")
    with pytest.raises(RasterError, match=r"a\.tif: .*ALLOW_FILE_ACCESS=NO"):
        Scene.from_files(path)


@pytest.mark.parametrize("error", [CPLE_AppDefinedError(3, 1, "broken"), RasterioError("broken")])
def test_any_error_of_gdal_while_a_raster_is_open_is_reported(write_raster, error):
    with pytest.raises(RasterError, match=r"a\.tif: cannot be read: "), open_raster(write_raster("a.tif", COUNT)):
        raise error


def test_files_are_stacked_in_order_and_bands_count_from_one(write_raster):
    a, b = write_raster("a.tif", COUNT), write_raster("b.tif", COUNT[:2].astype("float32") / 4)
    whole = Scene.from_files([a, b])
    assert (whole.name, whole.bands) == ("a", (1, 2, 3, 4, 5))
    assert whole.band_names == ("a:1", "a:2", "a:3", "b:1", "b:2")
    tile = whole.read()
    assert tile.pixels.dtype == np.float32
    assert tile.valid.all()
    assert np.array_equal(tile.pixels, np.concatenate([COUNT, COUNT[:2] / 4]))
    some = Scene.from_files([a, b], bands=[5, 1, 3], name="mine")
    assert some.name == "mine"
    assert some.band_names == ("b:2", "a:1", "a:3")
    assert np.array_equal(some.read().pixels, tile.pixels[[4, 0, 2]])
    assert np.array_equal(Scene.from_files(str(a), bands=[2]).read().pixels, COUNT[[1]])


def test_descriptions_name_the_bands(write_raster):
    path = write_raster("a.tif", COUNT)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("red", None, "nir")
    assert Scene.from_files(path).band_names == ("red", "2", "nir")


@pytest.mark.parametrize("band", [0, -1, 4])
def test_a_band_that_is_not_there_is_an_error(write_raster, band):
    a = write_raster("a.tif", COUNT)
    with pytest.raises(RasterError, match=rf"a\.tif: band {band} was asked for, there are 3 \(counted from 1\)"):
        Scene.from_files(a, bands=[1, band])
    with pytest.raises(RasterError, match="and the files stacked on it: band 7 was asked for, there are 6"):
        Scene.from_files([a, write_raster("b.tif", COUNT)], bands=[7])


def test_no_file_is_an_error():
    with pytest.raises(UsageError, match="at least one file"):
        Scene.from_files([])


def test_files_on_different_grids_are_refused(write_raster):
    a, b = write_raster("a.tif", COUNT), write_raster("b.tif", COUNT, transform=UTM @ Affine.translation(1, 0))
    with pytest.raises(GridError) as caught:
        Scene.from_files([a, b])
    assert str(caught.value) == (
        f"{a} and {b} lie on different grids (transform (10, 0, 600000, 0, -10, 9000000) against "
        "(10, 0, 600010, 0, -10, 9000000)); a scene has one grid; warp one of them (gdalwarp), or set "
        "data.resample: true"
    )
    nowhere = write_raster("c.tif", COUNT, crs=None)
    with pytest.raises(
        GridError, match=r"a\.tif and .*c\.tif lie on different grids .* has no CRS, so it cannot be resampled"
    ):
        Scene.from_files([a, nowhere], resample=True)


@pytest.mark.parametrize("hidden", [-1.7976931348623157e308, -3.4e38, -9999, 0, np.nan])
def test_a_band_without_data_is_nan_and_the_pixel_valid_whatever_the_number(write_raster, hidden):
    pixels = np.full((2, 2, 3), 5.0)
    pixels[0, 0, 0] = hidden
    pixels[:, 1, 1] = hidden
    tile = Scene.from_files(write_raster("a.tif", pixels, nodata=hidden)).read()
    expected = np.where(np.isnan(hidden) & np.isnan(pixels) | (pixels == hidden), np.nan, 5)
    assert np.array_equal(tile.pixels, expected, equal_nan=True)
    assert tile.valid.tolist() == [[True, True, True], [True, False, True]]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_data_unless_declared(write_raster, number):
    pixels = np.ones((2, 2, 2), "float32")
    pixels[1, 0, 1] = number
    tile = Scene.from_files(write_raster("a.tif", pixels)).read()
    assert tile.valid.tolist() == [[True, False], [True, True]]
    assert Scene.from_files(write_raster("b.tif", pixels), bands=[1]).read().valid.all()


def test_a_mask_hides_pixels(write_raster):
    mask = np.full((4, 5), 255, "uint8")
    mask[1:3, 2] = 0
    alpha = np.concatenate([COUNT, mask[None]])
    for path in (
        write_raster("internal.tif", COUNT, mask=mask),
        write_raster("alpha.tif", alpha, colorinterp=RGBA),
        write_raster("nodata.tif", np.where(mask, COUNT, 0), nodata=0),
    ):
        scene = Scene.from_files(path)
        tile = scene.read()
        assert scene.bands == (1, 2, 3)  # an alpha band is a mask and no imagery
        assert np.array_equal(tile.valid, mask > 0)
        assert np.array_equal(tile.pixels[:, tile.valid], COUNT[:, mask > 0])


def test_an_alpha_band_that_is_chosen_is_imagery(write_raster):
    """Near-infrared, which GDAL calls alpha where it is the fourth of four byte bands."""
    nir = np.zeros((4, 5), "uint8")
    nir[0] = 90
    path = write_raster("naip.tif", np.concatenate([COUNT, nir[None]]), colorinterp=RGBA)
    tile = Scene.from_files(path, bands=[1, 2, 3, 4]).read()
    assert tile.valid.all()
    assert np.array_equal(tile.pixels, np.concatenate([COUNT, nir[None]]))
    with pytest.raises(RasterError, match="holds only bands that are masks"):
        Scene.from_files(write_raster("mask.tif", nir, colorinterp=[ColorInterp.alpha]))


def test_a_pixel_is_valid_where_every_file_is(write_raster):
    a = np.ones((2, 3), "uint8")
    b = a.copy()
    a[0, 0] = b[1, 2] = 0
    tile = Scene.from_files([write_raster("a.tif", a, nodata=0), write_raster("b.tif", b)]).read()
    assert tile.valid.tolist() == [[False, True, True], [True, True, True]]
    tile = Scene.from_files([write_raster("c.tif", a, nodata=0), write_raster("d.tif", b, nodata=0)]).read()
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
    return Scene.from_files(path)


def test_resampling_is_bilinear_between_pixel_centres(write_raster):
    ramp = np.tile(np.arange(0, 80, 10, dtype="float32"), (8, 1))
    a = write_raster("a.tif", np.ones((8, 8), "uint8"))
    b = write_raster("b.tif", ramp, transform=UTM @ Affine.translation(0.5, 0))
    tile = Scene.from_files([a, b], resample=True).read()
    assert np.allclose(tile.pixels[1, :, 1:], ramp[:, 1:] - 5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("how", ["nodata", "mask", "plain"])
def test_scale_and_offset_are_applied_on_request_and_after_no_data(write_raster, dtype, how):
    stored = np.random.default_rng(0).integers(0, 100, (3, 9, 8)).astype(dtype)
    hidden = (stored == stored[0, 0, 0]) & (how == "nodata")
    options = {"nodata": {"nodata": float(stored[0, 0, 0])}, "mask": {"mask": stored[0] > 30}, "plain": {}}[how]
    path = write_raster("a.tif", stored, **options)
    scales, offsets = (2.75e-05, 1.0, -3.0), (-0.2, 0.0, float(stored[0, 0, 0]) * 3)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = scales, offsets
    numbers = np.stack(
        [s * scale + offset for s, scale, offset in zip(stored.astype(float), scales, offsets, strict=True)]
    )
    as_stored = Scene.from_files(path).read()
    for bands in (None, (3, 1), (2,)):
        tile = Scene.from_files(path, bands=bands, scaled=True).read()
        chosen = slice(None) if bands is None else np.array(bands) - 1
        expected = np.where(hidden, np.nan, numbers)[chosen].astype("float32")
        assert np.array_equal(tile.pixels, expected, equal_nan=True)
        assert np.array_equal(tile.valid, Scene.from_files(path, bands=bands).read().valid)
    assert np.array_equal(as_stored.pixels, np.where(hidden, np.nan, stored).astype("float32"), equal_nan=True)


def test_each_file_has_its_own_scale_also_where_it_is_resampled(write_raster):
    a = write_raster("a.tif", np.full((8, 8), 10, "uint8"))
    b = write_raster("b.tif", np.full((8, 8), 10, "uint8"), transform=UTM @ Affine.translation(0.5, 0), nodata=0)
    with rasterio.open(b, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,), (1.0,)
    tile = Scene.from_files([a, b, a], resample=True, scaled=True).read()
    assert (tile.pixels[:, :, 2:] == np.array([10, 6, 10])[:, None, None]).all()


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused_where_it_would_be_applied(write_raster, scale):
    path = write_raster("a.tif", np.ones((2, 2), "uint8"))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (scale,)
    assert Scene.from_files(path).read().valid.all()
    with pytest.raises(RasterError, match=r"a\.tif: declares scales .* no scale may be 0"):
        Scene.from_files(path, scaled=True)


@pytest.mark.parametrize("name", ["rio-cogeo/image_with_offsets.tif", "rio-tiler/cog_scale.tif"])
def test_published_scales(shared, name):
    path = shared / "odd" / name
    with rasterio.open(path) as dataset:
        stored = dataset.read(masked=True).astype("float64")
        scale, offset = (np.array(each)[:, None, None] for each in (dataset.scales, dataset.offsets))
    assert (scale != 1).all()
    tile = Scene.from_files(path, scaled=True).read()
    assert np.array_equal(tile.valid, ~np.ma.getmaskarray(stored).all(axis=0))
    expected = (stored * scale + offset).filled(np.nan).astype("float32")
    assert np.array_equal(tile.pixels, expected, equal_nan=True)
    assert np.array_equal(Scene.from_files(path).read().pixels, stored.filled(np.nan).astype("float32"), equal_nan=True)


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
    tile = Scene.from_files([a, b], resample=True).read()
    expected = np.zeros((8, 8), bool)
    expected[:, 2:] = True if how == "plain" else MASK[:, :-2] > 0
    assert np.array_equal(tile.valid, expected)
    assert (tile.pixels[1, tile.valid] == 7).all()


def test_an_alpha_band_as_imagery_is_not_resampled(write_raster):
    a = write_raster("a.tif", COUNT)
    moved = UTM @ Affine.translation(2, 0)
    b = write_raster("b.tif", COUNT[:2], colorinterp=[ColorInterp.gray, ColorInterp.alpha], transform=moved)
    with pytest.raises(GridError, match="band 5, b:2, is marked as alpha"):
        Scene.from_files([a, b], bands=[4, 5], resample=True)
    assert Scene.from_files([a, b], resample=True).bands == (1, 2, 3, 4)


@pytest.mark.skipif(not ODD, reason="the shared files are not here")
@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_an_odd_file_opens_with_a_sane_mask_or_is_refused(path):
    refused = {"gcp.tif", "cog_gcps.tif", "RGB.byte.gcp.vrt", "corrupt.tif"}
    if path.name in refused:
        with pytest.raises(SegkitError, match=path.name):
            Scene.from_files(path).read()
        return
    scene = Scene.from_files(path)
    window = Window(0, 0, min(scene.grid.width, 1100), min(scene.grid.height, 1100))
    tile = scene.read(window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            own = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
            shown = dataclasses.replace(own, transform=Affine.scale(1, -1), georeferenced=False)
            assert scene.grid == (shown if own.transform.is_identity else own)  # no file has the identity itself
            pixels = dataset.read(scene.bands, window=window).astype("float32")
            assert np.array_equal(
                tile.valid, (dataset.dataset_mask(window=window) > 0) & np.isfinite(pixels).all(axis=0)
            )
    known = np.isfinite(tile.pixels)
    assert np.array_equal(tile.pixels[known], pixels[known])
    assert known[:, tile.valid].any(axis=0).all()


def write_part(path, values, grid=GRID, form=CLASSES):
    with open_strip_writer(path, grid, form) as out:
        for window in grid.tiles(32):
            out.write(values[:, *window.toslices()], window)


def write_parts(folder, values, rows, grid=GRID, form=CLASSES):
    """Write a map's values (bands, H, W) in parts that are cut at `rows`."""
    parts = []
    for top, bottom in itertools.pairwise([0, *rows, grid.height]):
        parts.append(MapStrip(folder / f"{top}.tif", top))
        own = grid.subgrid(Window(0, top, grid.width, bottom - top))
        write_part(parts[-1].path, values[:, top:bottom], own, form)
    return parts


def write_map(path, values, grid=GRID, form=CLASSES, *, rows=(), **options):
    with tempfile.TemporaryDirectory() as folder:
        build_cog(path, grid, form, write_parts(Path(folder), values, rows, grid, form), **options)


def random_map(grid=GRID, bands=1, high=9):
    return np.random.default_rng(0).integers(0, high, (bands, *grid.shape))


def test_a_map_is_a_cog_that_says_what_it_holds(tmp_path):
    values = random_map().astype("uint8")
    write_map(tmp_path / "map.tif", values, rows=[32])
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert np.array_equal(dataset.read(), values)
        assert dataset.driver == "GTiff"
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert read_grid(dataset) == GRID
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 255
        assert dataset.descriptions == ("class",)
        assert CLASSES.tags.items() <= dataset.tags().items()
        assert dataset.tags()["AREA_OR_POINT"] == "Area"
        colors = dataset.colormap(1)
        assert (colors[0], colors[7], colors[255]) == ((232, 232, 232, 255), (213, 94, 0, 255), (0, 0, 0, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_a_map_of_many_bands_and_a_scale(tmp_path):
    form = MapProfile(np.dtype("uint8"), 255, ("a", "b"), {}, scale=1 / 254, overviews="average")
    values = random_map(bands=2, high=255).astype("uint8")
    write_map(tmp_path / "p.tif", values, form=form, rows=[7, 40])
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert np.array_equal(dataset.read(), values)
        assert dataset.descriptions == ("a", "b")
        assert dataset.scales == (1 / 254, 1 / 254)
        assert dataset.nodatavals == (255, 255)


@pytest.mark.parametrize("overviews", ["mode", "average"])
@pytest.mark.parametrize("bands", [1, 3, 4, 5])
def test_no_band_is_taken_for_a_colour_or_for_a_mask_of_the_others(tmp_path, bands, overviews):
    """GDAL takes four bands of bytes for red, green, blue and alpha, which it averages in another way."""
    grid = Grid(600, 700, UTM, GRID.crs)
    values = random_map(grid, bands, 250).astype("uint8")
    values[-1] = 0
    form = MapProfile(np.dtype("uint8"), 255, tuple("abcde"[:bands]), {}, overviews=overviews)
    write_map(tmp_path / "map.tif", values, grid, form)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.colorinterp == (ColorInterp.gray, *[ColorInterp.undefined] * (bands - 1))
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        assert not overview.read(bands).any()
        if overviews == "average":
            means = values[:-1].reshape(-1, 300, 2, 350, 2).mean(axis=(2, 4))
            assert np.abs(overview.read()[:-1] - means).max(initial=0) <= 0.5


def test_a_map_of_many_classes(tmp_path):
    form = MapProfile(np.dtype("uint16"), 65535, ("class",), {}, {300: "#0000ff"})
    write_map(tmp_path / "map.tif", random_map(high=60_000).astype("uint16"), form=form)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint16",), 65535)
        assert np.array_equal(dataset.read(), random_map(high=60_000))
        assert dataset.colormap(1)[300] == (0, 0, 255, 255)
        assert dataset.colormap(1)[65535] == (0, 0, 0, 0)


@pytest.mark.parametrize(("overviews", "found"), [("mode", {0, 200}), ("average", {0, 50, 100, 150, 200})])
def test_overviews_of_classes_are_classes(tmp_path, overviews, found):
    grid = Grid(600, 700, UTM, GRID.crs)
    form = MapProfile(np.dtype("uint8"), 255, ("class",), {}, overviews=overviews)
    write_map(tmp_path / "map.tif", random_map(grid, high=2) * 200, grid, form, rows=[299])
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) == found


def test_windows_never_written_are_no_data_in_overviews_too(tmp_path):
    grid = Grid(1300, 1100, UTM, GRID.crs)
    parts = [MapStrip(tmp_path / "0.tif", 0), MapStrip(tmp_path / "600.tif", 600)]
    with open_strip_writer(parts[0].path, grid.subgrid(Window(0, 0, 1100, 600)), CLASSES) as out:
        out.write(np.full((1, 300, 200), 7, "uint8"), Window(0, 0, 200, 300))
    with open_strip_writer(parts[1].path, grid.subgrid(Window(0, 600, 1100, 700)), CLASSES):
        pass
    build_cog(tmp_path / "map.tif", grid, CLASSES, parts)
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
        "across the dateline": (Affine(0.1, 0, 179.7, 0, -0.1, 66.6), 4326),
        "no CRS": (UTM, None),
        "the identity": (Affine.identity(), None),
        "flipped": (Affine(1, 0, 0, 0, -1, 0), None),
    }.values(),
)
@pytest.mark.parametrize(("shape", "rows"), [((1, 1), []), ((1, 37), []), ((33, 2), []), ((33, 2), [1, 13])])
def test_a_map_lies_where_its_scene_lies_to_the_last_bit(tmp_path, transform, crs, shape, rows):
    grid = Grid(*shape, transform, CRS.from_epsg(crs) if crs else None)
    values = random_map(grid).astype("uint8")
    write_map(tmp_path / "map.tif", values, grid, rows=rows)
    with open_raster(tmp_path / "map.tif") as dataset:
        assert read_grid(dataset) == grid
        assert tuple(dataset.transform) == tuple(transform)
        assert np.array_equal(dataset.read(), values)


@pytest.mark.parametrize("crs", [None, 32622])
def test_a_map_of_a_scene_without_georeference_has_none_either(tmp_path, write_raster, crs):
    scene = Scene.from_files(quietly(write_raster, "a.tif", COUNT, crs=crs and CRS.from_epsg(crs), transform=None))
    # QGIS shows the first row from y = 0 to y = -1.
    assert scene.grid == Grid(4, 5, Affine(1, 0, 0, 0, -1, 0), crs and CRS.from_epsg(crs), georeferenced=False)
    write_part(tmp_path / "part.tif", random_map(scene.grid), scene.grid)
    write_map(tmp_path / "map.tif", random_map(scene.grid), scene.grid, rows=[1, 3])
    with open_raster(tmp_path / "map.tif") as dataset:
        assert vrt_description(dataset).find("GeoTransform") is None
        assert read_grid(dataset) == scene.grid
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "map.tif"):
        pass


def test_the_identity_is_a_georeference_and_where_neither_says_where_pixels_are_they_are_alike(write_raster):
    nothing = Scene.from_files(quietly(write_raster, "a.tif", COUNT, crs=None, transform=None)).grid
    identity = Scene.from_files(quietly(write_raster, "b.tif", COUNT, crs=None, transform=Affine.identity())).grid
    assert identity == Grid(4, 5, Affine.identity(), None)
    assert identity != nothing
    assert identity.describe_difference(nothing) is None
    assert not identity.has_location
    assert not nothing.has_location
    assert nothing.subgrid(Window(1, 2, 3, 2)) == Grid(2, 3, Affine(1, 0, 1, 0, -1, -2), None)


def test_a_crs_that_geotiff_has_no_keys_for_stays_beside_the_map(tmp_path):
    crs = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18")
    grid = Grid(*GRID.shape, Affine(0.1, 0, 0, 0, -0.1, 0), crs)
    (tmp_path / "map.tif.aux.xml").write_text("<PAMDataset/>")
    write_map(tmp_path / "map.tif", random_map(grid), grid)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert read_grid(dataset) == grid


NAMES = ["working.tif", "map.of.2020.tiff", "ß [1].tif", 'a&amp;b <i>\'"%20".tif', "?x=1#y;z:.tif", "  a  b .tif "]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_will_do(tmp_path, monkeypatch, name):
    write_map(tmp_path / name, random_map())
    with rasterio.open(tmp_path / name) as dataset:
        assert np.array_equal(dataset.read(), random_map())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    folder = tmp_path / f"{name}.bands"
    folder.mkdir()
    parts = write_parts(folder, 0 * random_map(), [20])
    monkeypatch.chdir(tmp_path)
    parts = [MapStrip(part.path.relative_to(tmp_path).rename(folder / f"{part.row}{name}"), part.row) for part in parts]
    build_cog(name, GRID, CLASSES, parts, overwrite=True)
    with rasterio.open(tmp_path / name) as dataset:
        assert not dataset.read().any()


@settings(max_examples=60)
@given(data=st.data())
def test_a_part_holds_what_was_written_and_else_no_data(tmp_path_factory, data):
    """Windows of any cut of the rows and columns, in any order, some of them never."""
    dtype, nodata = data.draw(st.sampled_from([("uint8", 255), ("uint16", 65535), ("float32", np.nan)]))
    height, width, bands = (data.draw(st.integers(1, most)) for most in (40, 600, 3))
    down, right = (
        itertools.pairwise(sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))}))
        for size in (height, width)
    )
    windows = [Window.from_slices(*cell) for cell in itertools.product(down, right)]
    windows = data.draw(st.permutations(windows))[data.draw(st.integers(0, len(windows))) :]
    random = np.random.default_rng(0)
    expected = np.full((bands, height, width), nodata, dtype)
    path = tmp_path_factory.mktemp("part") / "part.tif"
    form = MapProfile(np.dtype(dtype), nodata, tuple("abc"[:bands]), {})
    with open_strip_writer(path, Grid(height, width, UTM, GRID.crs), form) as out:
        for window in windows:
            values = random.integers(0, 9, (bands, int(window.height), int(window.width))).astype(dtype)
            values[random.random(values.shape) < 0.3] = nodata
            expected[:, *window.toslices()] = values
            out.write(values, window)
            values[:] = 77  # the array is the caller's again
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), expected, equal_nan=dtype == "float32")
        assert np.array_equal(dataset.nodatavals, [nodata] * bands, equal_nan=True)
        assert dataset.dtypes == (dtype,) * bands
        assert read_grid(dataset) == Grid(height, width, UTM, GRID.crs)


def test_any_nan_is_no_data(tmp_path):
    """A NaN that a processor computes has a sign, which numpy's has not; GDAL keeps it or not."""
    grid = Grid(16, 600, UTM, GRID.crs)
    values = np.full((1, 16, 600), np.nan, "float32")
    values[:, :, 300:] = -np.float32(np.nan)
    values[:, 0, 0] = np.inf
    write_part(tmp_path / "part.tif", values, grid, MapProfile(np.dtype("float32"), np.nan, ("p",), {}))
    with rasterio.open(tmp_path / "part.tif") as dataset:
        assert np.array_equal(dataset.read(), values, equal_nan=True)


def test_a_strip_of_few_rows_takes_little_more_room_than_its_numbers(tmp_path):
    values = np.random.default_rng(0).random((2, 20, 2048), dtype="float32")
    form = MapProfile(values.dtype, np.nan, ("a", "b"), {})
    write_part(tmp_path / "strip.tif", values, Grid(20, 2048, UTM, GRID.crs), form)
    assert (tmp_path / "strip.tif").stat().st_size < 1.7 * values.nbytes
    with rasterio.open(tmp_path / "strip.tif") as dataset:
        assert dataset.compression is None  # it would take long and gain little


@settings(max_examples=40)
@given(data=st.data())
def test_parts_in_any_cut_and_order_make_the_same_map(tmp_path_factory, data):
    dtype, nodata = data.draw(st.sampled_from([("uint8", 255), ("uint16", 65535), ("float32", np.nan)]))
    height, width, bands = (data.draw(st.integers(1, most)) for most in (700, 40, 3))
    rows = sorted(data.draw(st.sets(st.integers(1, height - 1), max_size=5))) if height > 1 else []
    grid = Grid(height, width, UTM, GRID.crs)
    values = random_map(grid, bands, 200).astype(dtype)
    values[:, : height // 3] = nodata
    form = MapProfile(np.dtype(dtype), nodata, tuple("abc"[:bands]), {})
    folder = tmp_path_factory.mktemp("parts")
    parts = write_parts(folder, values, rows, grid, form)
    build_cog(folder / "map.tif", grid, form, data.draw(st.permutations(parts)))
    with rasterio.open(folder / "map.tif") as dataset:
        assert np.array_equal(dataset.read(), values, equal_nan=dtype == "float32")
        assert read_grid(dataset) == grid


def test_parts_that_do_not_cover_the_rows_once_are_the_programmers_fault(tmp_path):
    a, b, c = write_parts(tmp_path, random_map(), [20, 50])
    for parts in ([a, c], [a, b], [b, c], [a, b, b, c], [a, MapStrip(b.path, 21), c], [a, MapStrip(b.path, 19), c], []):
        with pytest.raises(AssertionError, match="row"):
            build_cog(tmp_path / "map.tif", GRID, CLASSES, parts)
    with pytest.raises(AssertionError, match="90 pixels wide"):
        build_cog(tmp_path / "map.tif", Grid(70, 89, UTM, GRID.crs), CLASSES, [a, b, c])


def test_a_part_that_is_damaged_or_gone_makes_no_map(tmp_path):
    folder = tmp_path / "bands"
    folder.mkdir()
    a, b = write_parts(folder, random_map(), [35])
    (tmp_path / "map.tif").write_text("old")
    whole = b.path.read_bytes()
    for content, error, words in [
        (whole[:-500], OutputError, r"map\.tif could not be written: .*35\.tif"),
        (b"", RasterError, r"35\.tif: not a raster"),
        (None, MissingFileError, r"35\.tif: no such raster"),
    ]:
        b.path.unlink() if content is None else b.path.write_bytes(content)
        with pytest.raises(error, match=words):
            build_cog(tmp_path / "map.tif", GRID, CLASSES, [a, b], overwrite=True)
        assert sorted((path.name, path.read_text()) for path in tmp_path.glob("*.*")) == [("map.tif", "old")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, RasterError])
def test_a_part_that_is_interrupted_leaves_nothing(tmp_path, error):
    with pytest.raises(error), open_strip_writer(tmp_path / "part.tif", GRID, CLASSES) as out:  # noqa: PT012
        out.write(random_map()[:, :5], Window(0, 0, 90, 5))
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_map_that_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch, there, error):
    path = tmp_path / "map.tif"
    if there:
        path.write_text("old")

    def interrupted(source, target, **options):
        Path(target).write_text("half")
        raise error

    monkeypatch.setattr(rasterio.shutil, "copy", interrupted)
    with pytest.raises(OutputError if error is OSError else error):
        write_map(path, random_map(), overwrite=True)
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


TWO = MapProfile(np.dtype("uint8"), 255, ("a", "b"), {})


def moved(path):
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.transform = UTM @ Affine.translation(1e-9, 0)


def changed(path):
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(np.array([[250]], "uint8"), dataset.count, window=Window(44, 33, 1, 1))


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (moved, "its grid changed when it was written"),
        (changed, "reads back differently at rows 20 to 70, columns 0 to 90"),
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
        write_map(tmp_path / "map.tif", random_map(bands=2), form=TWO, rows=[20])
    assert not list(tmp_path.iterdir())


def missed(path):
    """A block that a full disk took is no data."""
    path.unlink()
    with open_strip_writer(path, GRID, TWO):
        pass


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (moved, "its grid changed when it was written"),
        (changed, "reads back differently at rows 32 to 64, columns 32 to 64"),
        (missed, "reads back differently at rows 0 to 32, columns 0 to 32"),
        (cut, "does not read back"),
        (emptied, "does not read back"),
    ],
)
def test_damage_to_a_part_is_found_when_it_ends(tmp_path, monkeypatch, damage, words):
    fsync, damaged = cog.fsync, []

    def faulty(path):
        fsync(path)
        if not damaged:
            damaged.append(path)
            damage(path)

    monkeypatch.setattr(cog, "fsync", faulty)
    with pytest.raises(OutputError, match=rf"part\.tif: .*{words}"):
        write_part(tmp_path / "part.tif", random_map(bands=2), form=TWO)
    assert damaged
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from affine import Affine
from rasterio.crs import CRS
from segkit.errors import OutputError
from segkit.io.grid import Grid
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer

folder, what = Path(sys.argv[1]), sys.argv[2]
grid = Grid(1100, 1100, Affine(10, 0, 0, 0, -10, 0), CRS.from_epsg(32622))
noise = np.random.default_rng(0).integers(0, 255, (1, 1100, 1100), dtype="uint8")
form = MapProfile(np.dtype("uint8"), 255, ("class",), {})
strip = MapProfile(np.dtype("float32"), float("nan"), ("a",), {})

def part(path, form):
    with open_strip_writer(path, grid, form) as out:
        for window in grid.tiles(512):
            out.write(noise[:, *window.toslices()].astype(form.dtype), window)

def limit(kilobytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, resource.RLIM_INFINITY))

if what != "part":
    part(folder / "bands" / "0.tif", form)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if what == "killed" else signal.SIG_IGN)
for kilobytes in map(int, sys.argv[3:]):
    limit(kilobytes)
    for own in (form, strip) if what == "part" else (form,):
        try:
            if what == "part":
                part(folder / "bands" / "1.tif", own)
            else:
                build_cog(folder / "map.tif", grid, form, [MapStrip(folder / "bands" / "0.tif", 0)])
        except OutputError as error:
            print(kilobytes, error)
"""


def at_a_limit(folder, what, *kilobytes, **environment):
    """A file that may not grow stands for a disk that is full."""
    (folder / "bands").mkdir()
    command = [sys.executable, "-c", FULL_DISK, folder, what, *map(str, kilobytes)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("cache", ["128", "1"])  # MB; the larger one is emptied when the file is closed
def test_a_full_disk_is_an_output_error_and_leaves_no_part(tmp_path, cache):
    done = at_a_limit(tmp_path, "part", 0, 50, 600, 1200, GDAL_CACHEMAX=cache)
    messages = [line.split()[0] for line in done.stdout.splitlines()]
    assert messages == ["0", "0", "50", "50", "600", "600", "1200", "1200"], done.stderr
    assert done.stdout.count("files here may not be that large") == 8
    assert not list((tmp_path / "bands").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_is_an_output_error_and_leaves_no_map(tmp_path):
    done = at_a_limit(tmp_path, "map", 0, 50, 300, 600, 1240, 1400)  # some stop the overviews, some the map
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["0", "50", "300", "600", "1240", "1400"], done
    assert done.stdout.count("files here may not be that large") == 6
    assert [path.name for path in tmp_path.iterdir()] == ["bands"]
    assert [path.name for path in (tmp_path / "bands").iterdir()] == ["0.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("kilobytes", [50, 1000])  # of the overviews, of the map
def test_a_killed_assembly_leaves_files_in_its_hidden_folder_only(tmp_path, kilobytes):
    done = at_a_limit(tmp_path, "killed", kilobytes)
    assert done.returncode == -signal.SIGXFSZ, done
    assert [path.name for path in (tmp_path / "bands").iterdir()] == ["0.tif"]
    (hidden,) = (path for path in tmp_path.iterdir() if path.name != "bands")
    assert hidden.name.startswith(".map.tif.")
    assert any(path.suffix == ".tmp" for path in hidden.iterdir())  # GDAL's own
    write_map(tmp_path / "map.tif", random_map())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bands", "map.tif"]


@pytest.mark.parametrize("ending", [".aux.xml", ".ovr", ".msk"])
def test_what_lies_beside_an_older_map_goes_with_it(tmp_path, ending):
    beside = tmp_path / f"map.tif{ending}"
    for _ in range(2):
        write_map(tmp_path / "map.tif", random_map(), overwrite=True)
        assert not beside.exists()
        beside.write_text("<PAMDataset/>")


def test_a_file_that_changes_its_grid_is_not_warped_unasked(write_raster):
    scene = Scene.from_files(write_raster("a.tif", np.ones((1, 4, 4), dtype=np.uint8)))
    write_raster("a.tif", np.ones((1, 5, 4), dtype=np.uint8))
    with pytest.raises(GridError, match="its grid has changed since"):
        scene.read()


@pytest.mark.parametrize(("driver", "suffix"), [("JPEG", "jpg"), ("WEBP", "webp")])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_are_read_and_cut_ones_refused(tmp_path, driver, suffix):
    """A world file gives the place of a JPEG, and with newer versions of GDAL also of a WebP."""
    from PIL import Image

    rows, columns = np.indices((64, 80))
    pixels = np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, driver, quality=95)
    (tmp_path / "a.wld").write_text("0.5\n0\n0\n-0.5\n100.25\n199.75\n")
    with open_raster(path) as dataset:
        found = dataset.read()
        placed = Affine(0.5, 0, 100, 0, -0.5, 200)
        assert dataset.transform in ((placed,) if driver == "JPEG" else (placed, Affine.identity()))
    assert np.abs(found.transpose(1, 2, 0).astype(int) - pixels).max() < 12
    content = path.read_bytes()
    for length in range(10, len(content) - 1, max(1, len(content) // 20)):
        path.write_bytes(content[:length])
        with pytest.raises(RasterError), open_raster(path) as dataset:
            dataset.read()


def test_files_without_georeference_do_not_warn_in_any_thread(tmp_path):
    """While one thread opens such a file, another one begins, and goes on after the first one has finished."""
    path = tmp_path / "a.png"
    profile = {"driver": "PNG", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    with ignore_not_georeferenced, rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
    before = list(warnings.filters)
    inside, leave, found = threading.Event(), threading.Event(), []

    def first():
        with ignore_not_georeferenced:
            inside.set()
            leave.wait(10)

    def second():
        with ignore_not_georeferenced:
            leave.set()
            one.join(10)
            try:
                rasterio.open(path).close()
            except NotGeoreferencedWarning as warned:
                found.append(warned)

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    inside.wait(10)
    two.start()
    two.join(10)
    assert not found
    assert warnings.filters == before
    with pytest.raises(NotGeoreferencedWarning):  # the user's own code is still warned
        rasterio.open(path)
