"""`segkit init`: the recipe says what the files say, and check accepts it."""

import importlib
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from places import SHARED

from segkit.data.check import check
from segkit.data.drafting.draft import init
from segkit.errors import DataError, LabelError, OutputExistsError, SegkitError, UsageError
from segkit.recipe.schema import Recipe

LEFT, TOP = 500_000, 9_000_000
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of PNG files
NETWORK = importlib.import_module("segkit.data.check")._check_network


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """To build the network takes a second; the tests of real data do it."""
    monkeypatch.setattr("segkit.data.check._check_network", lambda *_: ([], []))


def write(path, values, *, column=0, row=0, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    values = values if values.ndim == 3 else values[None]
    place = {"crs": "EPSG:32721", "transform": Affine(10, 0, LEFT + 10 * column, 0, -10, TOP - 10 * row)}
    with rasterio.open(
        path, "w", driver="PNG" if path.suffix == ".png" else "GTiff", count=len(values), height=values.shape[1],
        width=values.shape[2], dtype=values.dtype, **(({} if path.suffix == ".png" else place) | profile),
    ) as file:  # fmt: skip
        file.write(values)
    return path


def image(seed=0, *, bands=3, side=96):
    return np.random.default_rng(seed).integers(1, 200, (bands, side, side)).astype(np.uint8)


def blobs(codes, seed=0, side=96):
    """Labels in squares of 8 pixels."""
    cells = np.random.default_rng(seed).choice(codes, (side // 8, side // 8))
    return np.kron(cells, np.ones((8, 8))).astype(np.uint8)


def drafted(tmp_path, labels="labels", images="images", **options):
    """Write a recipe; check accepts it, and what it trains on is what init said."""
    draft = init(tmp_path / images, None if labels is None else tmp_path / labels, tmp_path / "r.yaml", **options)
    report = check(tmp_path / "r.yaml")
    assert not report.problems
    assert not [one for one in report.warnings if "less than a tile" in one]
    assert (report.trains, report.validates) == (draft.trains, draft.validates)
    return draft


def of_class(draft):
    return {one.name: (one.value, one.color) for one in draft.recipe.task.classes}


def pairs(tmp_path, codes, *, number=2, suffix=".tif", **profile):
    for seed in range(number):
        write(tmp_path / "images" / f"{seed}.tif", image(seed), column=200 * seed)
        values = codes(seed) if callable(codes) else blobs(codes, seed)
        write(tmp_path / "labels" / f"{seed}{suffix}", values, column=200 * seed, **profile)


def test_one_code_and_zero_are_a_binary_task(tmp_path):
    pairs(tmp_path, [0, 1])
    spare = write(tmp_path / "images" / "spare.tif", image(9), column=900)
    draft = drafted(tmp_path)
    assert draft.recipe.task.type == "binary"
    assert of_class(draft) == {"class_1": (1, "#d55e00")}
    assert draft.notes[0].startswith(f"1 file has no matching image or label, such as {spare}; labels are paired")
    counted = sum((blobs([0, 1], seed) == 1).sum() for seed in range(2))
    text = (tmp_path / "r.yaml").read_text()
    assert f"class_1 {counted:,} pixels" in draft.labels
    assert "images: images" in text  # relative to the recipe
    assert "# - code 0 is background" in text


def test_masks_of_0_and_255_are_background_and_a_class(tmp_path):
    pairs(tmp_path, [0, 255], suffix=".png")
    draft = drafted(tmp_path)
    assert draft.recipe.data.train.labels.values == {"0": "background", "255": "class_1"}


def test_declared_no_data_and_255_are_unlabelled(tmp_path):
    pairs(tmp_path, [0, 1, 2, 255], nodata=0)
    draft = drafted(tmp_path)
    assert (draft.recipe.task.background, draft.recipe.data.ignore) == (False, (255,))
    assert [one.value for one in draft.recipe.task.classes] == [1, 2]


def test_zero_as_the_only_other_code_is_background_though_declared_as_no_data(tmp_path):
    pairs(tmp_path, [0, 1], nodata=0)
    draft = drafted(tmp_path)
    assert draft.recipe.data.train.labels.nodata == "code"
    assert draft.trains[0].name == "background"


@pytest.mark.parametrize(("share", "background"), [(0.5, True), (0.96, False)])
def test_zero_is_background_unless_nearly_everything_is_zero(tmp_path, share, background):
    def codes(seed):
        cells = np.random.default_rng(seed).choice([0, 1, 2], (12, 12), p=[share, (1 - share) / 2, (1 - share) / 2])
        cells[0, 0], cells[5, 5], cells[11, 0], cells[0, 11] = 1, 2, 1, 2
        return np.kron(cells, np.ones((8, 8))).astype(np.uint8)

    pairs(tmp_path, codes, number=4)
    draft = drafted(tmp_path)
    assert draft.recipe.task.background is background
    assert draft.recipe.data.ignore == (() if background else (0,))


def test_colour_tables_and_names_of_the_files_are_kept(tmp_path):
    pairs(tmp_path, [0, 3, 5])
    for seed in range(2):
        with rasterio.open(tmp_path / "labels" / f"{seed}.tif", "r+") as file:
            file.write_colormap(1, {0: (0, 0, 0), 3: (1, 2, 3), 5: (250, 0, 0)})
        (tmp_path / "labels" / f"{seed}.tif.aux.xml").write_text(
            '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category>unknown</Category><Category/><Category/>'
            "<Category>lake</Category><Category/><Category>wood</Category></CategoryNames></PAMRasterBand></PAMDataset>"
        )
    draft = drafted(tmp_path)
    assert of_class(draft) == {"lake": (3, "#010203"), "wood": (5, "#fa0000")}
    assert draft.recipe.data.ignore == (0,)  # "unknown"


def test_colours_become_classes_of_these_colours(tmp_path):
    colors = np.array([[0, 0, 0], [255, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=np.uint8)
    pairs(tmp_path, lambda seed: np.moveaxis(colors[blobs([0, 1, 2, 3], seed)], -1, 0), suffix=".png")
    draft = drafted(tmp_path)
    assert of_class(draft) == {
        "color_0a141e": (2, "#0a141e"), "blue": (1, "#0000ff"), "yellow": (3, "#ffff00")
    }  # fmt: skip
    assert draft.recipe.data.train.labels.values["#000000"] is None


@pytest.mark.parametrize("classes", [2, 3])  # three could be red, green and blue
def test_a_band_of_0_and_1_for_each_class_is_multilabel(tmp_path, classes):
    pairs(tmp_path, lambda seed: np.stack([blobs([0, 1], 9 * number + seed) for number in range(classes)]))
    draft = drafted(tmp_path)
    assert draft.recipe.task.type == "multilabel"


def features(path, kinds, *, size=80, crs=32721, points=False, shift=0.0, down=0.0, **columns):
    """Squares (or points) on a lattice of 5 x 5 places of a scene of 96 pixels."""
    shapes = []
    for number in range(len(kinds)):
        x, y = LEFT + 20 + 180 * (number % 5) + shift, TOP - 20 - 180 * (number // 5) - down
        shapes.append(shapely.Point(x, y) if points else shapely.box(x, y - size, x + size, y))
    frame = geopandas.GeoDataFrame({**columns, "kind": kinds}, geometry=shapes, crs=crs)
    path.parent.mkdir(exist_ok=True)
    frame.to_file(path)
    return path


KINDS = ["water", "forest", "urban", "water", "forest"] * 4


def test_the_field_of_polygons_whose_values_repeat_is_the_class(tmp_path):
    write(tmp_path / "images" / "a.tif", image())
    features(
        tmp_path / "p.gpkg", KINDS, number=[*range(20)], area_m2=[6400.0] * 20, date=["2020-01-01", "2021-01-01"] * 10,
        code=[{"water": 4, "forest": 2, "urban": 7}[kind] for kind in KINDS],
    )  # fmt: skip
    draft = drafted(tmp_path, "p.gpkg")
    labels = draft.recipe.data.train.labels
    assert (labels.field, labels.outside_polygons, draft.recipe.data.val.by) == ("kind", "ignore", "polygon")
    assert of_class(draft) == {"forest": (2, "#1b7837"), "water": (4, "#2b83ba"), "urban": (7, "#c0392b")}
    assert any("its values repeat: 3 values of 20 polygons" in note for note in draft.notes)
    other = init(tmp_path / "images", tmp_path / "p.gpkg", tmp_path / "other.yaml", field="code")
    assert {one.name: one.value for one in other.recipe.task.classes} == {"class_2": 2, "class_4": 4, "class_7": 7}
    with pytest.raises(LabelError, match=r"has no field 'x'; its fields are number, area_m2, date, code, kind"):
        init(tmp_path / "images", tmp_path / "p.gpkg", tmp_path / "x.yaml", field="x")


def test_values_of_one_polygon_and_without_a_value_are_unlabelled(tmp_path):
    write(tmp_path / "images" / "a.tif", image())
    features(tmp_path / "p.gpkg", [*KINDS, "marsh", None, "unknown"])
    draft = drafted(tmp_path, "p.gpkg")
    values = draft.recipe.data.train.labels.values
    assert {name for name, meaning in values.items() if meaning is None} == {"marsh", "", "unknown"}
    assert [*of_class(draft)] == ["forest", "urban", "water"]


def test_polygons_of_one_kind_are_a_class_and_background(tmp_path):
    write(tmp_path / "images" / "a.tif", image())
    features(tmp_path / "fields.gpkg", ["field"] * 20)
    draft = drafted(tmp_path, "fields.gpkg")
    assert (draft.recipe.task.type, draft.recipe.data.train.labels.outside_polygons) == ("binary", None)


def test_polygons_of_different_classes_that_overlap_are_multilabel(tmp_path):
    write(tmp_path / "images" / "a.tif", image())
    features(tmp_path / "p.gpkg", KINDS, size=240)
    draft = drafted(tmp_path, "p.gpkg")
    assert draft.recipe.task.type == "multilabel"


@pytest.mark.parametrize("suffix", [".gpkg", ".csv"])
def test_points_are_split_by_their_distance(tmp_path, suffix):
    write(tmp_path / "images" / "a.tif", image())
    path = features(tmp_path / "p.gpkg", KINDS + KINDS[:5], points=True)
    if suffix == ".csv":
        points = geopandas.read_file(path)
        path = tmp_path / "p.csv"
        path.write_text(
            "x,y,kind\n"
            + "".join(f"{one.x},{one.y},{kind}\n" for one, kind in zip(points.geometry, points.kind, strict=True))
        )
    draft = drafted(tmp_path, path.name)
    rule = draft.recipe.data.val
    assert (rule.by, rule.distance) == ("point", 100)  # ten pixels
    assert draft.recipe.data.train.labels.crs == ("EPSG:32721" if suffix == ".csv" else None)


def test_images_and_labels_in_one_folder_are_told_apart_by_name(tmp_path):
    for seed in range(2):
        write(tmp_path / "all" / f"{seed}_sat.tif", image(seed), column=200 * seed)
        write(tmp_path / "all" / f"{seed}_mask.tif", blobs([0, 1], seed), column=200 * seed)
    for labels in ("all", None):
        draft = drafted(tmp_path, labels, "all", overwrite=True)
        train = draft.recipe.data.train
        assert (train.pair, train.labels.pair) == ("{}_sat", "{}_mask")


@pytest.mark.parametrize("labels", ["all", None])
def test_labels_named_like_their_image_and_more_are_no_images(tmp_path, labels):
    for seed in range(2):
        write(tmp_path / "all" / f"{seed}.tif", image(seed), column=200 * seed)
        write(tmp_path / "all" / f"{seed}_mask.tif", blobs([0, 1], seed), column=200 * seed)
    train = drafted(tmp_path, labels, "all").recipe.data.train
    assert [Path(file).name for file in train.images] == ["0.tif", "1.tif"]
    assert train.labels.pair == "{}_mask"


@pytest.mark.parametrize(("names", "found"), [("p", "p.gpkg"), ("01", "*.gpkg")])
def test_polygons_in_the_folder_of_the_images_are_the_labels(tmp_path, names, found):
    """One file is of all images; otherwise each is of the image with its name."""
    for seed in range(2):
        write(tmp_path / "all" / f"{seed}.tif", image(seed), row=200 * seed)
    for name in names:
        features(tmp_path / "all" / f"{name}.gpkg", KINDS, down=2000 * (name == "1"))
    assert drafted(tmp_path, "all", "all").recipe.data.train.labels.path == str(tmp_path / "all" / found)


def test_names_in_two_folders_are_paired_by_what_they_share(tmp_path):
    for seed in range(2):
        write(tmp_path / "images" / f"{seed}_sat.tif", image(seed), column=200 * seed)
        write(tmp_path / "labels" / f"{seed}_mask.tif", blobs([0, 1], seed), column=200 * seed)
    draft = drafted(tmp_path)
    assert (draft.recipe.data.train.pair, draft.recipe.data.train.labels.pair) == ("{}_sat", "{}_mask")
    assert "images ({}_sat) and labels ({}_mask) are paired by the part {} of their names" in draft.notes


def test_rasters_unlike_the_others_are_no_images(tmp_path):
    pairs(tmp_path, [0, 1])
    write(tmp_path / "images" / "elevation.tif", image(bands=1))
    draft = drafted(tmp_path)
    assert "not used as images: elevation.tif (labels, or another number of bands)" in draft.notes
    with pytest.raises(DataError, match=r"0\.tif: is given as image and as label; give the images first"):
        init(tmp_path / "labels/0.tif", tmp_path / "labels/0.tif", tmp_path / "q.yaml")


def test_dates_of_one_place_are_stacked(tmp_path):
    for day in ("20200101", "20200301"):
        write(tmp_path / "images" / f"north_{day}.tif", image(int(day) % 7))
    features(tmp_path / "p.gpkg", KINDS)
    draft = drafted(tmp_path, "p.gpkg")
    assert draft.recipe.data.train.date_series.pattern == "{date:%Y%m%d}"
    assert len(check(draft.recipe).scenes[0].bands) == 6
    write(tmp_path / "images" / "south_20200101.tif", image(3), row=200)
    draft = init(tmp_path / "images", tmp_path / "p.gpkg", tmp_path / "r.yaml", overwrite=True)
    assert any("and places with fewer are left out" in note for note in draft.notes)
    assert [len(scene.bands) for scene in check(draft.recipe).scenes] == [6]


def test_files_of_one_band_are_stacked(tmp_path):
    for number, band in enumerate(image(bands=4), 1):
        write(tmp_path / "images" / f"scene_B{number}.tif", band)
    features(tmp_path / "p.gpkg", KINDS)
    assert len(check(drafted(tmp_path, "p.gpkg").recipe).scenes[0].bands) == 4


def test_files_side_by_side_are_one_scene_and_others_are_not(tmp_path):
    whole = image()
    for row in (0, 48):
        for column in (0, 48):
            part = whole[:, row : row + 48, column : column + 48]
            write(tmp_path / "images" / f"{row}_{column}.tif", part, row=row, column=column)
    features(tmp_path / "p.gpkg", KINDS)
    draft = drafted(tmp_path, "p.gpkg")
    assert "4 images adjoin, so they are one scene (a mosaic)" in draft.notes
    assert check(draft.recipe).scenes[0].grid.shape == (96, 96)
    pairs(tmp_path / "apart", [0, 1])
    features(tmp_path / "apart" / "p.gpkg", KINDS)
    assert isinstance(
        init(tmp_path / "apart/images", tmp_path / "apart/p.gpkg", tmp_path / "q.yaml").recipe.data.train.images, str
    )


def test_masks_constant_bands_and_zeros_at_the_rim_are_left_out(tmp_path):
    pixels = image(bands=6)
    pixels[4] = blobs([0, 1], 5)
    pixels[5] = 7
    pixels[:, :4] = 0
    pixels[5] = 7
    pixels[5, :4] = 0
    write(tmp_path / "images" / "a.tif", pixels)
    write(tmp_path / "labels" / "a.tif", blobs([0, 1]))
    data = drafted(tmp_path).recipe.data
    assert (data.bands, data.nodata) == ((1, 2, 3, 4), 0)


def test_without_labels_the_recipe_says_what_to_draw(tmp_path):
    write(tmp_path / "images" / "a.tif", image())
    draft = init(tmp_path / "images", None, tmp_path / "r.yaml")
    assert draft.trains == ()
    text = (tmp_path / "r.yaml").read_text()
    assert "Draw polygons in a GIS" in text
    assert "EPSG:32721" in text
    assert f"segkit init {tmp_path}/images {tmp_path}/polygons.gpkg -o {tmp_path}/r.yaml --overwrite" in draft.render()
    [problem] = check(tmp_path / "r.yaml").problems
    assert "polygons.gpkg" in problem
    features(tmp_path / "polygons.gpkg", KINDS)
    assert drafted(tmp_path, "polygons.gpkg", overwrite=True).recipe.task.classes[1].name == "urban"


def test_wrong_input_is_one_line_and_writes_nothing(tmp_path):
    pairs(tmp_path, [0, 1])
    scene = tmp_path / "images" / "0.tif"
    before = scene.read_bytes()
    with pytest.raises(UsageError, match=r"ends in \.yaml"):
        init(scene, tmp_path / "labels" / "0.tif", scene, overwrite=True)
    assert scene.read_bytes() == before
    with pytest.raises(LabelError, match="too many for classes"):
        init(tmp_path / "labels", tmp_path / "images", tmp_path / "r.yaml")
    with pytest.raises(LabelError, match="no two classes to tell apart"):
        init(scene, write(tmp_path / "one.tif", blobs([3])), tmp_path / "r.yaml")
    with pytest.raises(UsageError, match="--field is for polygons"):
        init(scene, tmp_path / "labels" / "0.tif", tmp_path / "r.yaml", field="kind")
    with pytest.raises(DataError, match="their names do not tell which is which"):
        init(tmp_path / "images", tmp_path / "images", tmp_path / "r.yaml")
    features(tmp_path / "far.gpkg", KINDS, shift=1e5)
    with pytest.raises(LabelError, match=r"no label covers a scene: .*has the extent"):
        init(scene, tmp_path / "far.gpkg", tmp_path / "r.yaml")
    with pytest.raises(SegkitError, match="no such file"):
        init(tmp_path / "nowhere", None, tmp_path / "r.yaml")
    assert not (tmp_path / "r.yaml").exists()
    (tmp_path / "r.yaml").write_text("mine")
    with pytest.raises(OutputExistsError):
        init(scene, tmp_path / "labels" / "0.tif", tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text() == "mine"


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data")
@pytest.mark.parametrize(
    ("images", "labels", "classes"),
    [
        ("mexico/LE70220491999322EDC01_stack.gtif", "mexico/training_data.shp", 5),
        ("zurich/images", "zurich/labels", 1),
        ("leipzig/leipzig_raster.tif", "leipzig/leipzig_points.gpkg", 4),
    ],
)
def test_recipes_for_real_data_pass_check(tmp_path, monkeypatch, images, labels, classes):
    monkeypatch.setattr("segkit.data.check._check_network", NETWORK)
    draft = init(SHARED / images, SHARED / labels, tmp_path / "r.yaml")
    assert len(draft.recipe.task.classes) == classes
    assert not check(Recipe.load(tmp_path / "r.yaml")).problems
