"""Scenes that are unlike the training data are found; scenes like it are not."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from places import UTM
from products import random_bands, write_safe
from quick import skip_pictures
from synthetic import recipe_for, segmenter, write_pair

from segkit.data import applicability
from segkit.data.applicability import (
    SceneComparison,
    compare_scene,
    compare_scenes,
    describe_training_pixels,
    describe_unlike_samples,
    describe_unlike_scenes,
    sample_pixels,
)
from segkit.data.area import full_areas
from segkit.data.areas import open_areas
from segkit.data.pairing import open_samples
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.io.cover import PixelRegion
from segkit.io.grid import lattice_windows
from segkit.io.scene import Scene
from segkit.models.segmenter import load
from segkit.training.train import train

NAMES = ("B2", "B3", "B8")


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate("abc"):
        write_pair(tmp_path, "binary", name, height=96, width=96, seed=seed)
        with rasterio.open(tmp_path / f"images/{name}.tif", "r+") as dataset:
            dataset.descriptions = NAMES
    return tmp_path


@pytest.fixture
def training(folder):
    recipe = recipe_for(folder, "binary")
    return describe_training_pixels(full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples[:2]))


def changed(folder, name="x", source="c", *, change=lambda pixels: pixels, names=NAMES, declare=None, **profile):
    """Write a changed copy of a scene."""
    with rasterio.open(folder / f"images/{source}.tif") as dataset:
        pixels, valid = dataset.read(), dataset.dataset_mask() > 0
        made = change(np.where(valid, pixels.astype(np.float64), 0))
        made = np.where(valid, made, 0)
        profile = dataset.profile | {"nodata": 0, "dtype": pixels.dtype} | profile
    with rasterio.open(folder / f"{name}.tif", "w", **profile) as dataset:
        dataset.write(made.astype(profile["dtype"]))
        dataset.descriptions = names
        if declare:
            dataset.scales, dataset.offsets = ([value] * 3 for value in declare)
    return Scene.from_files(folder / f"{name}.tif")


def test_a_scene_like_the_training_scenes_is_not_reported(folder, training):
    found = compare_scene(training, changed(folder))
    assert found.share_outside < 0.2
    assert found.findings == ()


def test_other_units_are_named(folder, training):
    with rasterio.open(folder / "images/c.tif") as dataset:
        middle = np.median(dataset.read()[:, dataset.dataset_mask() > 0])
    small = compare_scene(training, changed(folder, change=lambda p: p / 10_000, dtype="float32"))
    assert "100% of its pixels are unlike the training pixels (values are about 10,000 times smaller)" in small.findings
    assert any("it holds float32, the training files " in text for text in small.findings)
    shift = float(f"{middle:.1g}")
    higher = compare_scene(training, changed(folder, change=lambda p: p + shift, dtype="float32"))
    assert higher.share_outside > 0.9
    assert "higher in all bands" in higher.findings[0]


def test_a_declared_offset_and_another_resolution_are_named(folder, training):
    with rasterio.open(folder / "images/c.tif") as dataset:
        transform, crs = dataset.transform, dataset.crs
    declared = compare_scene(training, changed(folder, declare=(1e-4, -0.1)))
    assert any("declares scale 0.0001 and offset -0.1" in text for text in declared.findings)
    for factor, found in ((0.5, True), (1.2, False), (1.3, True)):
        scene = changed(folder, transform=transform @ Affine.scale(factor), crs=crs)
        assert any("m wide, in training" in text for text in compare_scene(training, scene).findings) == found


@pytest.mark.parametrize(("baseline", "offset"), [("05.11", -0.1), ("02.14", 0.0)])
def test_scaled_products_declare_what_their_metadata_say(tmp_path, baseline, offset):
    product = write_safe(tmp_path, random_bands(["B02", "B03"]), baseline=baseline)
    facts = applicability._SceneFacts.read(Scene.from_files(product, scaled=True))
    assert facts.scaling == ((1e-4, pytest.approx(offset)),)


def test_pixels_are_sampled_where_there_are_data(tmp_path, folder):
    """A scene with data in one corner; and in an area of interest."""
    pixels = np.zeros((3, 900, 900), np.uint16)
    pixels[:, 770:850, 770:850] = 9
    profile = {"driver": "GTiff", "height": 900, "width": 900, "count": 3, "dtype": "uint16", "nodata": 0}
    profile |= {"transform": UTM, "crs": "EPSG:32622"}
    with rasterio.open(tmp_path / "corner.tif", "w", **profile) as dataset:
        dataset.write(pixels)
    scene = Scene.from_files(tmp_path / "corner.tif")
    found = np.concatenate(sample_pixels(scene))
    assert len(found) > 100
    assert (found == 9).all()
    inside = PixelRegion((rasterio.windows.Window(800, 800, 10, 10),))
    assert 0 < len(np.concatenate(sample_pixels(scene, inside))) <= 100
    assert sample_pixels(scene, PixelRegion((rasterio.windows.Window(0, 0, 100, 100),))) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (33, 200), (1000, 31)])
def test_windows_of_any_scene_lie_in_it_and_do_not_overlap(tmp_path, shape):
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint8", "transform": UTM}
    with rasterio.open(tmp_path / "s.tif", "w", **profile):
        pass
    scene = Scene.from_files(tmp_path / "s.tif")
    for number in (1, 4, 12):
        times = np.zeros(shape, int)
        for window in lattice_windows(scene.grid, number, 32):
            assert window.row_off >= 0 <= window.col_off
            assert window.row_off + window.height <= shape[0]
            assert window.col_off + window.width <= shape[1]
            times[window.toslices()] += 1
        assert times.max() == 1


def test_many_scenes_are_one_warning():
    comparisons = [SceneComparison(f"{at}.tif", at / 10, ("it differs",) * (at > 3)) for at in range(10)]
    text = describe_unlike_scenes(comparisons)
    assert text.startswith("6 of 10 scenes differ from what the model was trained on")
    assert "9.tif: it differs; 8.tif: it differs; 7.tif: it differs; and 3 more. Check units" in text
    assert describe_unlike_scenes(comparisons[:4]) is None
    assert describe_unlike_scenes([]) is None


def test_a_training_stores_its_pixels_and_predict_and_evaluate_compare(folder, tmp_path, monkeypatch):
    skip_pictures(monkeypatch.setattr)
    recipe = recipe_for(folder, "binary", train={"epochs": 1, "steps_per_epoch": 1})
    run = train(recipe, tmp_path / "run")
    model = load(run.model)
    assert model.training_pixels == describe_training_pixels(open_areas(recipe)[0])
    options = {"device": "cpu", "precision": "fp32"}
    predict(run.model, folder / "images/c.tif", tmp_path / "c_map.tif", **options)  # without a warning
    changed(folder, change=lambda p: p * 4, dtype="float32")
    with pytest.warns(UserWarning, match=r"^the scene differs .*x\.tif: 100% of its pixels .* about 4 times larger"):
        predict(model, folder / "x.tif", tmp_path / "map.tif", **options)
    predict(model, folder / "x.tif", tmp_path / "map.tif", **options)  # the map is there already
    (tmp_path / "x_labels").mkdir()
    (tmp_path / "x_labels/x.tif").write_bytes((folder / "labels/c.tif").read_bytes())
    with pytest.warns(UserWarning, match=r"^the scene differs .*x\.tif"):
        evaluate(model, folder / "x.tif", tmp_path / "x_labels/x.tif", **options)


def test_bands_are_found_by_name(folder, tmp_path, monkeypatch):
    skip_pictures(monkeypatch.setattr)
    recipe = recipe_for(folder, "binary", train={"epochs": 1, "steps_per_epoch": 1})
    model = load(train(recipe, tmp_path / "run").model)
    assert model.band_names == NAMES
    options = {"device": "cpu", "precision": "fp32"}
    [straight] = predict(model, folder / "images/c.tif", tmp_path / "straight.tif", **options)
    changed(folder, change=lambda p: p[::-1], names=NAMES[::-1])
    [swapped] = predict(model, folder / "x.tif", tmp_path / "swapped.tif", **options)
    assert swapped.pixels == straight.pixels
    with rasterio.open(folder / "x.tif") as dataset:
        profile, pixels = dataset.profile, dataset.read()
    with rasterio.open(folder / "more.tif", "w", **profile | {"count": 4}) as dataset:
        dataset.write(np.concatenate([pixels[:1], pixels]))
        dataset.descriptions = ("B12", *NAMES[::-1])
    [more] = predict(model, folder / "more.tif", tmp_path / "more_map.tif", **options)
    assert more.pixels == straight.pixels


def scenes_of(folder, names="abc"):
    return [Scene.from_files(folder / f"images/{name}.tif") for name in names]


def test_training_scenes_are_compared_with_each_other(folder):
    alike = compare_scenes(scenes_of(folder), [])
    assert [one.findings for one in alike] == [()] * 3
    higher = changed(folder, change=lambda p: p + 400, dtype="float32", declare=(1e-4, -0.1))
    found = compare_scenes([*scenes_of(folder), higher], [])
    assert [bool(one.findings) for one in found] == [False, False, False, True]
    assert found[3].findings[0].startswith("100% of its pixels are unlike the training pixels (values are about 400")
    assert [text.split(",")[0] for text in found[3].findings[1:]] == [
        "it declares scale 0.0001 and offset -0.1",
        "it holds float32",
    ]
    note = describe_unlike_samples(found)
    assert note.startswith(f"1 of 4 scenes differs from the other training scenes: {folder}/x.tif: 100% of its pixels")
    assert note.endswith("If that is not intended, check units, offsets and band order")
    assert describe_unlike_samples(alike) is None


def test_validation_scenes_are_compared_with_all_training_scenes(folder):
    coarse = changed(folder, transform=UTM @ Affine.scale(2))
    found = compare_scenes(scenes_of(folder, "ab"), [*scenes_of(folder, "c"), coarse])
    assert [one.findings for one in found] == [(), (), (), ("its pixels are 20 m wide, in training 10 m",)]


def test_how_scenes_differ_is_not_concluded_from_one(folder):
    """But what their files declare is compared."""
    other = changed(folder, change=lambda p: p * 4, dtype="float32")
    assert all(
        one.findings == () and one.share_outside is None for one in compare_scenes([*scenes_of(folder, "a"), other], [])
    )
    declaring = changed(folder, declare=(1e-4, 0))
    found = compare_scenes([*scenes_of(folder, "a"), declaring], [])
    assert "declares scale 0.0001" in found[1].findings[0]
    assert compare_scenes(scenes_of(folder, "a"), []) == []


def test_many_scenes_are_compared_in_parts_with_few_pixels(folder, monkeypatch):
    monkeypatch.setattr(applicability, "_MAX_PARTS", 2)
    monkeypatch.setattr(applicability, "_MAX_COMPARED_PIXELS", 50)
    sizes, describe = [], applicability._describe
    monkeypatch.setattr(
        applicability, "_describe", lambda facts: sizes.append([len(one.pixels) for one in facts]) or describe(facts)
    )
    higher = changed(folder, change=lambda p: p + 400, dtype="float32")
    found = compare_scenes([higher, *scenes_of(folder), *scenes_of(folder)], [])
    assert [bool(one.findings) for one in found] == [True] + [False] * 6
    assert [len(one) for one in sizes] == [3, 4]
    assert max(max(one) for one in sizes) <= 60


@pytest.mark.parametrize("by", ["block", "polygon"])
def test_pixels_that_validate_are_not_described(tmp_path, by):
    """Training pixels are at most 100, pixels that validate or lie in the gap at least 1,000."""
    write_pair(tmp_path, "binary", "a", height=96, width=96)
    rule = {"by": "block", "block": 32, "gap": 4, "fraction": 0.3}
    if by == "polygon":
        with rasterio.open(tmp_path / "images/a.tif") as dataset:
            box = rasterio.windows.bounds(rasterio.windows.Window(20, 20, 40, 40), dataset.transform)
            other = rasterio.windows.bounds(rasterio.windows.Window(70, 70, 20, 20), dataset.transform)
            frame = geopandas.GeoDataFrame({"use": ["val", "train"]}, geometry=[shapely.box(*box), shapely.box(*other)])
            frame.set_crs(dataset.crs).to_file(tmp_path / "p.gpkg")
        rule = {"by": "polygon", "polygons": str(tmp_path / "p.gpkg"), "field": "use", "values": ["val"], "gap": 4}
    recipe = recipe_for(tmp_path, "binary", data={"val": rule})
    [area] = open_areas(recipe)[0]
    used = PixelRegion(area.windows).mask(area.sample.scene.grid.full_window)
    used &= ~area.exclude.mask(area.sample.scene.grid.full_window)
    assert used.any()
    assert not used.all()
    with rasterio.open(tmp_path / "images/a.tif", "r+") as dataset:
        pixels = np.where(used, np.arange(96 * 96).reshape(96, 96) % 100 + 1, 2000)
        dataset.write(np.broadcast_to(pixels, (dataset.count, 96, 96)).astype(dataset.dtypes[0]))
    found = np.array(describe_training_pixels(open_areas(recipe)[0]).pixels)
    assert len(found) > 100
    assert found.max() <= 100


def test_models_of_before_compare_nothing(folder, tmp_path):
    model = segmenter(folder, "binary")
    model.band_names = NAMES
    model.save(tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").training_pixels is None
    changed(folder, change=lambda p: p * 4, dtype="float32")
    predict(tmp_path / "model.safetensors", folder / "x.tif", tmp_path / "map.tif", device="cpu", precision="fp32")
