import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fork_server
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from killing import names
from predicting import FAST, MULTICLASS, TASKS, UTM, Network, expected, placed, read, write_area, write_scene
from rasterio.features import geometry_mask
from synthetic import cut_raster

from segkit.errors import DataError, MissingFileError, OutputError, OutputExistsError, SegkitError, UsageError
from segkit.inference import tasks
from segkit.inference.predict import predict
from segkit.inference.summary import ClassTally, sum_counts
from segkit.io.grid import Grid
from segkit.io.mosaic import Mosaic
from segkit.io.pixel_area import pixel_hectares
from segkit.io.region import PolygonRegion, read_aoi
from segkit.io.scene import Scene


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type}-{task.head}-{len(task.classes)}")
def test_the_map_is_what_the_network_decides(tmp_path, task):
    model, scene = Network(task), write_scene(tmp_path / "scene.tif")
    [summary] = predict(model, scene, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", **FAST)
    values, probabilities, valid = expected(model, scene)
    assert all(len(np.unique(band)) > 2 for band in values), "no data and at least two decisions"
    with rasterio.open(tmp_path / "map.tif") as found:
        np.testing.assert_array_equal(found.read(), values)
        assert found.nodata == task.nodata
        assert found.dtypes[0] == task.dtype
        assert found.descriptions == task.band_names
        assert json.loads(found.tags()["segkit_classes"]) == list(task.legend)
        assert found.tags()["segkit_type"] == task.type
        assert found.tags()["segkit_overlap"] == "8"
        assert found.tags()["segkit_precision"] == "fp32"
        assert found.tags()["segkit_date"]
    with rasterio.open(tmp_path / "p.tif") as found:
        assert found.nodata == 255
        assert found.descriptions == task.channel_names
        stored = found.read()
        assert (stored[:, ~valid] == 255).all()
        shown = stored * np.array(found.scales)[:, None, None]
        np.testing.assert_allclose(shown[:, valid], probabilities[:, valid], atol=0.5 / 254 + 1e-6)
    assert summary.valid == valid.sum()
    assert list(summary.pixels) == [row["name"] for row in task.legend]
    assert summary.path == tmp_path / "map.tif"
    assert summary.mpx_per_second > 0
    assert summary.peak_memory > 10**7


def test_the_summary_counts_pixels_and_true_hectares(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 33, 44, transform=Affine(0.1, 0, 10, 0, -0.1, 60), crs="EPSG:4326")
    [summary] = predict(Network(), scene, tmp_path / "map.tif", **FAST)
    values, area = read(tmp_path / "map.tif")[0], Scene.from_files(scene).grid.hectares()
    for row in MULTICLASS.legend:
        assert summary.pixels[row["name"]] == (values == row["value"]).sum()
        assert summary.hectares[row["name"]] == pytest.approx(area[values == row["value"]].sum(), rel=1e-9)
    assert sum(summary.pixels.values()) == summary.valid


def test_the_summary_of_overlapping_classes_counts_where_each_is_present(tmp_path):
    task = TASKS[5]
    [summary] = predict(Network(task), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", **FAST)
    present = (read(tmp_path / "map.tif") == 1).sum(axis=(1, 2))
    assert summary.pixels == {"trees": present[0], "water": present[1]}
    assert 0 < present.min() < present.max()


def test_without_crs_there_are_no_hectares(tmp_path):
    [summary] = predict(Network(), write_scene(tmp_path / "scene.tif", crs=None), tmp_path / "map.tif", **FAST)
    assert summary.hectares is None
    assert sum(summary.pixels.values()) == summary.valid


@pytest.mark.parametrize(("transform", "crs"), [(UTM, "EPSG:32622"), (Affine(1e-4, 0, -50, 0, -1e-4, -3), "EPSG:4326")])
def test_areas_by_patches_are_those_of_each_pixel(transform, crs):
    grid = Grid(100, 1000, transform, rasterio.crs.CRS.from_string(crs))
    window = rasterio.windows.Window(500, 20, 300, 75)
    np.testing.assert_allclose(pixel_hectares(grid, window), grid.hectares(window), rtol=1e-5)


def test_tally_takes_blocks_in_any_order():
    grid = Grid(40, 40, UTM, rasterio.crs.CRS.from_epsg(32622))
    targets, valid = np.random.default_rng(0).integers(0, 3, (1, 40, 40)), np.ones((40, 40), dtype=bool)
    whole, parts = ClassTally(MULTICLASS, grid), ClassTally(MULTICLASS, grid)
    whole.add(targets, valid, grid.full_window)
    for window in reversed(list(grid.tiles(16))):
        rows, columns = window.toslices()
        parts.add(targets[:, rows, columns], valid[rows, columns], window)
    assert parts.counts()["pixels"] == whole.counts()["pixels"]
    assert parts.counts()["hectares"] == pytest.approx(whole.counts()["hectares"])
    assert sum_counts([whole.counts(), parts.counts()])["pixels"] == {
        name: 2 * n for name, n in whole.counts()["pixels"].items()
    }


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.1 + 1e-15, 0, 500_000.123456789, 0, -0.3, 9_000_000.987654321),
        Affine(10, 0, 500_000, 0, 10, 8_999_000),
        UTM @ Affine.rotation(31),
    ],
    ids=["odd", "south-up", "rotated"],
)
def test_the_map_lies_on_the_scenes_grid_to_the_last_bit(tmp_path, transform):
    scene = write_scene(tmp_path / "scene.tif", transform=transform)
    predict(Network(), scene, tmp_path / "map.tif", **FAST)
    with rasterio.open(scene) as given, rasterio.open(tmp_path / "map.tif") as found:
        assert found.transform == given.transform
        assert found.shape == given.shape
        assert found.crs == given.crs
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected(Network(), scene)[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 77), (77, 1), (7, 5)])
def test_the_smallest_scenes_are_mapped(tmp_path, shape):
    pixels = np.full((2, *shape), 500, dtype=np.uint16)
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 2, "dtype": "uint16"}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile, transform=UTM, crs="EPSG:32622") as dataset:
        dataset.write(pixels)
    predict(Network(), tmp_path / "scene.tif", tmp_path / "map.tif", **FAST)
    found = read(tmp_path / "map.tif")
    assert found.shape == (1, *shape)
    np.testing.assert_array_equal(found, expected(Network(), tmp_path / "scene.tif")[0])
    assert (found != 255).all()


def test_what_lies_under_no_data_does_not_matter(tmp_path):
    for name, nodata in (("zeros", 0), ("garbage", 60_000)):
        write_scene(tmp_path / f"{name}.tif", nodata=nodata)
        predict(Network(), tmp_path / f"{name}.tif", tmp_path / f"map-{name}.tif", **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map-zeros.tif"), read(tmp_path / "map-garbage.tif"))


def test_class_colors_are_inside_the_map(tmp_path):
    predict(Network(), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", **FAST)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.colormap(1)[4] == (0, 0, 255, 255)
        assert found.colormap(1)[255] == (0, 0, 0, 0)


def test_a_present_class_has_its_color(tmp_path):
    predict(Network(TASKS[6]), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", **FAST)
    with rasterio.open(tmp_path / "map.tif") as found:
        red, green, blue, _ = found.colormap(1)[1]
    assert f"#{red:02x}{green:02x}{blue:02x}" == TASKS[6].legend[0]["color"]


def test_a_map_names_its_model(tmp_path):
    model = Network()
    model.path = tmp_path / "forest.safetensors"
    predict(model, write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", **FAST)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.tags()["segkit_model"] == "forest.safetensors test model"


def test_files_of_one_scene_are_stacked(tmp_path):
    whole = write_scene(tmp_path / "scene.tif")
    with rasterio.open(whole) as dataset:
        profile = dataset.profile | {"count": 1}
        for band in (1, 2):
            with rasterio.open(tmp_path / f"band{band}.tif", "w", **profile) as part:
                part.write(dataset.read(band), 1)
    predict(Network(), [[tmp_path / "band1.tif", tmp_path / "band2.tif"]], tmp_path / "stacked.tif", **FAST)
    predict(Network(), whole, tmp_path / "map.tif", **FAST)
    np.testing.assert_array_equal(read(tmp_path / "stacked.tif"), read(tmp_path / "map.tif"))


def test_several_scenes_go_to_a_folder_and_one_that_fails_does_not_stop_the_others(tmp_path):
    scenes = [write_scene(tmp_path / f"{name}.tif", seed=seed) for seed, name in enumerate("abc")]
    scenes[1].write_bytes(scenes[1].read_bytes()[:700])
    write_scene(scenes[2], bands=3)
    scenes.append(write_scene(tmp_path / "d.tif", 20, 20))
    with pytest.raises(SegkitError, match="2 of 4 scenes failed") as failed:
        predict(Network(), scenes, tmp_path / "maps", probabilities=tmp_path / "chances", **FAST)
    assert str(scenes[1]) in str(failed.value)
    assert "c.tif has 3 bands" in str(failed.value)
    for folder in ("maps", "chances"):
        assert names(tmp_path / folder) == {"a.tif", "d.tif"}
    np.testing.assert_array_equal(read(tmp_path / "maps/a.tif"), expected(Network(), scenes[0])[0])


def test_summaries_come_in_the_order_of_the_scenes(tmp_path):
    scenes = [write_scene(tmp_path / f"{name}.tif", 10, 10) for name in "ba"]
    assert [one.path.name for one in predict(Network(), scenes, tmp_path / "maps", **FAST)] == ["b.tif", "a.tif"]


def test_outputs_are_checked_before_any_work(tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    (tmp_path / "other").mkdir()
    twin = write_scene(tmp_path / "other/scene.tif")
    there = tmp_path / "there.tif"
    there.write_text("precious")
    layer = tmp_path / "other/layer.gpkg"
    layer.write_text("precious")
    model = Network()

    def refused(error, match, scenes, output, **options):
        with pytest.raises(error, match=match):
            predict(model, scenes, output, **FAST | options)

    refused(OutputExistsError, "--overwrite", scene, there)
    refused(OutputExistsError, "--overwrite", scene, tmp_path / "map.tif", probabilities=there)
    refused(OutputExistsError, "layer.gpkg", scene, tmp_path / "map.tif", vector=layer)
    refused(UsageError, "does not exist", scene, tmp_path / "nowhere/map.tif")
    refused(UsageError, "does not exist", [scene, there], tmp_path / "nowhere/maps")
    refused(UsageError, "ends in .tif", scene, tmp_path / "map.png")
    refused(UsageError, "cannot be written as .doc", scene, tmp_path / "map.tif", vector=tmp_path / "layer.doc")
    refused(
        UsageError,
        "would be written to the same file; name another",
        scene,
        tmp_path / "map.tif",
        probabilities=tmp_path / "map.tif",
    )
    refused(UsageError, "would be written to the same file; use different folders", [scene, twin], tmp_path / "maps")
    refused(UsageError, "would overwrite .*, which is an input", scene, scene, overwrite=True)
    refused(UsageError, "need a folder", [scene, there], tmp_path / "maps.tif")
    refused(UsageError, "no scene", [], tmp_path / "maps")
    refused(UsageError, "half of it", scene, tmp_path / "map.tif", overlap=17)
    refused(UsageError, "must be at least 1", scene, tmp_path / "map.tif", batch_size=0)
    refused(UsageError, "not known", scene, tmp_path / "map.tif", device="gpu")
    refused(MissingFileError, "nothing.gpkg", scene, tmp_path / "map.tif", aoi=tmp_path / "nothing.gpkg")
    refused(MissingFileError, "nothing.tif", tmp_path / "nothing.tif", tmp_path / "map.tif")
    assert model.calls == 0
    assert there.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "scene.tif", "there.tif"]


def test_overwrite_replaces_the_map(tmp_path):
    scene, there = write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif"
    there.write_text("old")
    predict(Network(), scene, there, overwrite=True, **FAST)
    np.testing.assert_array_equal(read(there), expected(Network(), scene)[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_what_breaks_midway_leaves_nothing(tmp_path, error):
    class Breaking(Network):
        def forward(self, pixels, valid):
            if self.calls == 3:
                raise error
            return super().forward(pixels, valid)

    scene, before = write_scene(tmp_path / "scene.tif"), threading.active_count()
    with pytest.raises(error if isinstance(error, type) else type(error)):
        predict(Breaking(), scene, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", batch_size=1, **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]
    assert threading.active_count() == before


class SlowAndSignalled(Network):
    def forward(self, pixels, valid):
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return super().forward(pixels, valid)


def predict_until_ctrl_c():
    model = SlowAndSignalled()
    try:
        predict(model, "scene.tif", "map.tif", tile=16, overlap=4, batch_size=1, device="cpu")
    except KeyboardInterrupt:
        print("stopped after", model.calls)


def test_ctrl_c_stops_at_once_and_leaves_nothing(tmp_path):
    write_scene(tmp_path / "scene.tif", 300, 300)
    process = fork_server.start(predict_until_ctrl_c, folder=tmp_path)
    process.join(600)
    assert process.exitcode == 0
    printed = (tmp_path / "stdout.txt").read_text()
    assert printed.startswith("stopped after")
    assert int(printed.split()[-1]) < 10
    assert names(tmp_path) == {"scene.tif", "stdout.txt", "stderr.txt"}


@pytest.mark.parametrize(
    "transform",
    [UTM, Affine(10, 0, 500_000, 0, 10, 8_999_000), UTM @ Affine.rotation(31)],
    ids=["north-up", "south-up", "rotated"],
)
def test_outside_the_area_of_interest_the_map_is_no_data(tmp_path, transform):
    scene = write_scene(tmp_path / "scene.tif", 80, 120, transform=transform)
    star = placed(transform, (3.3, 4.4), (50.2, 11.7), (31.1, 60.6), (20.9, 30.3))
    apart = placed(transform, (100.2, 70.1), (140.3, 70.2), (120.4, 95.3))
    area = write_area(tmp_path / "area.gpkg", star, apart)
    model = Network()
    predict(model, scene, tmp_path / "map.tif", aoi=area, batch_size=1, **FAST)
    windows = model.calls
    values, _, valid = expected(model, scene)
    columns, rows = np.meshgrid(np.arange(120) + 0.5, np.arange(80) + 0.5)
    inside = shapely.contains_xy(shapely.union(star, apart), *(transform @ (columns, rows)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), np.where(inside & valid, values, 255))
    predict(model, scene, tmp_path / "all.tif", batch_size=1, **FAST)
    assert windows < model.calls - windows - 1


def test_the_area_is_that_of_rasterising_it_at_once(tmp_path):
    scene = Scene.from_files(write_scene(tmp_path / "scene.tif"))
    polygon = placed(UTM, (3.3, 4.4), (80.2, 11.7), (31.1, 60.6))
    area = write_area(tmp_path / "area.geojson", polygon, to="EPSG:3857")
    region = PolygonRegion(read_aoi(area), scene.grid)
    whole = geometry_mask(geopandas.read_file(area).to_crs(scene.grid.crs).geometry, scene.grid.shape, UTM, invert=True)
    assert 0 < whole.sum() < whole.size
    for window in scene.grid.tiles(13):
        np.testing.assert_array_equal(region.mask(window), whole[window.toslices()])


def test_an_area_that_does_not_fit_is_refused(tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    far = write_area(tmp_path / "far.gpkg", placed(UTM, (200, 200), (300, 200), (300, 300)))
    points = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.Point(500_100, 8_999_900)], crs="EPSG:32622").to_file(points)
    text = tmp_path / "notes.txt"
    text.write_text("somewhere in the north")
    for area, match in (
        (far, "does not overlap the scene"),
        (points, "have the type Point, but only polygons"),
        (text, "not a vector format"),
    ):
        with pytest.raises(DataError, match=match) as refused:
            predict(Network(), scene, tmp_path / "map.tif", aoi=area, **FAST)
        assert str(area) in str(refused.value)
    nowhere = write_scene(tmp_path / "nowhere.tif", crs=None)
    with pytest.raises(DataError, match="EPSG:4326, the scene none"):
        predict(Network(), nowhere, tmp_path / "map.tif", aoi=far, **FAST)
    assert not (tmp_path / "map.tif").exists()


def test_polygons_are_written_after_the_map(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 20, 20)
    predict(
        Network(),
        scene,
        tmp_path / "map.tif",
        vector=tmp_path / "layer.gpkg",
        probabilities=tmp_path / "p.tif",
        **FAST,
    )
    layer = geopandas.read_file(tmp_path / "layer.gpkg", layer="layer")
    values = read(tmp_path / "map.tif")
    assert layer["pixels"].sum() == np.isin(values, [4, 9]).sum()
    assert layer["mean_conf"].between(0, 1).all()


def test_importing_predict_leaves_torch_alone():
    code = "import segkit.inference.predict, sys; sys.exit('torch' in sys.modules or 'geopandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("made", [True, False], ids=["there", "with a slash"])
def test_one_scene_goes_into_a_folder_that_is_named(tmp_path, made):
    (tmp_path / "scenes").mkdir()
    scene = write_scene(tmp_path / "scenes/only.tif")
    out = {name: f"{tmp_path}/{name}.v1" + "/" * (not made) for name in ("maps", "chances", "layers")}
    for path in out.values() if made else ():
        Path(path).mkdir()
    given = {"probabilities": out["chances"], "vector": out["layers"]} | FAST
    [summary] = predict(Network(), tmp_path / "scenes", out["maps"], **given)
    assert summary.path == Path(out["maps"]) / "only.tif"
    np.testing.assert_array_equal(read(summary.path), expected(Network(), scene)[0])
    assert names(Path(out["chances"])) == {"only.tif"}
    assert (Path(out["layers"]) / "only.gpkg").is_file()


def test_a_folder_that_is_a_file_or_the_scene_s_own_is_refused(tmp_path):
    scene = write_scene(tmp_path / "only.tif")
    with pytest.raises(UsageError, match=r"only.tif is a file, .* the outputs of 1 scene need a folder"):
        predict(Network(), scene, f"{scene}/", **FAST)
    with pytest.raises(UsageError, match=r"would overwrite .*only\.tif, which is an input"):
        predict(Network(), scene, tmp_path, **FAST)
    with pytest.raises(UsageError, match=r"name a file that ends in .tif, or a folder that ends with /"):
        predict(Network(), scene, tmp_path / "maps", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["only.tif"]


def test_scenes_that_hold_no_data_are_reported_in_one_warning(tmp_path):
    scenes = [write_scene(tmp_path / f"{name}.tif") for name in "abcdef"]
    for scene in scenes[1:]:
        with rasterio.open(scene, "r+") as dataset:
            dataset.write(np.zeros((2, *dataset.shape), dtype=np.uint16))
    listed = ", ".join(map(str, scenes[1:4]))
    with pytest.warns(UserWarning, match="5 scenes without valid pixels") as messages:
        predict(Network(), scenes, tmp_path / "maps", **FAST)
    assert [str(one.message) for one in messages] == [
        (
            f"5 scenes without valid pixels, so the map is all no data: {listed} and 2 more; check the no-data "
            "value and the mask of the files"
        )
    ]
    island = shapely.box(500_310, 8_999_600, 500_400, 8_999_640)  # of no data, in the first scene
    geopandas.GeoSeries([island], crs="EPSG:32622").to_file(tmp_path / "aoi.gpkg")
    with pytest.warns(
        UserWarning, match=r"1 scene without valid pixels inside .*aoi.gpkg, .*: .*a.tif; check"
    ) as messages:
        predict(Network(), scenes[0], tmp_path / "map.tif", aoi=tmp_path / "aoi.gpkg", **FAST)
    assert len(messages) == 1


def test_no_map_is_made_of_logits_that_are_not_finite(tmp_path):
    class Spoilt(Network):
        def forward(self, pixels, valid):
            return super().forward(pixels, valid).index_fill(1, torch.tensor([0]), torch.nan)

    scene = write_scene(tmp_path / "scene.tif")
    with pytest.raises(
        SegkitError, match=r"scene.tif: in fp32 the network gives NaN .* rows 0 to 31 and columns 0 to 31"
    ):
        predict(Spoilt(), scene, tmp_path / "map.tif", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


EDGES = [33], [20, 61]  # rows and columns at which the files of a mosaic end


def test_the_map_of_a_mosaic_is_that_of_the_scene_in_one_file(tmp_path):
    model, scene = Network(), write_scene(tmp_path / "scene.tif")
    tiles = Mosaic(cut_raster(scene, tmp_path / "tiles", *EDGES))
    for source, name in ((scene, "whole"), (tiles, "mosaic")):
        others = {"probabilities": tmp_path / f"{name}_p.tif", "vector": tmp_path / f"{name}.gpkg"}
        [summary] = predict(model, source, tmp_path / f"{name}.tif", **others, **FAST)
    assert summary.path == tmp_path / "mosaic.tif"
    for ending in (".tif", "_p.tif"):
        one, other = (rasterio.open(tmp_path / f"{name}{ending}") for name in ("whole", "mosaic"))
        with one, other:
            assert (other.transform, other.crs, other.shape) == (one.transform, one.crs, one.shape)
            np.testing.assert_array_equal(other.read(), one.read())
    one, other = (geopandas.read_file(tmp_path / f"{name}.gpkg", layer=name) for name in ("whole", "mosaic"))
    assert one.equals(other)


def test_the_seamless_map_is_cut_like_its_input(tmp_path):
    """Each part has the grid of its file; together they are the map. The same call finds them finished."""
    model, scene = Network(), write_scene(tmp_path / "scene.tif")
    tiles = cut_raster(scene, tmp_path / "tiles", *EDGES)
    predict(model, scene, tmp_path / "whole.tif", vector=tmp_path / "whole.gpkg", **FAST)
    how = {"probabilities": tmp_path / "p", "uncertainty": "margin", "vector": tmp_path / "parts.gpkg"}
    [summary] = predict(model, Mosaic(tiles), tmp_path / "maps", like_input=True, **how, **FAST)
    assert summary.path == tmp_path / "maps"
    expected = read(tmp_path / "whole.tif")
    for tile in tiles.iterdir():
        with rasterio.open(tile) as given, rasterio.open(tmp_path / "maps" / tile.name) as part:
            assert (part.transform, part.crs, part.shape) == (given.transform, given.crs, given.shape)
            column, row = (round(at) for at in ~UTM @ (given.transform @ (0, 0)))
            rows, columns = slice(row, row + given.height), slice(column, column + given.width)
            np.testing.assert_array_equal(part.read(), expected[:, rows, columns])
    files = {tile.stem for tile in tiles.iterdir()}
    assert names(tmp_path / "maps") == {f"{name}{ending}.tif" for name in files for ending in ("", "_uncertainty")}
    assert names(tmp_path / "p") == {f"{name}.tif" for name in files}
    one, other = (geopandas.read_file(tmp_path / f"{name}.gpkg", layer=name) for name in ("whole", "parts"))
    columns = [*one.columns.drop("mean_conf", errors="ignore")]
    assert one[columns].equals(other[columns])
    [again] = predict(model, Mosaic(tiles), tmp_path / "maps", like_input=True, **how, **FAST)
    assert again.seconds == 0
    assert again.path == tmp_path / "maps"
    assert again.pixels == summary.pixels


def test_overlapping_files_get_maps_that_agree(tmp_path):
    model, scene = Network(), write_scene(tmp_path / "scene.tif")
    tiles = cut_raster(scene, tmp_path / "tiles", [], [60])
    with rasterio.open(scene) as dataset:
        pixels, profile = dataset.read(window=((0, 70), (40, 90))), dataset.profile
    profile |= {"width": 50, "transform": UTM @ Affine.translation(40, 0)}
    (tiles / "00_60.tif").unlink()
    with rasterio.open(tiles / "00_40.tif", "w", **profile) as dataset:
        dataset.write(pixels)
    predict(model, Mosaic(tiles, "first"), tmp_path / "maps/", like_input=True, **FAST)
    predict(model, scene, tmp_path / "whole.tif", **FAST)
    np.testing.assert_array_equal(read(tmp_path / "maps" / "00_40.tif"), read(tmp_path / "whole.tif")[:, :, 40:])


def test_parts_that_are_interrupted_are_continued(tmp_path, monkeypatch):
    model, tiles = Network(), Mosaic(cut_raster(write_scene(tmp_path / "scene.tif"), tmp_path / "tiles", *EDGES))
    written = []
    original = tasks.build_cog

    def fail_at_the_third(path, *arguments, **options):
        if len(written) == 2:
            raise OutputError(f"{path}: the disk is full")
        written.append(path)
        original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "build_cog", fail_at_the_third)
        with pytest.raises(OutputError, match="the disk is full"):
            predict(model, tiles, tmp_path / "maps", like_input=True, **FAST)
    assert names(tmp_path / "maps") == {path.name for path in written} | {"tiles.tif.bands"}
    [summary] = predict(model, tiles, tmp_path / "maps", like_input=True, **FAST)
    assert summary.resumed == summary.bands
    assert names(tmp_path / "maps") == {file.name for file in tiles.files}
    changed = tiles.files[0]
    os.utime(changed, (0, 0))
    with pytest.raises(OutputExistsError, match=r"00_00.tif is there already, made with other settings \(scene\)"):
        predict(model, tiles, tmp_path / "maps", like_input=True, **FAST)


def test_what_cannot_be_cut_is_refused(tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    tiles = Mosaic(cut_raster(scene, tmp_path / "tiles", *EDGES))
    with pytest.raises(UsageError, match=r"scene.tif is one file, so there is nothing to cut its map like"):
        predict(Network(), scene, tmp_path / "maps", like_input=True, **FAST)
    with pytest.raises(UsageError, match=r"map.tif is a file, or named like one; the outputs of 6 files need a folder"):
        predict(Network(), tiles, tmp_path / "map.tif", like_input=True, **FAST)
    with pytest.raises(UsageError, match=r"would overwrite .*which is an input"):
        predict(Network(), tiles, tmp_path / "tiles", like_input=True, **FAST)
    with pytest.raises(UsageError, match=r"would overwrite .*which is an input"):
        predict(Network(), tiles, tmp_path / "tiles" / "00_20.tif", **FAST)
