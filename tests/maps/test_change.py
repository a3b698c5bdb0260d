"""Transitions, counted pixel by pixel, with the same care for grids and no data as any map."""

import csv
import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from maps import write_map

from segkit.assess import design
from segkit.errors import GridError, OutputExistsError, UsageError
from segkit.io.grid import Grid
from segkit.maps.change import change
from segkit.vector import vectorize

DEGREES = {"crs": "EPSG:4326", "transform": Affine(1e-3, 0, 20, 0, -2e-2, 60)}


def with_classes(path, classes, *, kind="multiclass"):
    with rasterio.open(path, "r+") as file:
        file.update_tags(
            segkit_type=kind, segkit_classes=json.dumps([{"value": v, "name": n, "color": c} for v, n, c in classes])
        )
    return path


@pytest.fixture
def maps(tmp_path):
    """Two maps in degrees whose legends differ in codes and order, and their names pixel by pixel."""
    random = np.random.default_rng(0)
    old, new = (
        random.choice([1, 2, 255], (40, 50), p=[0.6, 0.3, 0.1]),
        random.choice([4, 6, 7, 255], (40, 50), p=[0.4, 0.3, 0.2, 0.1]),
    )
    paths = [
        write_map(tmp_path / f"{name}.tif", codes.astype(np.uint8), **DEGREES)
        for name, codes in (("old", old), ("new", new))
    ]
    with_classes(paths[0], [(1, "forest", "#1b7837"), (2, "water", "#2b83ba")])
    with_classes(paths[1], [(4, "water", "#2b83ba"), (6, "forest", "#1b7837"), (7, "field", "#e6c35c")])
    names = {1: "forest", 2: "water", 4: "water", 6: "forest", 7: "field", 255: None}
    return *paths, *(np.vectorize(names.get, otypes=[object])(codes) for codes in (old, new))


def test_every_pixel_is_of_its_pair(maps, tmp_path):
    old, new, was, became = maps
    result = change(old, new, tmp_path / "change.tif", table=tmp_path / "change.csv")
    with rasterio.open(tmp_path / "change.tif") as found, rasterio.open(old) as before:
        codes, grid = found.read(1), Grid(40, 50, found.transform, found.crs)
        assert (found.crs, found.transform) == (before.crs, before.transform)
        assert (found.nodata, found.dtypes[0]) == (255, "uint8")
        classes = {row["value"]: row for row in json.loads(found.tags()["segkit_classes"])}
        colors = found.colormap(1)
    hectares = grid.hectares()
    for row in range(40):
        for column in range(50):
            one, other = was[row, column], became[row, column]
            if one is None or other is None:
                assert codes[row, column] == 255
            else:
                name = one if one == other else f"{one} to {other}"
                assert classes[codes[row, column]]["name"] == name
    for at, one in enumerate(result.classes_before):
        for place, other in enumerate(result.classes_after):
            here = (was == one) & (became == other)
            assert result.pixels[at, place] == here.sum()
            assert result.hectares[at, place] == pytest.approx(hectares[here].sum(), rel=1e-4)
    assert result.unmatched_pixels == ((was == None) ^ (became == None)).sum()  # noqa: E711 - of an array
    stays, goes = (
        next(row for row in classes.values() if row["name"] == name) for name in ("forest", "forest to field")
    )
    assert goes["color"] == "#e6c35c"
    assert "".join(f"{part:02x}" for part in colors[stays["value"]][:3]) == stays["color"][1:] == "c6ddcd"
    table = (tmp_path / "change.csv").read_text().splitlines()
    assert table[0].split(",")[1:] == [*result.classes_after, "total"]
    assert float(table[-1].split(",")[-1]) == pytest.approx(result.hectares.sum())


def test_the_map_can_be_assessed_and_vectorised(maps, tmp_path):
    old, new, *_ = maps
    change(old, new, tmp_path / "change.tif")
    made = design(tmp_path / "change.tif", tmp_path / "points.gpkg", samples=100, min_per_stratum=5)
    assert "forest to field" in [part.name for part in made.strata]
    summary = vectorize(tmp_path / "change.tif", tmp_path / "change.gpkg", classes=["forest to field"])
    assert summary.polygons["forest to field"] > 0
    with rasterio.open(tmp_path / "change.tif") as map_:
        date = map_.tags()["segkit_date"]
    vectorize(tmp_path / "change.tif", tmp_path / "change.geojson")
    assert json.loads((tmp_path / "change.geojson").read_text())["segkit"]["segkit_map_date"] == date


def test_many_classes_need_more_than_a_byte(tmp_path):
    random = np.random.default_rng(1)
    codes = random.integers(1, 21, (2, 60, 60)).astype(np.uint8)
    for name, one in zip(("a", "b"), codes, strict=True):
        write_map(tmp_path / f"{name}.tif", one)
    result = change(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "change.tif")
    with rasterio.open(tmp_path / "change.tif") as found:
        assert (found.dtypes[0], found.nodata) == ("uint16", 65535)
        np.testing.assert_array_equal(found.read(1), (codes[0].astype(int) - 1) * 20 + codes[1])
    assert result.pixels.sum() == 3600


def test_of_overlapping_classes_one_is_compared(tmp_path):
    random = np.random.default_rng(1)
    masks = random.integers(0, 2, (2, 2, 20, 20)).astype(np.uint8)
    for name, bands in zip(("a", "b"), masks, strict=True):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", count=2, height=20, width=20, dtype="uint8", nodata=255,
            crs="EPSG:32622", transform=Affine(10, 0, 500_000, 0, -10, 9_000_000),
        ) as file:  # fmt: skip
            file.write(bands)
        with_classes(tmp_path / f"{name}.tif", [(1, "trees", "#1b7837"), (2, "flood", "#2b83ba")], kind="multilabel")
    with pytest.raises(UsageError, match="name one with --class: trees, flood"):
        change(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "change.tif")
    result = change(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "change.tif", class_name="flood")
    assert (result.classes_before, result.classes_after) == (("not flood", "flood"),) * 2
    assert result.pixels[0, 1] == ((masks[0, 1] == 0) & (masks[1, 1] == 1)).sum()


def test_what_does_not_fit_is_reported_and_leaves_nothing(maps, tmp_path):
    old, new, *_ = maps
    with rasterio.open(new) as file:
        codes = file.read(1)
    moved = write_map(
        tmp_path / "moved.tif", codes, crs="EPSG:4326", transform=DEGREES["transform"] @ Affine.translation(1, 0)
    )
    small = write_map(tmp_path / "small.tif", codes[:30], **DEGREES)
    change(old, new, tmp_path / "changes.tif")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"2 transitions would be called 'forest to .*'; rename a class of"):
        change(tmp_path / "changes.tif", tmp_path / "changes.tif", tmp_path / "change.tif")
    for other, said in ((moved, "lie on different grids .*transform"), (small, "40 x 50 against 30 x 50 pixels")):
        with pytest.raises(GridError, match=said):
            change(old, other, tmp_path / "change.tif")
    assert {path.name for path in tmp_path.iterdir()} == before
    (tmp_path / "change.tif").write_text("mine")
    with pytest.raises(OutputExistsError):
        change(old, new, tmp_path / "change.tif")
    assert (tmp_path / "change.tif").read_text() == "mine"


def test_old_names_still_work(maps, tmp_path):
    old, new, *_ = maps
    with pytest.warns(DeprecationWarning, match="class_name="), pytest.raises(UsageError, match="leave out --class"):
        change(old, new, tmp_path / "change.tif", of="forest")
    result = change(old, new, tmp_path / "change.tif")
    with pytest.warns(DeprecationWarning, match="unmatched_pixels"):
        assert result.unseen == result.unmatched_pixels


def test_a_name_that_a_spreadsheet_would_run_is_text_in_the_table(tmp_path):
    formula = '=HYPERLINK("https://example.org")'
    for name in ("a", "b"):
        write_map(tmp_path / f"{name}.tif", np.array([[1, 2]], dtype=np.uint8))
        with_classes(tmp_path / f"{name}.tif", [(1, formula, "#1b7837"), (2, "-1", "#2b83ba")])
    result = change(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "change.tif", table=tmp_path / "change.csv")
    assert result.classes_before == (formula, "-1")
    with (tmp_path / "change.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [f"'{formula}", "'-1", "total"]
    assert [row[0] for row in rows] == [f"'{formula}", "'-1", "total"]


def test_outputs_are_not_one_file_and_no_input(maps, tmp_path):
    old, new, *_ = maps
    before = old.read_bytes()
    with pytest.raises(UsageError, match="the same file"):
        change(old, new, tmp_path / "x.tif", table=tmp_path / "x.tif")
    with pytest.raises(UsageError, match="which is an input"):
        change(old, new, old, overwrite=True)
    assert old.read_bytes() == before
    assert not (tmp_path / "x.tif").exists()
