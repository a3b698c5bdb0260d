import importlib

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from quick import skip_pictures
from synthetic import SMALLEST, read_whole, segmenter

from segkit.data import examination
from segkit.data.areas import open_areas
from segkit.data.check import check
from segkit.errors import DataError, LabelError, SegkitError
from segkit.evaluation.evaluate import evaluate
from segkit.plots.text import format_percent
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Recipe
from segkit.training.compare import compare
from segkit.training.train import train

SIZE = 24
MODULE = importlib.import_module("segkit.data.check")  # segkit.check is also the function


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


NETWORK = MODULE._check_network


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Tiles of these tests are tiny; `with_network` has the tests of what is said of the network."""
    monkeypatch.setattr(MODULE, "_check_network", lambda *_: ([], []))


@pytest.fixture
def with_network(_no_network, monkeypatch):
    monkeypatch.setattr(MODULE, "_check_network", NETWORK)


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


def test_good_data_is_counted_without_messages(place):
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
    shares = f"{ones:,}", format_percent(ones / pixels)
    for part in ("trial: binary task, softmax head, 2 channels", *shares, "10 x 10 m  EPSG:32622"):
        assert part in text
    assert text.endswith("problems: 0, warnings: 0")


def test_the_window_does_not_matter(place, monkeypatch):
    whole = check(recipe(place))
    monkeypatch.setattr(examination, "_WINDOW_PX", 7)
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
        "1.tif is on another grid",
        "2.tif: none of its valid pixels is labelled",
        "3.tif: not a ra",
    ):
        assert said in text
    assert [path.name for path in report.unmatched] == ["4.tif"]
    assert all(problem in report.render() for problem in report.problems)


def test_scenes_unlike_the_others_are_one_note(place):
    for i in range(2, 5):
        pixels = np.full((3, SIZE, SIZE), 100 + i if i < 4 else 250)
        write_raster(place / "images" / f"{i}.tif", pixels, left=600_000 + i * SIZE * 10)
        write_raster(place / "labels" / f"{i}.tif", codes(i), left=600_000 + i * SIZE * 10)
    report = check(recipe(place))
    [note] = report.notes
    assert note.startswith(f"1 of 5 scenes differs from the other training scenes: {place}/images/4.tif: 100% of its")
    assert (report.problems, report.warnings) == ((), ())
    assert f"  {note}" in report.render().splitlines()


def test_a_code_in_several_windows_is_one_problem(place, monkeypatch):
    monkeypatch.setattr(examination, "_WINDOW_PX", 12)
    write_raster(place / "labels" / "0.tif", np.full((SIZE, SIZE), 9))
    report = check(recipe(place))
    only(report.problems, f"code 9 ({SIZE * SIZE} pixels)")
    # What is known of the scene whose labels cannot be read is not given as shares of 0.
    lines = report.render().splitlines()
    assert "train: 1 scene or the labels could not be read, see the problems below" in lines
    assert any(line.startswith(f"train: 1 scene, {SIZE * SIZE} pixels") for line in lines)
    assert next(line for line in lines if line.startswith("0 ")).split()[-2:] == ["-", "-"]


def test_missing_files_are_problems(place):
    report = check(recipe(place, data={"train": {"images": str(place / "none"), "labels": str(place / "labels")}}))
    only(report.problems, "no such file")
    assert "no such file" in report.render()


def test_classes_that_never_occur(place):
    two = {"type": "multiclass", "classes": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]}
    report = check(recipe(place, task=two))
    assert not report.problems  # another area may have it
    only(report.warnings, "class 'b' does not occur in the training scenes, so it is never mapped")
    for i in range(2):
        write_raster(place / "labels" / f"{i}.tif", 1 + codes(i), left=600_000 + i * SIZE * 10)
    report = check(recipe(place, task=two))
    assert not report.problems
    only(report.warnings, "task.background: false")
    for i in range(2):
        write_raster(place / "labels" / f"{i}.tif", np.ones((SIZE, SIZE)), left=600_000 + i * SIZE * 10)
    only(check(recipe(place)).problems, "all labelled training pixels are 'cleared'")


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
    assert any("0.tif: has no valid pixel" in one for one in found)
    assert any("number of bands: " in one and "1.tif has 3" in one and "0.tif has 4" in one for one in found)


def test_an_alpha_band_is_noted(place):
    for i in range(2):
        pixels = np.full((4, SIZE, SIZE), 255)
        write_raster(
            place / "images" / f"{i}.tif", pixels, left=600_000 + i * SIZE * 10, photometric="RGB", alpha="YES"
        )
    report = check(recipe(place))
    (note,) = report.notes
    assert note.startswith(f"2 files, for example {place / 'images/0.tif'}: band 4 is alpha and used as mask")
    assert not report.warnings
    assert not check(recipe(place, data={"bands": [1, 2, 3, 4]})).notes


def test_alpha_bands_that_look_like_imagery_are_one_warning(place):
    random = np.random.default_rng(0)
    for i in range(2):
        pixels = random.integers(1, 255, (4, SIZE, SIZE))
        write_raster(
            place / "images" / f"{i}.tif", pixels, left=600_000 + i * SIZE * 10, photometric="RGB", alpha="YES"
        )
    report = check(recipe(place))
    assert not report.notes
    (warning,) = report.warnings
    assert warning.startswith(f"2 files, for example {place / 'images/0.tif'}: band 4 is tagged as alpha")
    assert "set data.bands: [1, 2, 3, 4]" in warning
    assert not check(recipe(place, data={"bands": [1, 2, 3, 4]})).warnings


def test_the_ranges_of_bands_are_in_the_report(place):
    """And undeclared no data at the rim, which is part of them until the recipe names it."""
    pixels = np.random.default_rng(0).integers(50, 90, (3, SIZE, SIZE))
    pixels[:, :5] = 0
    write_raster(place / "images" / "0.tif", pixels)
    report = check(recipe(place))
    (warning,) = [one for one in report.warnings if "fills all bands" in one]
    assert warning.endswith("set data.nodata: 0")
    everything = np.stack([pixels[1], np.full((SIZE, SIZE), 101)])
    assert f"2           0  {everything.mean():.6g}      101" in report.render()
    report = check(recipe(place, data={"nodata": 0, "offset": 1000}))
    assert not [one for one in report.warnings if "fills all bands" in one]
    assert report.scenes[0].ranges.min.min() == 1000 + pixels[:, 5:].min()


def write_other(place, left, *, size=SIZE):
    """A scene of its own folder that begins so many pixels from the first scene's left edge."""
    write_raster(place / "other" / "v.tif", np.full((3, size, size), 90), left=600_000 + 10 * left)
    write_raster(place / "truth" / "v.tif", codes(9)[:size, :size], left=600_000 + 10 * left)
    return {"images": str(place / "other"), "labels": str(place / "truth")}


def test_a_scene_in_training_and_validation_is_a_leak(place):
    both = {"images": str(place / "images" / "0.tif"), "labels": str(place / "labels" / "0.tif")}
    report = check(recipe(place, data={"val": both}))
    only(report.problems, "0.tif is listed for both training and validation, so none of its pixels would be used")
    only(report.warnings, "are adjacent, less than a tile")
    assert report.nearest[0].shared == SIZE * SIZE
    report = check(recipe(place, data={"train": both, "val": both}))
    assert len(report.problems) == 2
    assert "0.tif is listed for both training and validation" in report.problems[0]
    assert "no training pixel is left" in report.problems[1]
    with pytest.raises(DataError) as refused:
        train(recipe(place, data={"train": both, "val": both}), place / "run")
    assert str(refused.value) == f"{report.problems[0]} (and 1 more, which segkit check lists)"


@pytest.mark.parametrize("left", [-20, -7, 30])
def test_files_that_overlap_are_a_leak_with_its_pixels(place, left):
    report = check(recipe(place, data={"val": write_other(place, left)}))
    shared = sum(one.shared for one in report.nearest)
    assert shared == (SIZE - abs(left) if left < 0 else 2 * SIZE - left) * SIZE
    assert f"overlap in {report.nearest[0].shared} pixels" in report.problems[0]
    assert f"{report.nearest[0].shared} shared pixels" in report.render()


def test_neighbours_are_a_warning(place):
    report = check(recipe(place, data={"val": write_other(place, 2 * SIZE)}))
    assert not report.problems
    only(report.warnings, "are adjacent, less than a tile")
    report = check(recipe(place, data={"val": write_other(place, 2 * SIZE + 5)}, train={"tile_size": 16}))
    assert not report.problems
    only(report.warnings, "are 5 pixels apart")
    assert "distance of training and validation: 5 pixels (50 m), 0 shared pixels" in report.render()
    report = check(recipe(place, data={"val": write_other(place, 2 * SIZE + 400)}))
    assert (report.problems, report.warnings) == ((), ())
    assert "distance of training and validation: 400 pixels (4,001 m)" in report.render()


@pytest.mark.parametrize("val", [{"block": 12, "gap": 2}, {"by": "scene", "fold": "0/2", "gap": 3}])
def test_a_split_never_leaks_also_not_through_copies(place, val):
    for name in ("images", "labels"):
        (place / name / "2.tif").write_bytes((place / name / "1.tif").read_bytes())
    report = check(recipe(place, data={"val": val}, train={"tile_size": 16}))
    assert not report.problems
    assert all(not one.shared and one.pixels >= val["gap"] - 1e-6 for one in report.nearest)
    only(report.warnings, "less than a tile (16)")


def test_without_validation_there_is_nothing_to_leak(place):
    report = check(recipe(place, data={"val": None}, train={"checkpoint": "last"}))
    assert (report.problems, report.warnings, report.nearest) == ((), (), ())


def test_a_split_that_cannot_be_made(place):
    (place / "images" / "1.tif").unlink()
    only(check(recipe(place, data={"val": {"block": 512}})).problems, "a split needs 2")


def test_a_class_without_validation_pixels(place):
    write_raster(place / "other" / "v.tif", np.ones((3, SIZE, SIZE)), left=900_000)
    write_raster(place / "truth" / "v.tif", np.zeros((SIZE, SIZE)), left=900_000)
    report = check(recipe(place, data={"val": {"images": str(place / "other"), "labels": str(place / "truth")}}))
    assert not report.problems
    only(report.warnings, "'cleared' does not occur in validation")
    assert "val: 1 scene," in report.render()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_larger_than_scenes_and_scenes_without_crs(place):
    for i in range(2):
        write_raster(place / "images" / f"{i}.tif", np.ones((3, SIZE, SIZE)), crs=None)
        write_raster(place / "labels" / f"{i}.tif", codes(i), crs=None)
    report = check(recipe(place, train={"tile_size": 32}))
    assert not report.problems
    assert "tile_size is 32, the largest scene is 24 pixels wide" in report.warnings[0]
    assert "no CRS in 0, 1" in report.warnings[1]


# What is left after split and gap


def counted(areas):
    """Oracle: known pixels of background and of the class, from labels and masks of whole scenes."""
    found = np.zeros(2, dtype=int)
    for area in areas:
        tile, targets, inside = read_whole(area)
        known = targets[0][inside & tile.valid]
        found += [(known == category).sum() for category in range(2)]
    return found.tolist()


@pytest.mark.parametrize("val", [{"block": 12, "gap": 2}, {"block": 7, "gap": 0, "fraction": 0.5}, {"by": "scene"}, {}])
def test_pixels_are_counted_after_the_split(place, val):
    trial = recipe(place, data={"val": val})
    report, (training, validation) = check(trial), open_areas(trial)
    assert not report.problems
    assert [one.pixels for one in report.trains] == counted(training)
    assert [one.pixels for one in report.validates] == counted(validation)
    lines = report.render().splitlines()
    table = lines.index(next(line for line in lines if line.startswith("after the split")))
    for line, one, other in zip(lines[table + 1 :], report.trains, report.validates, strict=False):
        cells = [f"{side.pixels:,} {format_percent(side.share)}" for side in (one, other)]
        assert line.split() == " ".join([one.name, *cells]).split()


def test_a_split_without_training_pixels_is_a_problem_in_check_and_train(tmp_path):
    write_raster(tmp_path / "images" / "0.tif", np.full((3, 128, 128), 100))
    write_raster(tmp_path / "labels" / "0.tif", np.kron(codes(0), np.ones((6, 6)))[:128, :128])
    trial = recipe(tmp_path, data={"val": {"block": 64, "gap": 64}}, train={"tile_size": 256})
    report = check(trial)
    only(report.problems, "no training pixel is left: ")
    assert "inf" not in report.render()
    with pytest.raises(DataError) as refused:
        train(trial, tmp_path / "run", force=True)
    assert str(refused.value) == report.problems[0]
    # With the gap left open, the same blocks leave something.
    report = check(recipe(tmp_path, data={"val": {"block": 64}}, train={"tile_size": 256}))
    assert not report.problems
    assert "in blocks of 64 pixels with a gap of 16 pixels" in report.render()


def test_a_class_only_in_validation_is_a_problem(place):
    three = {"type": "multiclass", "classes": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]}
    for i in range(2):
        labels = codes(i).astype(np.uint8)
        labels[0, 0] = 2 - i  # "b" is a single pixel of the first scene
        write_raster(place / "labels" / f"{i}.tif", labels, left=600_000 + i * SIZE * 10)
    report = check(recipe(place, task=three, data={"val": {"block": 12, "gap": 2}}))
    assert (report.trains[2].pixels, report.validates[2].pixels) == (1, 0)
    assert not report.problems
    few, missing = report.warnings
    assert "few pixels train and validate: 'b' 1 and 0;" in few
    assert missing == "'b' does not occur in validation; its IoU and F1 will be undefined"
    report = check(recipe(place, task=three, data={"val": {"block": 12, "gap": 2, "fraction": 0.8}}))
    assert (report.trains[2].pixels, report.validates[2].pixels) == (0, 1)
    only(report.problems, "class 'b' has no training pixel: all of its 1 pixels are in validation areas or in the gap")
    # Of folds that together validate everything, one validates the pixel, and the others train it.
    folds = [{"block": 12, "gap": 2, "fold": f"{fold}/4"} for fold in range(4)]
    reports = [check(recipe(place, task=three, data={"val": val})) for val in folds]
    assert not any(report.problems for report in reports)
    said = [line for report in reports for line in report.warnings if "so this model cannot map it" in line]
    only(said, "class 'b' has no training pixel: all of its 1 pixels")


# Labels whose declared no data is a class


@pytest.mark.parametrize("declaring", [(0,), (0, 1)])
def test_masks_that_declare_background_as_no_data_are_refused_in_check_and_train(place, declaring):
    for i in declaring:
        write_raster(place / "labels" / f"{i}.tif", codes(i), left=600_000 + i * SIZE * 10, nodata=0)
    trial = recipe(place, model=SMALLEST, train={"tile_size": 8, "epochs": 1, "steps_per_epoch": 1})
    found = [one for one in check(trial).problems if "as no data" in one]
    assert len(found) == len(declaring)
    assert (
        f"0.tif declares 0 as no data, which is also the code of background ({1 - codes(0).mean():.1%} of the pixels)"
        in found[0]
    )
    with pytest.raises(DataError) as refused:
        train(trial, place / "run")
    assert str(refused.value).startswith(found[0])
    assert str(refused.value).endswith("; train anyway (--force)")
    assert not (place / "run").exists()

    labels = {"path": str(place / "labels"), "nodata": "code"}
    as_code = check(recipe(place, data={"train": {"images": str(place / "images"), "labels": labels}}))
    assert not as_code.problems
    assert [one.pixels for one in as_code.classes("train")][1] == sum(int(codes(i).sum()) for i in range(2))
    assert as_code.classes("train")[1].known == 2 * SIZE * SIZE


def test_force_trains_in_spite_of_problems(place, capsys, monkeypatch):
    skip_pictures(monkeypatch.setattr)
    write_raster(place / "labels" / "0.tif", codes(0), nodata=0)
    trial = recipe(place, model=SMALLEST, train={"tile_size": 8, "epochs": 1, "steps_per_epoch": 1, "batch_size": 2})
    run = train(trial, place / "run", force=True)
    assert run.model.is_file()
    (problem,) = check(trial).problems
    assert f"segkit: training in spite of this problem: {problem}" in capsys.readouterr().err
    compared = {"seeds": (0,), "vary": {"train.label_smoothing": [0.0, 0.1]}}
    with pytest.raises(DataError) as refused:
        compare(trial, place / "compared", **compared)
    assert problem in str(refused.value)
    assert not (place / "compared").exists()


def test_scores_against_ambiguous_labels_are_refused(place):
    label = write_raster(place / "labels" / "0.tif", codes(0), nodata=0)
    map_ = write_raster(place / "maps" / "0.tif", codes(0))
    (place / "names.csv").write_text("value,name,background\n0,background,yes\n1,cleared,no\n")
    with pytest.raises(LabelError, match=r"0 as no data, which is also the code of background.*--nodata code"):
        evaluate(map_, None, label, class_names=place / "names.csv")
    for nodata, pixels in (("code", SIZE * SIZE), ("ignore", int(codes(0).sum()))):
        source = LabelSource(path=str(label), nodata=nodata)
        assert evaluate(map_, None, source, class_names=place / "names.csv")["pixels"] == pixels


def test_tiles_too_small_for_the_network_are_a_warning(place, with_network):
    """Five stages halve five times: 32 pixels; three: 8."""
    deep = {"encoder": "tu-resnet10t", "options": {"decoder_channels": [16, 8, 8, 8, 8]}}
    report = check(recipe(place, model=deep, train={"steps_per_epoch": 20}))
    only(report.warnings, "less than 4 strides of unet with tu-resnet10t (32 pixels each)")
    # The scenes are smaller than four strides.
    only(report.warnings, f"Using tiles of {-(-SIZE // 32) * 32} pixels")


def test_a_recipe_may_be_named_by_its_file(place):
    written = place / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe(place).to_dict()))
    assert check(written) == check(recipe(place))


def test_a_network_that_cannot_be_built_is_a_problem(place, with_network):
    only(check(recipe(place, model={"encoder": "resnet13"})).problems, "model.encoder: 'resnet13' is not known")


SHALLOW = {"encoder_depth": 2, "decoder_channels": [8, 8]}
MODELS = {
    "option of a learner": ({"architecture": "forest", "options": {"trees": 5}}, "model.options.trees: forest has no"),
    "value of an option": ({"architecture": "svm", "options": {"C": "much"}}, "model.options: svm cannot be fitted: "),
    "band of a feature": (
        {"architecture": "lda", "features": {"indices": [[1, 9]]}}, "model.features.indices: there is no band 9",
    ),
    "option of a network": (
        {"encoder": "resnet18", "options": {"depth": 3}}, "model.options.depth: unet has no such option",
    ),
    "value of a network's option": (
        {**SMALLEST, "options": {"encoder_depth": 3, "decoder_channels": [8]}}, "cannot be built: ",
    ),
    "no model": ({**SMALLEST, "start_from": "{}/none.safetensors"}, "none.safetensors"),
    "another network": (
        {**SMALLEST, "encoder": "tu-resnet18", "start_from": "{}/source.safetensors"}, "is a unet with",
    ),
    "other options, frozen": (
        {**SMALLEST, "options": SHALLOW, "start_from": "{}/source.safetensors"},
        "train.freeze: the head or the decoder would stay random",
    ),
    "no weights": ({**SMALLEST, "encoder_weights": "{}/none.pth"}, "none.pth"),
    "no file of weights": ({**SMALLEST, "encoder_weights": "{}/text.pth"}, "text.pth: not a file of weights"),
    "weights of another encoder": (
        {**SMALLEST, "encoder": "resnet18", "options": {}, "encoder_weights": "{}/source.safetensors"},
        "does not fit the encoder",
    ),
    "no published weights": (
        {**SMALLEST, "encoder": "tu-resnet50t", "encoder_weights": "imagenet"},
        "model.encoder_weights: there are no published weights imagenet of the encoder tu-resnet50t",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "said"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_trained_is_the_problem_that_train_reports(place, with_network, model, said):
    if any("source" in str(value) for value in model.values()):
        segmenter(place, bands=3).save(place / "source.safetensors")
    (place / "text.pth").write_text("no weights")
    model = {key: value.format(place) if isinstance(value, str) else value for key, value in model.items()}
    frozen = {"freeze": ["decoder", "head"]} if "freeze" in said else {}
    wanted = recipe(place, model=model, train={"tile_size": 32, "epochs": 1, **frozen})
    [problem] = check(wanted).problems
    assert said in problem
    with pytest.raises(SegkitError) as refused:
        train(wanted, place / "run")
    assert str(refused.value) == problem


def test_bands_of_published_weights_are_checked_without_a_download(place, with_network):
    published = {"encoder": "resnet18", "encoder_weights": "imagenet", "encoder_bands": ["red", "green", "blue"]}
    only(check(recipe(place, model=published)).problems, "model.encoder_bands: none of red, green, blue is a band")
    only(check(recipe(place, model=published | {"encoder_bands": ["1"]})).problems, "model.encoder_bands names 1")
    assert not check(recipe(place, model=published | {"encoder_bands": [3, 2, 1]})).problems


def test_the_model_is_checked_also_if_the_data_has_problems(place, with_network):
    write_raster(place / "labels" / "1.tif", codes(1), left=0)
    found = check(recipe(place, model={"architecture": "forest", "options": {"trees": 5}})).problems
    assert [any(said in one for one in found) for said in ("1.tif is on another grid", "model.options.trees")] == [
        True
    ] * 2
