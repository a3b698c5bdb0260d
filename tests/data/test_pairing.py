import itertools
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from products import LEFT, TOP, item, random_bands, write_safe
from rasterio.windows import Window
from synthetic import recipe_for

from segkit.data.cache import Cache, list_entries
from segkit.data.pairing import open_samples, pair_files
from segkit.errors import DataError, GridError, MissingFileError
from segkit.models.segmenter import Segmenter
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Data, DatasetSource
from segkit.task import LandCoverClass, Task

TASK = Task("binary", (LandCoverClass("cleared", 1),))


def write_raster(path, value=1, *, bands=1, left=600_000):
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=4, width=5, dtype="uint8", crs="EPSG:32622",
        transform=Affine(10, 0, left, 0, -10, 200_000),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((bands, 4, 5), value, dtype=np.uint8))
    return str(path)


def write_polygon(path, left):
    box = shapely.box(left, 199_960, left + 50, 200_000)
    pyogrio.raw.write(path, shapely.to_wkb(np.array([box])), [np.array(["cleared"])], ["kind"], geometry_type="Polygon",
                      crs="EPSG:32622")  # fmt: skip
    return str(path)


def opened(source, **options):
    return open_samples(source, Data(train=source, **options), TASK)


def names(source):
    return [one.name for one in pair_files(source).pairs]


@settings(max_examples=40)
@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_files_pair_by_stem_and_the_others_are_listed(tmp_path_factory, images, labels):
    folder = tmp_path_factory.mktemp("s")
    for kind, stems, suffix in (("images", images, ".tif"), ("labels", labels, ".TIF")):
        (folder / kind).mkdir()
        for stem in stems:
            (folder / kind / (stem + suffix)).touch()
        (folder / kind / "a.tif.aux.xml").touch()
        (folder / kind / "._a.tif").touch()
    source = DatasetSource(images=str(folder / "images"), labels=str(folder / "labels"))
    if not images & labels:
        with pytest.raises(DataError, match="no image and label have the same file name"):
            pair_files(source)
        return
    found = pair_files(source)
    assert [one.name for one in found.pairs] == sorted(images & labels)
    assert all(Path(one.labels[0].path).stem == one.images[0].stem for one in found.pairs)
    assert {path.stem for path in found.unmatched} == images ^ labels
    assert len(found.unmatched) == len(images ^ labels)


def test_folder_file_glob_and_list_find_the_same(tmp_path):
    files = [write_raster(tmp_path / "images" / f"{stem}.tif") for stem in "ab"]
    labels = [write_raster(tmp_path / "labels" / f"{stem}.tif") for stem in "ab"]
    folder = pair_files(DatasetSource(images=str(tmp_path / "images"), labels=str(tmp_path / "labels")))
    assert (
        pair_files(DatasetSource(images=str(tmp_path / "images" / "*"), labels=str(tmp_path / "l*" / "*.tif")))
        == folder
    )
    assert pair_files(DatasetSource(images=files, labels=labels)) == folder
    assert pair_files(DatasetSource(images=files, labels=LabelSource(path=labels))) == folder
    assert names(DatasetSource(images=files[0], labels=labels[0])) == ["a"]
    with pytest.raises(DataError, match="two files have the name 'a'"):
        pair_files(DatasetSource(images=[files[0], labels[0]], labels=labels))


def test_a_single_image_and_label_file_are_paired_whatever_their_names(tmp_path):
    image, label = write_raster(tmp_path / "i" / "scene.tif"), write_raster(tmp_path / "l" / "truth.tif")
    for images in (image, [image], [[image, image]]):
        found = pair_files(DatasetSource(images=images, labels=label))
        assert found.pairs[0].labels[0].path == label
        assert not found.unmatched
    assert pair_files(DatasetSource(images=str(tmp_path / "i"), labels=label)).pairs[0].labels[0].path == label
    with pytest.raises(DataError, match="no image and label have the same file name"):
        pair_files(DatasetSource(images=image, labels=str(tmp_path / "l")))


def test_a_list_of_lists_stacks_files(tmp_path):
    red, nir = write_raster(tmp_path / "d" / "s_1.tif", 3), write_raster(tmp_path / "d" / "s_2.tif", 4, bands=2)
    label = write_raster(tmp_path / "l.tif")
    sample = opened(DatasetSource(images=[[nir, red]], labels=label), bands=[1, 3]).samples[0]
    assert sample.scene.read().pixels[:, 0, 0].tolist() == [4, 3]
    globbed = pair_files(DatasetSource(images=[[str(tmp_path / "d" / "s_*.tif")]], labels=label))
    assert [path.name for path in globbed.pairs[0].images] == ["s_1.tif", "s_2.tif"]


def test_a_table_has_one_row_per_scene_and_paths_relative_to_its_folder(tmp_path):
    for name in ("d/x1.tif", "d/x2.tif", "d/y1.tif", "d/l.tif"):
        write_raster(tmp_path / name)
    table = tmp_path / "scenes.csv"
    table.write_text("\ufeffname,image1,image2,label\nnorth,d/x1.tif,d/x2.tif,d/l.tif\n,d/y1.tif,,\n", encoding="utf-8")
    found = pair_files(DatasetSource(table=str(table)))
    assert [one.name for one in found.pairs] == ["north"]
    assert [path.name for path in found.pairs[0].images] == ["x1.tif", "x2.tif"]
    assert [path.name for path in found.unmatched] == ["y1.tif"]
    both = pair_files(DatasetSource(table=str(table), labels=write_polygon(tmp_path / "p.gpkg", 600_000)))
    assert [one.name for one in both.pairs] == ["north", "y1"]
    assert opened(DatasetSource(table=str(table))).samples[0].labels is not None
    for text, said in (
        ("picture,label\na,b\n", "has the columns picture, label; it needs image"),
        ("image,label\n", "has no rows"),
        ("image,label\n,b\n", "line 2: no image"),
        ("image,label,mask\na,b,b\n", "has the columns label and mask"),
        (
            "image,label,weight\na,b,2\na,b,often\n",
            r"scenes\.csv: line 3: weight is 'often'; it must be a positive",
        ),
        ("image,label,weight\na,b,0\n", "line 2: weight is '0'"),
        ("image,label,weight\na,b,nan\n", "line 2: weight is 'nan'"),
        ("image,label,weight\na,b,inf\n", "line 2: weight is 'inf'"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=said):
            pair_files(DatasetSource(table=str(table)))


def test_a_table_may_have_weights_and_other_columns(tmp_path):
    for name in ("d/x.tif", "d/y.tif", "d/l.tif"):
        write_raster(tmp_path / name)
    table = tmp_path / "scenes.csv"
    table.write_text(
        "set,image,mask,weight,year\nval,d/x.tif,d/l.tif,2.5,2019\n,d/y.tif,d/l.tif,,\nval,d/x.tif,d/l.tif\n"
    )
    pairs = pair_files(DatasetSource(table=str(table))).pairs
    samples = opened(DatasetSource(table=str(table))).samples
    for found in (pairs, samples):
        assert [one.weight for one in found] == [2.5, 1, 1]
        assert [one.row for one in found] == [
            {"set": "val", "year": "2019"},
            {"set": "", "year": ""},
            {"set": "val", "year": ""},
        ]
    assert [Path(one.labels[0].path).name for one in pairs] == ["l.tif"] * 3
    assert hash(pairs[0]) == hash(replace(pairs[0], row={}))
    plain = opened(DatasetSource(images=str(tmp_path / "d" / "x.tif"), labels=str(tmp_path / "d" / "l.tif"))).samples[0]
    assert (plain.weight, plain.row) == (1, {})


def test_labels_without_a_path_are_the_options_for_the_labels_of_the_table(tmp_path):
    for name in ("d/x.tif", "d/l.tif"):
        write_raster(tmp_path / name)
    table = tmp_path / "scenes.csv"
    table.write_text("image,label,image_by\nd/x.tif,d/l.tif,us\n")
    roads = write_polygon(tmp_path / "p.gpkg", 600_000)
    how = LabelSource(values={"0": "background"})
    (found,) = pair_files(DatasetSource(table=str(table), labels=how)).pairs
    assert found.labels == (LabelSource(path=str(tmp_path / "d" / "l.tif"), values={"0": "background"}),)
    assert (len(found.images), found.row) == (1, {"image_by": "us"})
    (found,) = pair_files(DatasetSource(table=str(table), labels=(how, LabelSource(path=roads)))).pairs
    assert found.labels[0].values == {"0": "background"}
    table.write_text("image,labels\nd/x.tif,d/l.tif\n")
    with pytest.raises(DataError, match=r"scenes\.csv: has no column label, and the recipe's labels have no path"):
        pair_files(DatasetSource(table=str(table), labels=how))


def test_published_tables(shared):
    folder = shared / "enmap_potsdam"
    with (folder / "train_files.csv").open() as file:
        lines = file.read().split()[1:]
    pairs = pair_files(DatasetSource(table=str(folder / "train_files.csv"))).pairs
    found = [
        (str(one.images[0].relative_to(folder)), str(Path(one.labels[0].path).relative_to(folder))) for one in pairs
    ]
    assert found == [tuple(line.split(",")) for line in lines]


def test_several_label_sources_are_paired_separately(tmp_path):
    for stem in "abc":
        write_raster(tmp_path / "i" / f"{stem}.tif", left=600_000 + 1_000 * "abc".index(stem))
    write_raster(tmp_path / "l" / "a.tif")
    write_raster(tmp_path / "m" / "b.tif", left=601_000)
    strange = write_raster(tmp_path / "m" / "z.tif")
    first, second = ({"path": str(tmp_path / name)} for name in "lm")
    polygons = {"path": write_polygon(tmp_path / "p.gpkg", 600_000), "classes": ["cleared"]}
    images = str(tmp_path / "i")

    def partners(found):
        return {one.name: [Path(labels.path).name for labels in one.labels] for one in found.pairs}

    two = pair_files(DatasetSource(images=images, labels=[first, second]))
    assert partners(two) == {"a": ["a.tif"], "b": ["b.tif"]}
    assert [path.name for path in two.unmatched] == ["c.tif", "z.tif"]
    three = DatasetSource(images=images, labels=[first, polygons, second])
    assert partners(pair_files(three)) == {"a": ["a.tif", "p.gpkg"], "b": ["p.gpkg", "b.tif"], "c": ["p.gpkg"]}
    assert pair_files(three).pairs[0].labels[1] == LabelSource.model_validate_json(json.dumps(polygons))
    resolved = opened(three)  # no polygon meets b and c
    assert [sample.scene.name for sample in resolved.samples] == ["a", "b"]
    assert [path.name for path in resolved.unmatched] == ["z.tif", "c.tif"]
    assert "p.gpkg" in resolved.samples[0].labels.name
    with pytest.raises(DataError, match=r"no image and label have the same file name.*z\.tif"):
        pair_files(DatasetSource(images=images, labels=[first, {"path": strange.replace("z.tif", "z*")}]))


def test_hard_and_soft_labels_do_not_mix(tmp_path):
    for stem in "ab":
        write_raster(tmp_path / "i" / f"{stem}.tif")
    table = tmp_path / "scenes.csv"
    write_raster(tmp_path / "l" / "b.tif")
    labels = {"path": str(tmp_path / "l"), "fractions": True}
    assert opened(DatasetSource(images=str(tmp_path / "i"), labels=labels)).samples[0].labels.soft
    table.write_text("image,label\ni/a.tif,l/b.tif\ni/b.tif,\n")
    with pytest.raises(DataError, match=r"l/b\.tif holds fractions, .*l/b\.tif holds codes"):
        opened(DatasetSource(table=str(table), labels=labels))


def test_training_and_prediction_read_scenes_alike(tmp_path):
    image = write_raster(tmp_path / "i" / "a.tif", 20)
    with rasterio.open(image, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,), (-3.0,)
    write_raster(tmp_path / "l" / "a.tif")
    for scaled, value in ((False, 20), (True, 7)):
        data = {"train": {"images": image, "labels": str(tmp_path / "l" / "a.tif")}, "apply_scale_offset": scaled}
        recipe = recipe_for(tmp_path, "binary", data=data)
        sample = open_samples(recipe.data.train, recipe.data, TASK).samples[0]
        scene = Segmenter(recipe, [0.0], [1.0], ["b"], pretrained=False).open_scene(image)
        assert scene == sample.scene
        assert (scene.read().pixels == value).all()


def test_named_polygons_serve_every_scene_they_intersect(tmp_path):
    images = [write_raster(tmp_path / "i" / f"{i}.tif", left=600_000 + 1_000 * i) for i in range(3)]
    one, two = write_polygon(tmp_path / "p.gpkg", 600_000), write_polygon(tmp_path / "q.gpkg", 602_000)
    found = opened(DatasetSource(images=str(tmp_path / "i"), labels=[one, two]))
    assert [sample.scene.name for sample in found.samples] == ["0", "2"]
    assert found.unmatched == (Path(images[1]),)
    assert all((sample.labels.read(sample.scene.grid.full_window) == 1).all() for sample in found.samples)
    with pytest.raises(DataError, match="no label covers a scene"):
        opened(DatasetSource(images=images[1], labels=[one, two]))


def test_a_folder_of_vector_files_is_paired_by_stem_and_keeps_its_options(tmp_path):
    image = write_raster(tmp_path / "i" / "a.tif")
    (tmp_path / "l").mkdir()
    polygons = write_polygon(tmp_path / "l" / "a.gpkg", 600_000)
    found = pair_files(DatasetSource(images=image, labels=LabelSource(path=str(tmp_path / "l"), field="kind")))
    assert found.pairs[0].labels == (LabelSource(path=polygons, field="kind"),)


def test_scenes_without_labels(tmp_path):
    image = write_raster(tmp_path / "a.tif")
    table = tmp_path / "t.csv"
    table.write_text("image\na.tif\n")
    data = Data(train=DatasetSource(images=image, labels=image))
    for source in (DatasetSource(images=image), DatasetSource(table=str(table))):
        found = open_samples(source, data, TASK)
        assert [sample.labels for sample in found.samples] == [None]
        assert not found.unmatched


def test_missing_paths(tmp_path):
    image = write_raster(tmp_path / "a.tif")
    (tmp_path / "empty").mkdir()
    missing = str(tmp_path / "none")
    for source in (
        DatasetSource(images=missing, labels=image),
        DatasetSource(images=image, labels=missing),
        DatasetSource(table=missing + ".csv"),
        DatasetSource(images=str(tmp_path / "empty"), labels=image),
        DatasetSource(images=str(tmp_path / "*.jp2"), labels=image),
    ):
        with pytest.raises(MissingFileError, match=r"none|empty|\*\.jp2"):
            pair_files(source)
    with pytest.raises(MissingFileError, match=r"none\.gpkg"):
        opened(DatasetSource(images=image, labels=missing + ".gpkg"))


def cut(folder, pixels, edges, *, nodata=None):
    """Write an array (bands, H, W) as files that end at these rows and columns; return their paths."""
    folder.mkdir()
    rows, columns = ([0, *inner, size] for inner, size in zip(edges, pixels.shape[1:], strict=True))
    found = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            part = pixels[:, top:bottom, left:right]
            place = Affine(10, 0, 600_000 + 10 * left, 0, -10, 200_000 - 10 * top)
            profile = {"count": len(part), "height": bottom - top, "width": right - left, "dtype": part.dtype}
            found.append(folder / f"{top}-{left}.tif")
            with rasterio.open(
                found[-1], "w", driver="GTiff", crs="EPSG:32622", transform=place, nodata=nodata, **profile
            ) as dataset:
                dataset.write(part)
    return found


@pytest.fixture
def one_scene(tmp_path):
    """A scene of 20 x 30 pixels with labels: in one file each, and cut."""
    random = np.random.default_rng(0)
    image, labels = (
        random.integers(0, 200, (2, 20, 30), dtype=np.uint8),
        random.integers(0, 2, (1, 20, 30), dtype=np.uint8),
    )
    [whole] = cut(tmp_path / "whole", image, ([], []))
    [whole_labels] = cut(tmp_path / "whole_labels", labels, ([], []))
    cut(tmp_path / "tiles", image, ([8], [10, 20]))
    return tmp_path, opened(DatasetSource(images=str(whole), labels=str(whole_labels))).samples[0], labels


@pytest.mark.parametrize("how", ["as the images", "another way", "one file", "explicitly", "a list"])
def test_a_mosaic_and_its_labels_are_one_sample(one_scene, how):
    """Whatever the names of the label files are, and however they are cut."""
    folder, whole, labels = one_scene
    edges = {"as the images": ([8], [10, 20]), "one file": ([], [])}.get(how, ([5, 6, 19], [11]))
    files = [str(path) for path in cut(folder / "labels", labels, edges)]
    given = {"one file": files[0], "explicitly": {"mosaic": files}, "a list": files}
    images = {"mosaic": str(folder / "tiles")}
    source = DatasetSource(images=images, labels=given.get(how, str(folder / "labels")))
    [sample] = opened(source).samples
    assert sample.scene.grid == whole.scene.grid
    assert sample.scene.name == "tiles"
    window = Window(3, 2, 25, 17)
    np.testing.assert_array_equal(sample.scene.read(window).pixels, whole.scene.read(window).pixels)
    np.testing.assert_array_equal(sample.labels.read(window), whole.labels.read(window))


def test_labels_of_a_mosaic_may_cover_less_or_more(one_scene, tmp_path):
    """What they do not cover is unlabelled, also if the files declare no no-data value, or 0 as such that is a code."""
    folder, whole, labels = one_scene
    parts = cut(folder / "labels", labels, ([8], [10, 20]))
    more = cut(folder / "more", np.pad(labels, ((0, 0), (0, 4), (0, 9)), constant_values=1), ([], []))
    images = {"mosaic": str(folder / "tiles")}
    truth = whole.labels.read(whole.scene.grid.full_window)
    [sample] = opened(DatasetSource(images=images, labels=[str(path) for path in parts[1:5]])).samples
    found = sample.labels.read(sample.scene.grid.full_window)
    missing = np.zeros((20, 30), dtype=bool)
    missing[:8, :10] = missing[8:, 20:] = True
    assert (found[:, missing] == -1).all()
    np.testing.assert_array_equal(found[:, ~missing], truth[:, ~missing])
    [sample] = opened(DatasetSource(images=images, labels=str(more[0]))).samples
    np.testing.assert_array_equal(sample.labels.read(sample.scene.grid.full_window), truth)
    declared = cut(folder / "declared", labels, ([8], [10, 20]), nodata=0)
    source = LabelSource(path={"mosaic": [str(path) for path in declared[1:5]]}, nodata="code")
    [sample] = opened(DatasetSource(images=images, labels=source)).samples
    np.testing.assert_array_equal(sample.labels.read(sample.scene.grid.full_window), found)


def test_polygons_over_a_mosaic(one_scene):
    folder, whole, _ = one_scene
    polygons = {"path": write_polygon(folder / "p.gpkg", 600_080), "field": "kind"}
    [sample] = opened(DatasetSource(images={"mosaic": str(folder / "tiles")}, labels=polygons)).samples
    [expected] = opened(DatasetSource(images=str(whole.scene.paths[0]), labels=polygons)).samples
    window = whole.scene.grid.full_window
    np.testing.assert_array_equal(sample.labels.read(window), expected.labels.read(window))
    assert (sample.labels.read(window)[0, :4, 8:13] == 1).all()  # across a border of files


def test_several_mosaics_are_paired_by_their_names(tmp_path):
    image = np.ones((1, 4, 6), dtype=np.uint8)
    for name in ("north", "south"):
        cut(tmp_path / name, image, ([], [3]))
    (tmp_path / "labels").mkdir()
    for name in ("north", "south"):
        cut(tmp_path / f"labels-{name}", image, ([], []))[0].rename(tmp_path / "labels" / f"{name}.tif")
    source = DatasetSource(
        images=[{"mosaic": str(tmp_path / name)} for name in ("south", "north")], labels=str(tmp_path / "labels")
    )
    found = pair_files(source)
    assert [(one.name, Path(one.labels[0].path).stem) for one in found.pairs] == [("south",) * 2, ("north",) * 2]
    assert not found.unmatched


def test_cached_mosaics_read_the_same_and_other_rules_are_other_entries(one_scene, tmp_path, monkeypatch):
    folder, whole, labels = one_scene
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    cut(folder / "labels", labels, ([8], [10, 20]))
    window = whole.scene.grid.full_window
    with Cache.open(0.1) as cache:
        for overlap in (None, "first"):
            images = {"mosaic": str(folder / "tiles"), "overlap": overlap}
            source = DatasetSource(images=images, labels=str(folder / "labels"))
            [sample] = open_samples(source, Data(train=source), TASK, cache).samples
            np.testing.assert_array_equal(sample.scene.read(window).pixels, whole.scene.read(window).pixels)
            np.testing.assert_array_equal(sample.labels.read(window), whole.labels.read(window))
    assert len(list_entries()) == 4


def test_names_that_differ_by_a_pattern(tmp_path):
    """As DeepGlobe: images and masks in one folder."""
    for stem in "12":
        write_raster(tmp_path / "d" / f"{stem}_sat.tif")
        write_raster(tmp_path / "d" / f"{stem}_mask.tif")
    folder = str(tmp_path / "d")
    found = pair_files(DatasetSource(images=folder, pair="{}_sat", labels=LabelSource(path=folder, pair="{}_mask")))
    assert [(one.name, Path(one.labels[0].path).name) for one in found.pairs] == [
        ("1_sat", "1_mask.tif"), ("2_sat", "2_mask.tif")
    ]  # fmt: skip
    assert not found.unmatched
    with pytest.raises(DataError, match=r'set pair: "\{\}_sat" for the images and labels\.pair: "\{\}_mask"'):
        pair_files(DatasetSource(images=f"{folder}/*_sat.tif", labels=f"{folder}/*_mask.tif"))
    with pytest.raises(DataError, match=r"1_sat\.tif: its name does not match the pattern '\{\}_x'"):
        pair_files(DatasetSource(images=[f"{folder}/1_sat.tif"], pair="{}_x", labels=folder))


def test_names_that_look_alike_pair(tmp_path):
    for folder, form in (("i", "NFC"), ("l", "NFD")):
        write_raster(tmp_path / folder / (unicodedata.normalize(form, "Köln") + ".tif"))
        write_raster(tmp_path / folder / "b.tif")
    found = pair_files(DatasetSource(images=str(tmp_path / "i"), labels=str(tmp_path / "l")))
    assert len(found.pairs) == 2
    assert not found.unmatched


@pytest.mark.parametrize("layout", ["images/{place}/1.tif", "{place}/images/1.tif", "x/{place}/images/tiles/1.tif"])
def test_equal_names_pair_by_their_folders(tmp_path, layout):
    for place in ("north/a", "south"):
        for kind in ("images", "labels"):
            path = tmp_path / layout.format(place=place).replace("images", kind)
            path.parent.mkdir(parents=True)
            write_raster(path)
    images = str(tmp_path / layout.format(place="**").replace("1.tif", "*.tif"))
    found = pair_files(DatasetSource(images=images, labels=images.replace("images", "labels")))
    assert [one.name for one in found.pairs] == ["north/a/1", "south/1"]
    for one in found.pairs:
        assert one.labels[0].path == str(one.images[0]).replace("images", "labels")


@pytest.mark.parametrize("nodata", [None, "code"])
def test_one_label_raster_serves_every_image_that_it_covers(tmp_path, nodata):
    """Oracle: the same labels cut for each image. Outside of the raster nothing is known, whatever 0 means in it."""
    codes = np.random.default_rng(0).integers(0, 2, (1, 12, 20)).astype(np.uint8)
    place = {"driver": "GTiff", "count": 1, "height": 12, "width": 20, "dtype": "uint8", "crs": "EPSG:32622"}
    place |= {"transform": Affine(10, 0, 600_000, 0, -10, 200_040), "nodata": None if nodata is None else 0}
    with rasterio.open(tmp_path / "map.tif", "w", **place) as file:
        file.write(codes)
    lefts = {"a": 0, "b": 7, "c": 18, "far": 400}
    for name, left in lefts.items():
        write_raster(tmp_path / "i" / f"{name}.tif", left=600_000 + 10 * left)
    label = str(tmp_path / "map.tif")
    forms = (label, [label], LabelSource(path=label)) if nodata is None else (LabelSource(path=label, nodata=nodata),)
    for labels in forms:
        found = opened(DatasetSource(images=str(tmp_path / "i"), labels=labels))
        assert [sample.scene.name for sample in found.samples] == ["a", "b", "c"]
        assert [path.name for path in found.unmatched] == ["far.tif"]
        for sample in found.samples:
            left = lefts[sample.scene.name]
            expected = np.full((1, 4, 5), -1)
            cut = codes[:, 4:8, left : left + 5]
            expected[:, :, : cut.shape[2]] = cut
            np.testing.assert_array_equal(sample.labels.read(sample.scene.grid.full_window), expected)
            assert bool(sample.labels.notes) == (sample.scene.name == "c")
    with pytest.raises(
        DataError, match=r"no label covers a scene: .*far\.tif; .*map\.tif has the extent 600000, 199920"
    ):
        opened(DatasetSource(images=str(tmp_path / "i" / "far*"), labels=label))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_label_raster_without_a_place_serves_no_images(tmp_path):
    for name in "ab":
        write_raster(tmp_path / "i" / f"{name}.tif")
    nowhere = str(tmp_path / "l.tif")
    with rasterio.open(nowhere, "w", driver="GTiff", count=1, height=9, width=9, dtype="uint8") as file:
        file.write(np.ones((1, 9, 9), np.uint8))
    with pytest.raises(GridError, match=r"l\.tif: no image has its name, and without a georeference"):
        opened(DatasetSource(images=str(tmp_path / "i"), labels=nowhere))


def test_labels_that_lie_elsewhere_are_described(tmp_path):
    image = write_raster(tmp_path / "a.tif")
    box = shapely.box(600_000, 199_960, 600_050, 200_000)

    def message(shape, crs, name="p.gpkg"):
        geopandas.GeoDataFrame({"kind": ["cleared"]}, geometry=[shape], crs=crs).to_file(tmp_path / name)
        with pytest.raises(DataError) as caught:
            opened(DatasetSource(images=image, labels=str(tmp_path / name)))
        return str(caught.value)

    degrees = geopandas.GeoSeries([box], crs=32622).to_crs(4326)[0]
    (tmp_path / "p.geojson").write_text(geopandas.GeoSeries([box]).to_json())
    with pytest.raises(DataError, match=r"GeoJSON is always EPSG:4326\): assign EPSG:32622 to it"):
        opened(DatasetSource(images=image, labels=str(tmp_path / "p.geojson")))
    swapped = shapely.transform(degrees, lambda xy: xy[:, ::-1])
    assert "axes seem to be swapped: exchange x and y" in message(swapped, 4326)
    assert "look like degrees, not like EPSG:32622: assign EPSG:4326" in message(degrees, 32622)
    far = message(shapely.box(0, 0, 1, 1), 4326)
    assert (
        "extent 0, 0, 1, 1 in EPSG:4326, the scene 600000, 199960, 600050, 200000 in EPSG:32622, which is -50." in far
    )
    assert far.endswith("check the CRS of both, or give other files")
    assert "has no feature with a geometry" in message(None, 4326)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_may_have_other_delimiters(tmp_path, delimiter):
    write_raster(tmp_path / "x.tif")
    table = tmp_path / "scenes.csv"
    table.write_text("image,label,weight\nx.tif,x.tif,2\n".replace(",", delimiter))
    (found,) = pair_files(DatasetSource(table=str(table))).pairs
    assert (found.weight, Path(found.labels[0].path).name) == (2, "x.tif")


def test_dates_of_one_place_are_stacked(tmp_path):
    for name, value in {"a_20210601": 3, "a_20200815": 2, "b_20190101": 5, "b_20191231": 6, "notes": 9}.items():
        write_raster(tmp_path / "i" / f"{name}.tif", value, left=600_000 + 1_000 * ("b" in name))
    for name in "ab":
        write_raster(tmp_path / "l" / f"{name}.tif", left=600_000 + 1_000 * ("b" in name))
    for dates in ("{}_{date:%Y%m%d}", "{date:%Y%m%d}", {"pattern": "{date:%Y%m%d}", "number": 2}):
        found = opened(DatasetSource(images=str(tmp_path / "i"), dates=dates, labels=str(tmp_path / "l")))
        assert [sample.scene.name for sample in found.samples] == ["a", "b"]
        pixels = [sample.scene.read().pixels[:, 0, 0].tolist() for sample in found.samples]
        assert pixels == [[2, 3], [5, 6]]
    (tmp_path / "i" / "b_20190101.tif").unlink()
    skip = {"pattern": "{date:%Y%m%d}", "missing": "skip"}
    found = pair_files(DatasetSource(images=str(tmp_path / "i"), dates=skip, labels=str(tmp_path / "l")))
    assert [one.name for one in found.pairs] == ["a"]
    assert [path.name for path in found.unmatched] == ["b_20191231.tif", "b.tif"]


def test_the_dates_of_slovenia(shared):
    """Oracle: the list of files in configs/slovenia.yaml."""
    dates = {"pattern": "{}_{date:%Y%m%d}", "number": 3}
    found = pair_files(
        DatasetSource(images=str(shared / "slovenia"), dates=dates, labels=str(shared / "slovenia" / "LULC.tif"))
    )
    assert [path.stem for path in found.pairs[0].images] == ["S2L1C_20150711", "S2L1C_20150830", "S2L1C_20150909"]


def write_products(folder):
    """Two products side by side, of an old and a new baseline; returns their paths."""
    return [
        write_safe(folder, random_bands(["B04", "B11"], side=12, seed=at), baseline=each, left=LEFT + 120 * at)
        for at, each in enumerate(("02.14", "05.11"))
    ]


def write_labels(path, width=12, left=LEFT):
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=12, width=width, dtype="uint8", crs="EPSG:32632",
        transform=Affine(10, 0, left, 0, -10, TOP),
    ) as dataset:  # fmt: skip
        dataset.write(np.random.default_rng(0).integers(0, 2, (1, 12, width), dtype=np.uint8))
    return str(path)


def test_products_pair_by_their_names_and_share_labels(tmp_path):
    safes = write_products(tmp_path / "images")
    stems = sorted(path.stem for path in safes)
    for at, safe in enumerate(safes):
        write_labels(tmp_path / "labels" / f"{safe.stem}.tif", left=LEFT + 120 * at)
    all_of_them = write_labels(tmp_path / "all.tif", width=24)
    (tmp_path / "table.csv").write_text("image,label\n" + "".join(f"images/{s}.SAFE,labels/{s}.tif\n" for s in stems))
    for images, labels in itertools.product(
        (str(tmp_path / "images"), str(tmp_path / "images" / "*.SAFE"), [str(path) for path in safes]),
        (str(tmp_path / "labels"), all_of_them),
    ):
        found = opened(DatasetSource(images=images, labels=labels))
        assert sorted(one.scene.name for one in found.samples) == stems
        assert not found.unmatched
    assert names(DatasetSource(table=str(tmp_path / "table.csv"))) == stems
    [one] = opened(DatasetSource(images=str(safes[0]), labels=write_labels(tmp_path / "other name.tif"))).samples
    assert one.scene.name == safes[0].stem


def test_items_of_a_collection_are_scenes(tmp_path):
    for name in "ab":
        write_raster(tmp_path / f"{name}.tif")
    features = [item({"data": {"href": f"{name}.tif"}}, f"scene {name}") for name in "ab"]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    labels = write_raster(tmp_path / "labels" / "all.tif")
    found = opened(DatasetSource(images=str(tmp_path / "items.json"), labels=labels)).samples
    assert [sample.scene.name for sample in found] == ["scene a", "scene b"]


def test_cached_products_read_the_same(tmp_path, monkeypatch):
    """Values lie below 0 where the offset is subtracted, and other resolutions are other entries."""
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    pixels = {("B04", 10): np.full((12, 12), 7, dtype=np.uint16), ("B11", 20): np.full((6, 6), 2000, dtype=np.uint16)}
    safe = write_safe(tmp_path, pixels)
    source = DatasetSource(images=str(safe), labels=write_labels(tmp_path / "labels" / "x.tif"))
    with Cache.open(0.1) as cache:
        for options in ({}, {"resampling": "nearest"}, {"bands": ["B04"]}, {}):
            data = Data(train=source, **options)
            [cached] = open_samples(source, data, TASK, cache).samples
            [plain] = open_samples(source, data, TASK).samples
            np.testing.assert_array_equal(cached.scene.read().pixels, plain.scene.read().pixels)
            assert cached.scene.read().pixels[0, 0, 0] == -993
    assert len(list_entries()) == 4
