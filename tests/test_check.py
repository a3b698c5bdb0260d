import importlib

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from segkit.check import check
from segkit.recipe import Recipe

SIZE = 24
MODULE = importlib.import_module("segkit.check")  # segkit.check is also the function


def write_raster(path, pixels, *, left=600_000, crs="EPSG:32622", **profile):
    path.parent.mkdir(exist_ok=True)
    pixels = np.asarray(pixels, dtype=np.uint8)
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], dtype="uint8",
        crs=crs, transform=Affine(10, 0, left, 0, -10, 200_000), **profile,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def codes(seed, share=0.3):
    return np.random.default_rng(seed).random((SIZE, SIZE)) < share


@pytest.fixture
def place(tmp_path):
    """Two good scenes side by side."""
    for i in range(2):
        write_raster(tmp_path / "images" / f"{i}.tif", np.full((3, SIZE, SIZE), 100 + i), left=600_000 + i * SIZE * 10)
        write_raster(tmp_path / "labels" / f"{i}.tif", codes(i), left=600_000 + i * SIZE * 10)
    return tmp_path


def recipe(place, **changes):
    raw = {
        "name": "trial",
        "task": {"type": "binary", "classes": [{"name": "cleared", "value": 1}]},
        "data": {
            "train": {"images": str(place / "images"), "labels": str(place / "labels")},
            "val": {"block": 12, "gap": 2},
            "ignore": [255],
        },
        "train": {"tile_size": 2},
    }
    for key, value in changes.items():
        raw[key] = raw.get(key, {}) | value
    return Recipe.from_dict(raw)


def only(findings, said):
    assert len(findings) == 1, findings
    assert said in findings[0]


def test_what_is_good_is_counted_and_not_complained_about(place):
    labels = codes(0).astype(np.uint8)
    labels[:2] = 255
    write_raster(place / "labels" / "0.tif", labels)
    pixels = np.full((3, SIZE, SIZE), 100)
    pixels[:, :, :3] = 0
    write_raster(place / "images" / "0.tif", pixels, nodata=0)
    report = check(recipe(place))
    assert (report.problems, report.warnings, report.notes, report.unmatched) == ((), (), (), ())
    first = report.scenes[0]
    assert (first.valid, first.labelled) == (SIZE * (SIZE - 3), (SIZE - 2) * (SIZE - 3))
    seen = [codes(0)[2:, 3:], codes(1)]
    ones, pixels = sum(int(each.sum()) for each in seen), sum(each.size for each in seen)
    background, cleared = report.classes("train")
    assert (background.pixels, cleared.pixels, cleared.known) == (pixels - ones, ones, pixels)
    assert cleared.share == ones / pixels
    text = report.render()
    for said in ("trial: binary task, softmax head, 2 channels", f"{ones:,}", f"{ones / pixels:.1%}", "EPSG:32622"):
        assert said in text
    assert text.endswith("problems: 0, warnings: 0")


def test_the_window_does_not_matter(place, monkeypatch):
    whole = check(recipe(place))
    monkeypatch.setattr(MODULE, "_WINDOW", 7)
    assert check(recipe(place)).scenes == whole.scenes


def test_problems_of_all_scenes_are_collected(place):
    odd = codes(0).astype(np.uint8)
    odd[0, :3] = 9
    write_raster(place / "labels" / "0.tif", odd)
    write_raster(place / "labels" / "1.tif", codes(1), left=0)
    write_raster(place / "images" / "2.tif", np.ones((3, SIZE, SIZE)))
    write_raster(place / "labels" / "2.tif", np.full((SIZE, SIZE), 255))
    (place / "images" / "3.tif").write_text("no raster")
    write_raster(place / "labels" / "3.tif", codes(3))
    write_raster(place / "labels" / "4.tif", codes(4))
    report = check(recipe(place))
    text = "\n".join(report.problems)
    assert len(report.problems) == 4
    for said in (
        "0.tif: code 9 (3 pixels)",
        "1.tif lies on another grid",
        "2.tif: no label is known",
        "3.tif: not a ra",
    ):
        assert said in text
    assert [path.name for path in report.unmatched] == ["4.tif"]
    assert all(problem in report.render() for problem in report.problems)


def test_a_code_in_several_windows_is_one_problem(place, monkeypatch):
    monkeypatch.setattr(MODULE, "_WINDOW", 12)
    write_raster(place / "labels" / "0.tif", np.full((SIZE, SIZE), 9))
    only(check(recipe(place)).problems, f"code 9 ({SIZE * SIZE} pixels)")


def test_nothing_there_is_a_problem_not_a_traceback(place):
    report = check(recipe(place, data={"train": {"images": str(place / "none"), "labels": str(place / "labels")}}))
    only(report.problems, "no such file")
    assert "no such file" in report.render()


def test_classes_that_never_occur(place):
    two = {"type": "multiclass", "classes": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]}
    only(check(recipe(place, task=two)).problems, "class 'b' never occurs in training")
    for i in range(2):
        write_raster(place / "labels" / f"{i}.tif", 1 + codes(i), left=600_000 + i * SIZE * 10)
    report = check(recipe(place, task=two))
    assert not report.problems
    only(report.warnings, "task.background: false")
    for i in range(2):
        write_raster(place / "labels" / f"{i}.tif", np.ones((SIZE, SIZE)), left=600_000 + i * SIZE * 10)
    only(check(recipe(place)).problems, "every known training pixel is 'cleared'")


def test_classes_that_overlap_are_counted_each(place):
    box = shapely.box(600_000, 199_900, 600_100, 200_000)  # 10 x 10 pixels of the first scene
    pyogrio.raw.write(
        place / "p.gpkg", shapely.to_wkb(np.array([box, box])), [np.array(["a", "b"])], ["kind"],
        geometry_type="Polygon", crs="EPSG:32622",
    )  # fmt: skip
    many = {"type": "multilabel", "classes": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]}
    labels = {"path": str(place / "p.gpkg"), "field": "kind"}
    report = check(recipe(place, task=many, data={"train": {"images": str(place / "images"), "labels": labels}}))
    assert not report.problems
    assert [(one.name, one.pixels, one.known) for one in report.classes("train")] == [("a", 100, 576), ("b", 100, 576)]
    assert [path.name for path in report.unmatched] == ["1.tif"]


def test_scenes_without_data_and_scenes_of_other_bands(place):
    write_raster(place / "images" / "0.tif", np.zeros((4, SIZE, SIZE)), nodata=0, photometric="MINISBLACK", alpha="NO")
    found = check(recipe(place)).problems
    assert any("0.tif: it holds no data" in one for one in found)
    assert any("number of bands (3 in" in one and "4 in" in one for one in found)


def test_an_alpha_band_is_noted(place):
    for i in range(2):
        pixels = np.full((4, SIZE, SIZE), 255)
        write_raster(
            place / "images" / f"{i}.tif", pixels, left=600_000 + i * SIZE * 10, photometric="RGB", alpha="YES"
        )
    report = check(recipe(place))
    assert len(report.notes) == 2
    assert "band 4 is alpha and serves as mask" in report.notes[0]
    assert not check(recipe(place, data={"bands": [1, 2, 3, 4]})).notes


def write_other(place, left, *, size=SIZE):
    """A scene of its own folder that begins so many pixels from the first scene's left edge."""
    write_raster(place / "other" / "v.tif", np.full((3, size, size), 90), left=600_000 + 10 * left)
    write_raster(place / "truth" / "v.tif", codes(9)[:size, :size], left=600_000 + 10 * left)
    return {"images": str(place / "other"), "labels": str(place / "truth")}


def test_a_scene_that_trains_and_validates_is_a_leak(place):
    both = {"images": str(place / "images" / "0.tif"), "labels": str(place / "labels" / "0.tif")}
    report = check(recipe(place, data={"val": both}))
    assert len(report.problems) == 2  # the second training scene touches it
    for said in ("0.tif trains and ", f"share ground ({SIZE * SIZE} pixels)"):
        assert said in report.problems[0]
    assert report.nearest[0].shared == SIZE * SIZE


@pytest.mark.parametrize("left", [-20, -7, 30])
def test_files_that_overlap_are_a_leak_with_its_pixels(place, left):
    report = check(recipe(place, data={"val": write_other(place, left)}))
    shared = sum(one.shared for one in report.nearest)
    assert shared == (SIZE - abs(left) if left < 0 else 2 * SIZE - left) * SIZE
    assert f"share ground ({report.nearest[0].shared} pixels)" in report.problems[0]
    assert f"{report.nearest[0].shared} shared" in report.render()


def test_neighbours_are_a_leak_and_near_ones_a_warning(place):
    only(check(recipe(place, data={"val": write_other(place, 2 * SIZE)})).problems, "they touch: scores would be too")
    report = check(recipe(place, data={"val": write_other(place, 2 * SIZE + 5)}, train={"tile_size": 16}))
    assert not report.problems
    only(report.warnings, "trains 5 pixels from where")
    assert "nearest training and validation: 5 pixels apart (50 m), 0 shared" in report.render()
    report = check(recipe(place, data={"val": write_other(place, 2 * SIZE + 400)}))
    assert (report.problems, report.warnings) == ((), ())
    assert "nearest training and validation: 400 pixels apart (4,001 m)" in report.render()


@pytest.mark.parametrize("val", [{"block": 12, "gap": 3}, {"by": "scene", "fold": "0/2", "gap": 3}])
def test_a_split_never_leaks_also_not_through_copies(place, val):
    for name in ("images", "labels"):
        (place / name / "2.tif").write_bytes((place / name / "1.tif").read_bytes())
    report = check(recipe(place, data={"val": val}, train={"tile_size": 16}))
    assert not report.problems
    assert all(not one.shared and one.pixels >= 3 - 1e-6 for one in report.nearest)
    only(report.warnings, "less than a tile (16)")


def test_without_validation_there_is_nothing_to_leak(place):
    report = check(recipe(place, data={"val": None}, train={"keep": "last"}))
    assert (report.problems, report.warnings, report.nearest) == ((), (), ())


def test_a_split_that_cannot_be_made(place):
    (place / "images" / "1.tif").unlink()
    only(check(recipe(place, data={"val": {"block": 512}})).problems, "a split needs two")


def test_a_class_that_does_not_validate(place):
    write_raster(place / "other" / "v.tif", np.ones((3, SIZE, SIZE)), left=900_000)
    write_raster(place / "truth" / "v.tif", np.zeros((SIZE, SIZE)), left=900_000)
    report = check(recipe(place, data={"val": {"images": str(place / "other"), "labels": str(place / "truth")}}))
    assert not report.problems
    only(report.warnings, "'cleared' never occurs in validation")
    assert "val: 1 scenes" in report.render()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_larger_than_scenes_and_scenes_without_crs(place):
    for i in range(2):
        write_raster(place / "images" / f"{i}.tif", np.ones((3, SIZE, SIZE)), crs=None)
        write_raster(place / "labels" / f"{i}.tif", codes(i), crs=None)
    report = check(recipe(place, train={"tile_size": 32}))
    assert not report.problems
    assert "tile_size is 32, the largest scene has 24" in report.warnings[0]
    assert "no CRS in 0, 1" in report.warnings[1]
