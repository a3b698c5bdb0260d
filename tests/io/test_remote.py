"""Rasters behind URLs are read like files, in few requests; what fails is repeated, then reported, and never zeros."""

import json
import os
import pickle
import shutil
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import yaml
from affine import Affine
from quick import skip_measurements, skip_pictures
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.windows import Window
from server import serving
from synthetic import cut_raster, recipe_for, segmenter, write_pair

from segkit.data.check import check
from segkit.errors import DataError, RasterError, SegkitError, UsageError
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.io import raster, remote
from segkit.io.file_search import RASTER_SUFFIXES, expand_paths
from segkit.io.files import check_folder, check_output, require_file
from segkit.io.mosaic import Mosaic
from segkit.io.raster import open_raster
from segkit.io.remote import Remote, as_path
from segkit.io.scene import Scene
from segkit.recipe.schema import Recipe
from segkit.training.train import train

# Behind a server that hangs, no test does.
QUICK = {
    "GDAL_HTTP_RETRY_DELAY": "0.01",
    "GDAL_HTTP_MAX_RETRY": "1",
    "GDAL_HTTP_TIMEOUT": "2",
    "GDAL_HTTP_CONNECTTIMEOUT": "1",
}
TILE = 128


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(raster, "_open_remotes", {})


@pytest.fixture
def server(tmp_path):
    """A server of the folder `served`."""
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as served:
        yield served


def write_cog(path, side=700, bands=3, *, seed=0, compress="DEFLATE", mask=False):
    """Noise, so that tiles are much larger than headers."""
    pixels = np.random.default_rng(seed).integers(1, 60_000, (bands, side, side), dtype=np.uint16)
    profile = {"width": side, "height": side, "count": bands, "dtype": "uint16", "crs": "EPSG:32622"}
    plain = path.with_name(f".{path.name}.plain")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(plain, "w", driver="GTiff", **profile, transform=Affine(10, 0, 6e5, 0, -10, 9e6)) as dataset:
            dataset.write(pixels)
            if mask:
                dataset.write_mask(pixels[0] % 5 > 0)
        rasterio.shutil.copy(plain, path, driver="COG", COMPRESS=compress, BLOCKSIZE=TILE, OVERVIEWS="NONE")
    plain.unlink()
    return path


@pytest.fixture
def cog(server):
    return write_cog(server.folder / "scene.tif")


def tile_bytes(path, window=None):
    """How many bytes the tiles hold that a window touches."""
    with rasterio.open(path) as dataset:
        rows, columns = (window or Window(0, 0, dataset.width, dataset.height)).toslices()
        return sum(
            int(dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", 1))
            for row in range(rows.start // TILE, -(-rows.stop // TILE))
            for column in range(columns.start // TILE, -(-columns.stop // TILE))
        )


def same(one, other):
    return np.array_equal(one.pixels, other.pixels, equal_nan=True) and np.array_equal(one.valid, other.valid)


@pytest.mark.parametrize(
    ("url", "name", "shown"),
    [
        ("https://host/a/b.tif", "/vsicurl/https://host/a/b.tif", "https://host/a/b.tif"),
        ("https://me:pw@host/b.tif?sig=x/y.z#1", "/vsicurl/https://me:pw@host/b.tif?sig=x/y.z#1", "https://host/b.tif"),
        ("HTTP://host:81//b.tif", "/vsicurl/http://host:81//b.tif", "http://host:81//b.tif"),
        ("s3://bucket/a/b.tif", "/vsis3/bucket/a/b.tif", "s3://bucket/a/b.tif"),
        ("gs://bucket/b.tif", "/vsigs/bucket/b.tif", "gs://bucket/b.tif"),
        ("az://container/b.tif", "/vsiaz/container/b.tif", "az://container/b.tif"),
    ],
)
def test_a_url_is_a_path_that_shows_no_secrets(url, name, shown):
    file = as_path(url)
    assert isinstance(file, Remote)
    assert remote.gdal_name(file) == name
    assert str(file) == f"{file}" == shown
    assert (file.stem, file.suffix, file.name) == ("b", ".tif", "b.tif")
    assert as_path(file) == file == pickle.loads(pickle.dumps(file)) == as_path(os.fspath(file)) == file.absolute()
    assert os.fspath(remote.from_gdal_name(name)) == os.fspath(file)
    assert not file.exists()


def test_what_lies_beside_a_url_is_a_url():
    path = Remote("https://me:pw@host/a/b.tif?sig=1")
    for found, text in ((path.parent, "a"), (path.with_name("c.tif"), "a/c.tif"), (path.parent.parent / "d", "d")):
        assert isinstance(found, Remote)
        assert os.fspath(found) == str(found) == f"https://host/{text}"


def test_two_queries_are_two_files():
    one, other = as_path("https://host/get.tif?id=1"), as_path("https://host/get.tif?id=2")
    assert one != other
    assert len({one, other, as_path(one)}) == 2


def test_what_pathlib_folded_is_a_url_again():
    for kind in (Path, PureWindowsPath):
        assert as_path(kind("https://host/a.tif?b=c")) == as_path("https://host/a.tif?b=c")


@pytest.mark.parametrize("path", ["a.tif", "/data/a.tif", "ftp://host/a.tif", "s3", "c:/a.tif", "s3:", "xs3://a/b"])
def test_other_paths_stay_paths(path):
    assert as_path(path) == Path(path)
    assert not remote.is_remote(path)


def test_pixels_are_those_of_the_file(server):
    for compress in ("DEFLATE", "NONE"):
        file = write_cog(server.folder / f"{compress}.tif", 500, mask=True, compress=compress)
        scene = Scene.from_files(server.url(file.name))
        assert scene.name == compress
        for window in (scene.grid.full_window, Window(100, 200, 77, 33), Window(-5, 490, 40, 40)):
            assert same(scene.read(window), Scene.from_files(file).read(window))


def test_remote_files_side_by_side_are_one_scene(server, tmp_path):
    whole = write_cog(tmp_path / "whole.tif", 300)
    cut_raster(whole, server.folder / "tiles", [128], [128])
    names = sorted(path.name for path in (server.folder / "tiles").iterdir())
    scene = Scene.from_files(Mosaic([server.url(f"tiles/{name}") for name in names]))
    assert scene.grid.shape == (300, 300)
    server.forget()
    scene.read(Window(200, 200, 50, 50))
    assert {name for method, name, _ in server.asked if method == "GET"} == {f"tiles/{names[3]}"}
    np.testing.assert_array_equal(scene.read().pixels, Scene.from_files(whole).read().pixels)


def test_a_window_costs_its_tiles(server, cog):
    scene = Scene.from_files(server.url(cog.name))
    assert server.requests() <= 4
    for window, most in ((Window(256, 256, TILE, TILE), 1), (Window(300, 420, 200, 300), 4)):
        server.forget()
        scene.read(window)
        assert server.sent[cog.name] <= 1.1 * tile_bytes(cog, window)
        assert sum(method == "GET" for method, _, _ in server.asked) <= most


def test_the_header_of_many_tiles_costs_one_request(server):
    file, flat = server.folder / "scene.tif", server.folder / "flat.tif"
    profile = {"width": 5000, "height": 5000, "count": 1, "dtype": "uint8", "crs": "EPSG:32622"}
    with rasterio.open(flat, "w", driver="GTiff", **profile, transform=Affine(10, 0, 6e5, 0, -10, 9e6)):
        pass
    rasterio.shutil.copy(flat, file, driver="COG", BLOCKSIZE=TILE, OVERVIEWS="NONE")
    Scene.from_files(server.url(file.name)).read(Window(4000, 4000, TILE // 2, TILE // 2))
    assert sum(method == "GET" for method, _, _ in server.asked) == 2  # and one for the tile


def test_a_whole_scene_costs_its_tiles_once(server, cog, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["segkit.inference.tiling"], "_MIN_BAND_PIXELS", 2**17)  # several bands
    model = segmenter(Path("nowhere"), pretrained=False)
    local = predict(model, cog, tmp_path / "local.tif", tile=256, overlap=32)[0]
    found = predict(model, server.url(cog.name), tmp_path / "map.tif", tile=256, overlap=32)[0]
    assert found.bands == local.bands >= 3
    with rasterio.open(tmp_path / "local.tif") as one, rasterio.open(tmp_path / "map.tif") as other:
        assert np.array_equal(one.read(), other.read())
    assert server.sent[cog.name] <= 1.1 * tile_bytes(cog)
    assert server.requests() == server.requests(cog.name)  # nothing beside it


def test_a_raster_that_is_opened_again_is_not_fetched_again(server, cog):
    with open_raster(server.url(cog.name)) as dataset:
        first = dataset.read()
    server.forget()
    with open_raster(server.url(cog.name)) as dataset:
        assert np.array_equal(dataset.read(), first)
    assert not server.asked


@pytest.fixture
def block_cache(monkeypatch):
    """Restores the limit of GDAL's block cache."""
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    before = get_gdal_config("GDAL_CACHEMAX")
    yield
    set_gdal_config("GDAL_CACHEMAX", before)


@pytest.mark.parametrize("chosen", [False, True])
def test_gdals_cache_holds_a_row_of_windows_unless_the_user_chose_a_limit(
    server, cog, monkeypatch, block_cache, chosen
):
    if chosen:
        monkeypatch.setenv("GDAL_CACHEMAX", "1")
    monkeypatch.setattr("segkit.io.block_cache._limit_bytes", 2 * TILE**2 * 6)
    set_gdal_config("GDAL_CACHEMAX", 2 * TILE**2 * 6)
    with Scene.from_files(server.url(cog.name)).open() as reader:
        for top in range(0, 500, TILE):
            for left in range(0, 500, TILE):
                reader.read(Window(left, top, 2 * TILE, 2 * TILE))
    assert (server.sent[cog.name] > 1.5 * tile_bytes(cog)) == chosen


def test_few_rasters_stay_open(server, cog):
    for copy in range(raster._MAX_OPEN_REMOTES + 3):
        shutil.copy(cog, server.folder / f"{copy}.tif")
        Scene.from_files(server.url(f"{copy}.tif"))
    assert len(raster._open_remotes) == raster._MAX_OPEN_REMOTES


FAILURES = [500, 503, 429, "reset", "short"]
WINDOW = Window(100, 100, 300, 300)


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("when", ["asking", "opening", "reading"])
def test_what_fails_once_is_repeated(server, cog, how, when):
    if when != "reading":
        server.failing(3 if (when, how) == ("asking", "reset") else 1, how)  # two are for asking about the version
    if when == "opening":
        fail = server.fail
        server.fail = lambda path, range_: fail(path, range_) if range_ else None
    scene = Scene.from_files(server.url(cog.name))
    with scene.open() as reader:
        if when == "reading":
            server.failing(2, how)
        assert same(reader.read(WINDOW), Scene.from_files(cog).read(WINDOW))


@pytest.mark.parametrize("how", FAILURES)
def test_a_window_that_gdal_gives_up_is_read_once_more(server, cog, how, monkeypatch):
    """The server recovers while segkit waits before it tries again."""
    with Scene.from_files(server.url(cog.name)).open() as reader:
        server.failing(10**6, how)
        monkeypatch.setattr(remote.time, "sleep", lambda seconds: server.failing(0, how))
        assert same(reader.read(WINDOW), Scene.from_files(cog).read(WINDOW))


@pytest.mark.parametrize("compress", ["DEFLATE", "NONE"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (500, "500"), (503, "503"), (404, "404"), (403, "403"), ("reset", "Empty reply"), ("short", "not send all"),
        ("stall", "not send all"),
    ],
)  # fmt: skip
def test_what_keeps_failing_is_reported_and_can_be_had_later(server, how, said, compress, capfd, monkeypatch):
    cog = write_cog(server.folder / "scene.tif", 512, compress=compress)
    expected = Scene.from_files(cog).read(WINDOW)
    url = f"{server.url(cog.name)}?sig=SECRET"
    scene = Scene.from_files(url)
    if how == "stall":
        monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "0.3")
    with scene.open() as reader:
        server.failing(10**6, how)
        with pytest.raises(RasterError, match=said) as messages:
            reader.read(WINDOW)
        server.failing(0, how)
    assert str(messages.value).startswith(f"{server.url(cog.name)}: cannot be read at rows 100 to 400")
    assert "SECRET" not in str(messages.value)
    if how not in ("short", "stall"):
        raster._open_remotes.clear()
        server.failing(10**6, how)
        with pytest.raises(RasterError, match=said) as messages:
            Scene.from_files(url)
        assert "SECRET" not in str(messages.value)
        server.failing(0, how)
    assert same(Scene.from_files(url).read(WINDOW), expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", [500, "short", "reset"])
def test_a_network_that_fails_is_not_a_block_without_data(server, cog, tmp_path, how):
    """Of a file, of one on another grid, and of a virtual raster; also if damaged blocks are to be no data."""
    url, coarse = f"{server.url(cog.name)}?sig=SECRET", tmp_path / "coarse.tif"
    with rasterio.open(cog) as dataset:
        options = {"width": 350, "height": 350, "transform": dataset.transform @ Affine.scale(2), "driver": "GTiff"}
        with rasterio.open(coarse, "w", **dataset.profile | options) as file:
            file.write(dataset.read(out_shape=(3, 350, 350)))
        rasterio.shutil.copy(dataset, tmp_path / "scene.vrt", driver="VRT")
    virtual = (tmp_path / "scene.vrt").read_text().replace('relativeToVRT="1"', "")
    (tmp_path / "scene.vrt").write_text(virtual.replace("served/scene.tif", remote.gdal_name(url)))
    given = [url], [coarse, url], [tmp_path / "scene.vrt"]
    scenes = [Scene.from_files(files, resample=True, vrt=True) for files in given]
    for scene in scenes:
        assert same(replace(scene, skip_unreadable=True).read(WINDOW), scene.read(WINDOW))
    server.fail = lambda path, range_: how if range_ and range_[1] > 70_000 else None  # the header can be read
    for scene, name in zip(scenes, ["http://127", "http://127", str(tmp_path / "scene.vrt: ")], strict=True):
        raster._open_remotes.clear()
        remote.clear_gdal_cache(url)
        with pytest.raises(RasterError, match=r"cannot be read at rows .* does not send .* download it") as messages:
            replace(scene, skip_unreadable=True).read(WINDOW)
        assert str(messages.value).startswith(name)
        assert "SECRET" not in str(messages.value)


def test_a_file_that_was_not_there_can_be_had_later(server, tmp_path):
    with pytest.raises(RasterError, match="404"):
        Scene.from_files(server.url("late.tif"))
    write_cog(server.folder / "late.tif", 128)
    assert Scene.from_files(server.url("late.tif")).read().valid.all()


def test_a_server_without_ranges_is_refused(server, cog):
    server.ranges = False
    with pytest.raises(RasterError, match=r"[Rr]ange"):
        Scene.from_files(server.url(cog.name)).read()


def test_nobody_listens():
    with pytest.raises(RasterError, match=r"http://127\.0\.0\.1:9/a\.tif: .*onnect"):
        Scene.from_files("http://127.0.0.1:9/a.tif")


@pytest.mark.parametrize("compress", ["DEFLATE", "NONE"])
def test_a_file_that_changes_while_it_is_read_is_reported(server, compress):
    cog = write_cog(server.folder / "scene.tif", compress=compress)
    scene = Scene.from_files(server.url(cog.name))

    def read():
        with scene.open() as reader:
            reader.read(Window(0, 0, 100, 100))
            write_cog(cog, seed=1, compress=compress)
            reader.read(Window(500, 500, 100, 100))

    with pytest.raises(RasterError, match="has changed since" if compress == "NONE" else "has changed"):
        read()
    again = Scene.from_files(server.url(cog.name))
    assert same(again.read(WINDOW), Scene.from_files(cog).read(WINDOW))


def test_a_raster_that_stayed_open_is_not_used_when_it_has_changed(server, cog, monkeypatch):
    monkeypatch.setattr(raster, "_REVALIDATE_AFTER_S", 0)
    Scene.from_files(server.url(cog.name)).read()
    write_cog(cog, seed=1)
    assert same(Scene.from_files(server.url(cog.name)).read(WINDOW), Scene.from_files(cog).read(WINDOW))


def test_a_virtual_raster_needs_leave(server, cog):
    (server.folder / "scene.tif.vrt").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"/></VRTDataset>'
    )
    with pytest.raises(RasterError):
        Scene.from_files(server.url("scene.tif.vrt"))
    assert Scene.from_files(server.url("scene.tif.vrt"), vrt=True).grid.shape == (8, 8)


def test_the_environment_of_the_user_wins(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "9")
    assert "GDAL_HTTP_MAX_RETRY" not in remote.gdal_options()
    with rasterio.Env(GDAL_HTTP_MULTIPLEX="NO"):
        assert "GDAL_HTTP_MULTIPLEX" not in remote.gdal_options()
    assert remote.gdal_options()["GDAL_HTTP_MULTIPLEX"] == "YES"


def test_files_beside_a_remote_raster_are_not_read_whatever_the_user_sets(monkeypatch):
    monkeypatch.setenv("GDAL_DISABLE_READDIR_ON_OPEN", "FALSE")
    assert remote.gdal_options()["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"


def test_overviews_elsewhere_are_refused(server):
    with rasterio.open(server.folder / "a.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8",
                       transform=Affine(10, 0, 6e5, 0, -10, 9e6)) as dataset:  # fmt: skip
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/vsicurl/" + server.url("secret.tif"))
    with pytest.raises(RasterError, match=r"a\.tif: its metadata \(OVERVIEW_FILE"):
        Scene.from_files(server.url("a.tif"))
    assert not server.requests("secret.tif")


def test_where_gdal_knows_no_version_files_are_read_all_the_same(server, cog, monkeypatch):
    monkeypatch.setattr(remote, "_gdal_function", lambda *_: None)
    assert same(Scene.from_files(server.url(cog.name)).read(WINDOW), Scene.from_files(cog).read(WINDOW))


def test_folders_and_globs_are_local():
    for url in ("https://host/scenes/", "s3://bucket/*.tif"):
        with pytest.raises(UsageError, match=r"in a table"):
            expand_paths(as_path(url), "scenes", RASTER_SUFFIXES)
    for url in ("https://host/a.tif?x=*&y=[1]", "s3://bucket/a[1].tif"):
        assert expand_paths(as_path(url), "scenes", RASTER_SUFFIXES) == [as_path(url)]


def test_outputs_and_other_inputs_are_local(tmp_path, server, cog):
    for url in ("https://host/map.tif", "s3://bucket/map.tif"):
        for refused in (check_output, check_folder):
            with pytest.raises(UsageError, match="must be local"):
                refused(url, **({"overwrite": True} if refused is check_output else {"what": "runs"}))
        with pytest.raises(UsageError, match=f"{url}: outputs must be local"):
            predict(segmenter(Path("nowhere"), pretrained=False), cog, url)
        with pytest.raises(UsageError, match="a recipe must be local"):
            Recipe.load(url)
        with pytest.raises(UsageError, match="must be local"):
            require_file(Path(url))


def test_a_map_names_the_scene_without_its_signature_and_sees_a_change(server, tmp_path):
    model, url = segmenter(Path("nowhere"), pretrained=False), f"{server.url('scene.tif')}?sig=SECRET"
    write_cog(server.folder / "scene.tif", 128)
    predict(model, url, tmp_path / "map.tif")
    content = (tmp_path / "map.tif").read_bytes()
    assert b"SECRET" not in content
    server.forget()
    signed_again = url.replace("SECRET", "OTHER")
    assert predict(model, signed_again, tmp_path / "map.tif")[0].seconds == 0  # done before
    assert not server.sent
    write_cog(server.folder / "scene.tif", 128, seed=1)
    with pytest.raises(SegkitError, match=r"other settings \(scene\)"):
        predict(model, url, tmp_path / "map.tif")


@pytest.fixture
def pairs(server):
    for name, seed in (("a", 0), ("b", 1)):
        write_pair(server.folder, "binary", name, seed=seed)
    return [server.url(f"{kind}/{name}.tif?sig=SECRET") for kind in ("images", "labels") for name in "ab"]


def test_training_and_what_belongs_to_it_read_urls(server, pairs, tmp_path, monkeypatch):
    skip_measurements(monkeypatch.setattr)
    skip_pictures(monkeypatch.setattr)
    images, labels = pairs[:2], pairs[2:]
    recipe = recipe_for(server.folder, "binary", train={"epochs": 1, "steps_per_epoch": 2}).to_dict()
    local = Recipe.from_dict(recipe)
    recipe["data"]["train"] = {"images": images, "labels": labels}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = Recipe.load(tmp_path / "recipe.yaml")
    assert loaded.data.train.images == tuple(images)
    assert not check(loaded).problems
    one, other = train(loaded, tmp_path / "run"), train(local, tmp_path / "local")
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "local")]
    assert metrics[0]["confusion"] == metrics[1]["confusion"]
    assert b"SECRET" not in one.model.read_bytes()
    scored = [evaluate(each.model, *where) for each, where in ((one, (images, labels)), (other, local_of(server)))]
    assert scored[0]["confusion"] == scored[1]["confusion"]


def local_of(server):
    return str(server.folder / "images"), str(server.folder / "labels")


def test_a_table_mixes_urls_and_files(server, pairs, tmp_path):
    from segkit.data.pairing import pair_files
    from segkit.recipe.schema import DatasetSource

    (tmp_path / "scenes.csv").write_text(f"image,label\n{pairs[0]},{pairs[2]}\nb.tif,labels/b.tif\n")
    found = pair_files(DatasetSource(table=str(tmp_path / "scenes.csv"))).pairs
    assert [each.images[0] for each in found] == [as_path(pairs[0]), tmp_path / "b.tif"]
    assert [each.labels[0].path for each in found] == [pairs[2], str(tmp_path / "labels/b.tif")]
    assert [each.name for each in found] == ["a", "b"]


def test_the_cache_follows_what_the_server_sends(server, pairs):
    from segkit.data.cache import Cache, list_entries

    with Cache.open(1) as cache:
        before = len(list_entries())
        scene = cache.scene(Scene.from_files(pairs[0]))
        cache.scene(Scene.from_files(pairs[0]))
        assert len(list_entries()) == before + 1
        assert same(scene.read(), Scene.from_files(server.folder / "images/a.tif").read())
        write_pair(server.folder, "binary", "a", seed=5)
        raster._open_remotes.clear()
        assert same(
            cache.scene(Scene.from_files(pairs[0])).read(), Scene.from_files(server.folder / "images/a.tif").read()
        )
        assert len(list_entries()) == before + 2


def test_the_command_line_takes_urls(server, tmp_path, monkeypatch, capsys):
    from segkit.cli import app as cli

    cog = write_cog(server.folder / "scene.tif", 64)
    segmenter(Path("nowhere"), pretrained=False).save(tmp_path / "model.safetensors")
    url = f"{server.url(cog.name)}?sig=a//b"

    def run(*words):
        monkeypatch.setattr("sys.argv", ["segkit", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err.strip()

    model, made = tmp_path / "model.safetensors", tmp_path / "map.tif"
    assert run("predict", model, url, "-o", made)[0] == 0
    assert server.headers[-1]["path"].endswith("?sig=a//b")
    assert run("report", made, "--images", url, "-o", tmp_path / "map.html")[0] == 0
    assert "sig=" not in (tmp_path / "map.html").read_text()
    code, messages = run("predict", model, server.url("none.tif"), "-o", tmp_path / "other.tif")
    assert code == 1
    assert messages.count("\n") == 0
    assert "404" in messages
    code, messages = run("predict", model, url, "-o", "s3://bucket/map.tif")
    assert code == 2
    assert messages.count("\n") == 0


@pytest.mark.parametrize("keys", [True, False])
def test_s3_is_read_without_boto3(server, monkeypatch, keys):
    """A server that takes any signature: what is asked, and that it is signed, is as for S3."""
    (server.folder / "bucket").mkdir()
    file = write_cog(server.folder / "bucket" / "scene.tif", 512)
    for name, value in {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        **({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"} if keys else {"AWS_NO_SIGN_REQUEST": "YES"}),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = Scene.from_files("s3://bucket/scene.tif")
        server.forget()
        assert same(scene.read(WINDOW), Scene.from_files(file).read(WINDOW))
    assert scene.versions[0].startswith(f"{file.stat().st_size} bytes")
    assert {path for _, path, _ in server.asked} == {"bucket/scene.tif"}
    assert server.sent["bucket/scene.tif"] <= 1.1 * tile_bytes(file, WINDOW)
    assert all(("Credential=key/" in headers.get("Authorization", "")) == keys for headers in server.headers)
    with pytest.raises(DataError, match=r"s3://bucket/none\.tif: .*404"):
        Scene.from_files("s3://bucket/none.tif")


def test_threads_may_read_one_url_at_a_time_each(server, cog):
    expected, found = Scene.from_files(cog).read(WINDOW), []
    scene = Scene.from_files(server.url(cog.name))
    threads = [threading.Thread(target=lambda: found.append(scene.read(WINDOW))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(each, expected) for each in found)


def test_gdals_cache_of_a_url_is_not_cleared_while_it_is_read(server, cog, monkeypatch):
    """Otherwise what another thread reads fails."""
    url, cleared = server.url(cog.name), []
    monkeypatch.setattr(raster, "clear_gdal_cache", lambda file: cleared.append(str(file)))
    with open_raster(url) as first:
        assert cleared == [url]
        with open_raster(url) as second:
            assert cleared == [url]
            np.testing.assert_array_equal(first.read(), second.read())
    raster._open_remotes.clear()
    with open_raster(url):
        assert cleared == [url, url]
    assert not raster._in_use
