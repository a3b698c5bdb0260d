"""From a map to points and back: what a person would do, with the truth as the interpreter."""

import json
from xml.etree import ElementTree

import geopandas
import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from maps import NODATA, write_map

from segkit.assess import design, estimate, estimate_sample
from segkit.assess.points import _form_style
from segkit.errors import DataError, OutputError, OutputExistsError, UsageError

CLASSES = {0: "forest", 1: "clearing", 2: "water"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A map in degrees, whose pixels are not of one size, its truth, and the names of its classes."""
    folder = tmp_path_factory.mktemp("assess")
    random = np.random.default_rng(1)
    truth = np.kron(random.choice(3, (30, 30), p=[0.8, 0.15, 0.05]), np.ones((5, 5))).astype(np.uint8)
    shown = np.where(random.random(truth.shape) < 0.1, random.choice(3, truth.shape), truth).astype(np.uint8)
    shown[:10] = NODATA
    where = {"crs": "EPSG:4326", "transform": Affine(2e-3, 0, 20, 0, -0.2, 65)}
    write_map(folder / "map.tif", shown, **where)
    with rasterio.open(folder / "map.tif", "r+") as file:
        file.update_tags(
            segkit_classes=json.dumps(
                [{"value": value, "name": name} for value, name in (*CLASSES.items(), (5, "ice"))]
            )
        )
    return folder, truth, shown


def fill(path, truth, *, share=1.0):
    """Look at the first points as an interpreter who knows the truth."""
    points = geopandas.read_file(path, layer="points")
    drawn = pyogrio.read_dataframe(path, layer="design", read_geometry=False)
    said = np.array([CLASSES[code] for code in truth[drawn["row"], drawn["col"]]], dtype=object)
    said[int(share * len(said)) :] = None
    points["ref_class"] = points["id"].map(dict(zip(drawn["id"], said, strict=True)))
    pyogrio.write_dataframe(
        points, path, layer="points", driver="GPKG", append=False, layer_options={"OVERWRITE": "YES"}
    )
    return drawn, said


def test_design_interpret_estimate(place, tmp_path):
    folder, truth, shown = place
    made = design(folder / "map.tif", tmp_path / "points.gpkg", samples=600, min_per_stratum=100, seed=2)
    assert sum(made.samples) == 600
    assert min(made.samples) == 100
    with rasterio.open(folder / "map.tif") as file:
        from segkit.io.raster import read_grid

        hectares = read_grid(file).hectares()
    for part, code in zip(made.strata, CLASSES, strict=True):
        assert (part.name, part.pixels) == (CLASSES[code], (shown == code).sum())
        assert part.hectares == pytest.approx(hectares[shown == code].sum(), rel=1e-4)
    before = {name for name, _ in pyogrio.list_layers(tmp_path / "points.gpkg")}
    fill(tmp_path / "points.gpkg", truth)
    assert {name for name, _ in pyogrio.list_layers(tmp_path / "points.gpkg")} == before
    found = estimate_sample(folder / "map.tif", tmp_path / "points.gpkg")
    assert found.classes == ("forest", "clearing", "water", "ice")
    inside = shown != NODATA
    true = np.array([hectares[inside & (truth == code)].sum() for code in CLASSES])
    assert (np.abs(found.area[:3] - true) < 1.5 * found.area_ci[:3]).all()
    np.testing.assert_allclose(found.mapped_area[:3], [part.hectares for part in made.strata])
    assert found.overall == pytest.approx((truth == shown)[inside].mean(), abs=2 * found.overall_ci)
    assert (found.mapped_area[3], found.area[3], found.unlabelled) == (0, 0, 0)
    less = estimate_sample(folder / "map.tif", tmp_path / "points.gpkg", finite_population_correction=True)
    assert less.overall_se < found.overall_se
    assert made.expected_error == pytest.approx(found.overall_se, rel=0.5)


def test_points_do_not_reveal_the_map_class(place, tmp_path):
    folder, _, _ = place
    design(folder / "map.tif", tmp_path / "points.gpkg", samples=60, min_per_stratum=10)
    points = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    assert list(points.columns) == ["id", "ref_class", "note", "geometry"]
    assert points["ref_class"].isna().all()
    drawn = pyogrio.read_dataframe(tmp_path / "points.gpkg", layer="design", read_geometry=False)
    assert (np.diff(pandas.factorize(drawn["stratum"])[0]) != 0).sum() > 5  # nor does the order
    pixels = geopandas.read_file(tmp_path / "points.gpkg", layer="pixels")
    assert shapely.equals_exact(shapely.centroid(pixels.geometry.to_numpy()), points.geometry.to_numpy(), 1e-9).all()
    assert pixels.geometry.contains(points.geometry).all()
    corner = points.geometry.x.to_numpy() - 1e-3, points.geometry.y.to_numpy() + 0.1
    np.testing.assert_allclose((corner[0] - 20) / 2e-3, drawn["col"], atol=1e-6)
    np.testing.assert_allclose((65 - corner[1]) / 0.2, drawn["row"], atol=1e-6)
    styles = pyogrio.read_dataframe(tmp_path / "points.gpkg", layer="layer_styles")
    assert styles["f_table_name"].tolist() == ["points", "pixels"]
    fill = ElementTree.fromstring(styles["styleQML"][1]).findall("renderer-v2/symbols/symbol/layer/prop[@k='style']")
    assert [one.get("v") for one in fill] == ["no"]  # the pixel to interpret can be seen
    assert all(f'value="{name}"' in styles["styleQML"][0] for name in (*CLASSES.values(), "ice"))
    assert 'type="ValueMap"' in styles["styleQML"][0]
    design(folder / "map.tif", tmp_path / "points.gpkg", samples=60, min_per_stratum=10, show_map=True, overwrite=True)
    shown = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    np.testing.assert_array_equal(shown["map_class"], drawn["map_class"])
    assert shown.geometry.equals(points.geometry)
    assert "&amp;" in _form_style(["a & b"])


def test_sample_size_from_a_target_standard_error(place, tmp_path):
    folder, _, _ = place
    made = design(
        folder / "map.tif",
        tmp_path / "points.gpkg",
        target_se=0.02,
        expected_users_accuracy={"forest": 0.8},
        min_per_stratum=0,
    )
    assert made.expected_users_accuracy == (0.8, 0.9, 0.9)
    assert made.expected_error == pytest.approx(0.02, rel=0.05)


def test_a_buffer_is_a_stratum(place, tmp_path):
    folder, truth, _ = place
    made = design(
        folder / "map.tif", tmp_path / "points.gpkg", samples=300, min_per_stratum=40, buffer=("clearing", 300.0)
    )
    assert made.strata[-1].name == "within 300 m of clearing"
    drawn, _ = fill(tmp_path / "points.gpkg", truth)
    near = drawn[drawn["stratum"] == made.strata[-1].name]
    assert set(near["map_class"]) == {"forest", "water"}
    found = estimate_sample(folder / "map.tif", tmp_path / "points.gpkg")
    assert np.isfinite(found.area_se).all()


def test_points_may_be_unlabelled_reordered_and_deleted(place, tmp_path):
    folder, truth, _ = place
    path = tmp_path / "points.gpkg"
    design(folder / "map.tif", path, samples=200, min_per_stratum=20)
    fill(path, truth, share=0.8)
    first = estimate_sample(folder / "map.tif", path)
    assert first.unlabelled == 40
    points = geopandas.read_file(path, layer="points")
    points["ref_class"] = points["ref_class"].map({name: str(code) for code, name in CLASSES.items()})
    points = points[points["ref_class"].notna()].sample(frac=1, random_state=0)
    pyogrio.write_dataframe(points, path, layer="points", driver="GPKG", layer_options={"OVERWRITE": "YES"})
    again = estimate_sample(folder / "map.tif", path)
    assert (again.unlabelled, again.overall_se) == (40, first.overall_se)


def test_other_points_and_count_matrices(place, tmp_path):
    folder, truth, _ = place
    path = tmp_path / "points.gpkg"
    design(folder / "map.tif", path, samples=300, min_per_stratum=50)
    fill(path, truth)
    found = estimate_sample(folder / "map.tif", path)
    points = geopandas.read_file(path, layer="points")[["ref_class", "geometry"]]
    points["ref_class"] = points["ref_class"].map({name: code for code, name in CLASSES.items()}).astype("Int64")
    for name in ("own.geojson", "own.parquet", "own.shp"):
        moved = points.to_crs(3857) if name != "own.geojson" else points
        if name.endswith("parquet"):
            moved.to_parquet(tmp_path / name)
        else:
            moved.rename(columns={"ref_class": "ref_class"}).to_file(tmp_path / name)
        again = estimate_sample(folder / "map.tif", tmp_path / name)
        np.testing.assert_array_equal(again.counts, found.counts)
        np.testing.assert_allclose(again.area_se, found.area_se, rtol=1e-4)
    named = points.rename(columns={"ref_class": "seen"}).to_crs(3857)
    named.assign(x=named.geometry.x, y=named.geometry.y).drop(columns="geometry").to_csv(tmp_path / "own.csv", sep=";")
    again = estimate_sample(folder / "map.tif", tmp_path / "own.csv", field="seen", crs="EPSG:3857")
    np.testing.assert_array_equal(again.counts, found.counts)
    with pytest.raises(UsageError, match=r"own\.csv: a \.csv file of points needs the CRS"):
        estimate_sample(folder / "map.tif", tmp_path / "own.csv", field="seen")
    with pytest.raises(DataError, match=r"own\.csv: has no column ref_class; its columns are .*seen"):
        estimate_sample(folder / "map.tif", tmp_path / "own.csv", crs="EPSG:3857")
    with pytest.raises(UsageError, match=r"only a \.csv file of points needs a CRS"):
        estimate_sample(folder / "map.tif", path, crs="EPSG:3857")
    names = ["clearing", "forest", "water"]
    place_of = [found.classes.index(name) for name in names]
    table = pandas.DataFrame(found.counts[np.ix_(place_of, place_of)], index=names, columns=names)
    table.to_csv(tmp_path / "counts.csv")
    counted = estimate_sample(folder / "map.tif", tmp_path / "counts.csv")
    plain = estimate(found.counts, found.mapped_area, classes=found.classes)
    np.testing.assert_allclose(counted.area_se, plain.area_se)
    np.testing.assert_allclose(counted.area, found.area, rtol=0.05)  # the weights of the pixels are missing


def test_points_and_counts_that_do_not_match_the_map_are_errors(place, tmp_path):
    folder, truth, shown = place
    path = tmp_path / "points.gpkg"
    design(folder / "map.tif", path, samples=60, min_per_stratum=10)
    with pytest.raises(DataError, match="no point has a reference class yet"):
        estimate_sample(folder / "map.tif", path)
    fill(path, truth)
    other = write_map(
        tmp_path / "other.tif", 2 - np.minimum(shown, 2), crs="EPSG:4326", transform=Affine(2e-3, 0, 20, 0, -0.2, 65)
    )
    small = write_map(
        tmp_path / "small.tif", shown[:20, :20], crs="EPSG:4326", transform=Affine(2e-3, 0, 20, 0, -0.2, 65)
    )
    for wrong in (other, small):
        with pytest.raises(DataError, match="drawn from another map"):
            estimate_sample(wrong, path)
    points = geopandas.read_file(path, layer="points")
    for change, said in (
        (
            {"ref_class": "forrest"},
            "ref_class of a point is 'forrest'; the classes are forest, clearing, water, ice",
        ),
        ({"id": 7}, "the ids of its points are not those that were drawn"),
    ):
        pyogrio.write_dataframe(
            points.assign(**change), path, layer="points", driver="GPKG", layer_options={"OVERWRITE": "YES"}
        )
        with pytest.raises(DataError, match=said):
            estimate_sample(folder / "map.tif", path)
    own, pixels = points.assign(ref_class="forest"), geopandas.read_file(path, layer="pixels")
    for change, said in (
        (own.set_geometry(own.geometry.translate(50)), "60 of its 60 points lie outside of the map"),
        (own.drop(columns="ref_class"), "has no column ref_class"),
        (own.set_geometry(pixels.geometry), "holds rows without a point"),
        (
            geopandas.GeoDataFrame(
                {"ref_class": ["forest"]}, geometry=geopandas.points_from_xy([20.001], [64.9]), crs=4326
            ),
            "1 of its 1 points lie on nodata of the map",
        ),
    ):
        change.to_file(tmp_path / "own.geojson")
        with pytest.raises(DataError, match=said):
            estimate_sample(folder / "map.tif", tmp_path / "own.geojson")
    (tmp_path / "counts.csv").write_text("map,forest,ice cream\nforest,3,1\nice cream,1,3\n")
    with pytest.raises(DataError, match="'ice cream' is not a class of the map"):
        estimate_sample(folder / "map.tif", tmp_path / "counts.csv")


def test_invalid_designs_are_errors(place, tmp_path):
    folder, _, _ = place
    for options, said in (
        ({}, "either the number of points or the target standard error"),
        ({"samples": 10, "target_se": 0.1}, "either the number of points or the target standard error"),
        (
            {"samples": 100, "expected_users_accuracy": {"rock": 0.5}},
            "has no stratum 'rock'; its strata are forest, clearing, water",
        ),
        ({"samples": 100}, "too few for 3 strata of at least 50 each"),
    ):
        with pytest.raises(UsageError, match=said):
            design(folder / "map.tif", tmp_path / "points.gpkg", **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"ends in \.gpkg"):
        design(folder / "map.tif", tmp_path / "points.shp", samples=200)
    (tmp_path / "points.gpkg").write_text("mine")
    with pytest.raises(OutputExistsError):
        design(folder / "map.tif", tmp_path / "points.gpkg", samples=200)


def test_a_sample_that_cannot_be_written_is_an_error(place, tmp_path, monkeypatch):
    """A full disk, as pyogrio tells it, and as Python does."""
    for error in (pyogrio.errors.FeatureError("database or disk is full"), OSError(28, "No space left on device")):

        def full(*_, error=error, **__):
            raise error

        monkeypatch.setattr(pyogrio, "write_dataframe", full)
        with pytest.raises(OutputError, match=r"points\.gpkg could not be written: .*(disk is full|No space left)"):
            design(place[0] / "map.tif", tmp_path / "points.gpkg", samples=100, min_per_stratum=5)
        assert not list(tmp_path.iterdir())
