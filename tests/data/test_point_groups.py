import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from places import SHARED
from synthetic import recipe_for, write_raster

from segkit.data.area import count_categories, read_tiles
from segkit.data.areas import with_fold
from segkit.data.pairing import open_samples
from segkit.data.point_groups import group_points
from segkit.data.split import resolve_split, train_val_split
from segkit.errors import DataError, RecipeError
from segkit.recipe.schema import Recipe
from segkit.recipe.splits import SpatialSplit

DISTANCE, RADIUS = 90, 25
LEFTS = {"a": 500_000, "b": 500_500, "c": 520_000}  # a and b overlap


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    random = np.random.default_rng(0)
    for name, left in LEFTS.items():
        write_raster(folder / "images" / f"{name}.tif", random.integers(1, 99, (3, 80, 90)).astype(np.uint8), left=left)
    # 70 random points on a and b, 30 on c, and one between others that no scene shows.
    x = np.concatenate([random.uniform(500_000, 501_400, 70), random.uniform(520_000, 520_900, 30), [499_950]])
    y = np.concatenate([random.uniform(8_999_200, 9_000_000, 100), [8_999_500]])
    kinds = np.where(x > 519_000, "water", random.choice(["water", "forest"], x.size))
    side = np.where(random.random(x.size) < 0.2, "test", "train")
    frame = geopandas.GeoDataFrame({"kind": kinds, "side": side}, geometry=shapely.points(x, y), crs=32622)
    frame.to_crs(4326).to_file(folder / "points.gpkg")
    frame.assign(lon=frame.to_crs(4326).geometry.x, lat=frame.to_crs(4326).geometry.y).drop(columns="geometry").to_csv(
        folder / "points.csv", index=False
    )
    return folder


def recipe_of(folder, *, labels=None, **val):
    labels = {"path": str(folder / "points.gpkg"), "field": "kind", "radius": RADIUS} | (labels or {})
    # Discs of different classes overlap here and there.
    labels |= {"priority": ["water"]}
    rule = {"by": "point", "distance": DISTANCE} | val
    return recipe_for(
        folder, "multiclass", data={"train": {"images": str(folder / "images"), "labels": labels}, "val": rule}
    )


def samples_of(recipe):
    return open_samples(recipe.data.train, recipe.data, recipe.task).samples


def linked(folder, distance):
    """Oracle: groups of points by geodesic distances, all pairs, merged until nothing changes."""
    points = geopandas.read_file(folder / "points.gpkg")
    lon, lat = points.geometry.x.to_numpy(), points.geometry.y.to_numpy()
    n = len(points)
    one, other = np.divmod(np.arange(n * n), n)
    near = (pyproj.Geod(ellps="WGS84").inv(lon[one], lat[one], lon[other], lat[other])[2] <= distance).reshape(n, n)
    groups = np.arange(n)
    while True:
        merged = np.array([groups[row].min() for row in near])
        merged = merged[merged]
        if (merged == groups).all():
            return points, groups
        groups = merged


@pytest.mark.parametrize(("distance", "pairs"), [(20, 10**6), (DISTANCE, 10**6), (DISTANCE, 7)])
def test_groups_are_points_linked_by_the_distance(folder, monkeypatch, distance, pairs):
    monkeypatch.setattr("segkit.data.point_groups._MAX_PAIRS", pairs)
    recipe = recipe_of(folder, distance=distance)
    found = group_points(samples_of(recipe), recipe.data.val)
    _, groups = linked(folder, distance)
    # The pixels of a group in scene c, and how many points it has, identify it well enough: squares come first.
    squares = sorted(sum(shape.area == 1 for _, shape in group.pixels) for group in found)
    points, _ = linked(folder, distance)
    x = points.to_crs(32622).geometry.x.to_numpy()
    seen = np.array([sum(left <= each < left + 900 for left in LEFTS.values()) for each in x])
    expected = sorted(int(seen[groups == group].sum()) for group in np.unique(groups) if seen[groups == group].sum())
    assert squares == expected
    assert len(found) > 3


@pytest.mark.parametrize(("path", "gap"), [("points.gpkg", 3), ("points.csv", 0)])
def test_no_group_is_on_both_sides_and_folds_cover_all(folder, path, gap):
    labels = {"path": str(folder / path)} | ({"crs": "EPSG:4326"} if path.endswith("csv") else {})
    recipe = recipe_of(folder, labels=labels, gap=gap)
    samples = samples_of(recipe)
    whole = {sample.scene.name: sample.labels.read(sample.scene.grid.full_window) for sample in samples}
    seen = {name: np.zeros(targets.shape, dtype=int) for name, targets in whole.items()}
    for fold in range(2):
        train, validation = train_val_split(with_fold(recipe, f"{fold}/2"), samples)
        for area in validation:
            full = area.sample.scene.grid.full_window
            tile, targets = area.sample.scene.read(full), area.labels.read(full)
            area.mask(tile, targets, full)
            seen[area.sample.scene.name] += targets >= 0
        places = [
            [area.sample.scene.grid.transform @ (column + 0.5, row + 0.5)
             for area in side for _, targets, window in read_tiles([area])
             for row, column in np.add(np.argwhere(targets[0] >= 0), (window.row_off, window.col_off))]
            for side in (train, validation)
        ]  # fmt: skip
        assert all(places)
        nearest = min(shapely.distance(shapely.MultiPoint(places[0]), shapely.MultiPoint(places[1])), 1e9)
        assert nearest > max(DISTANCE - 2 * RADIUS - 15, 10 * gap)
    for name, targets in whole.items():
        np.testing.assert_array_equal(seen[name], targets >= 0)


def test_marked_points_validate(folder):
    recipe = recipe_of(folder, distance=1, field="side", values=["test"])
    samples = samples_of(recipe)
    _, validation = train_val_split(recipe, samples)
    points = geopandas.read_file(folder / "points.gpkg").to_crs(32622)
    for area in validation:
        grid = area.sample.scene.grid
        tested = points[points.side == "test"].cx[grid.bounds[0] : grid.bounds[2], :]
        columns, rows = ~grid.transform @ (tested.geometry.x.to_numpy(), tested.geometry.y.to_numpy())
        assert area.region.mask(grid.full_window)[rows.astype(int), columns.astype(int)].all()
    counted = sum(count_categories(targets, recipe.task).sum() for _, targets, _ in read_tiles(validation))
    assert 0 < counted < 40 * 25


def test_the_default_gap_is_a_quarter_of_the_distance(folder):
    recipe = recipe_of(folder, distance=400)
    assert resolve_split(recipe, samples_of(recipe)).data.val.gap == 10


def test_rules_that_are_refused(folder):
    recipe = recipe_of(folder, field="group", values=["x"])
    with pytest.raises(DataError, match=r"points\.gpkg: has no field 'group'"):
        group_points(samples_of(recipe), recipe.data.val)
    recipe = recipe_of(folder, distance=1e6, fold="0/3")
    with pytest.raises(
        DataError, match="1 groups of label points within 1e\\+06 m of each other hold valid labelled pixels"
    ):
        train_val_split(recipe, samples_of(recipe))
    raw = recipe_of(folder).to_dict()
    for rule, said in (({"by": "point"}, "by: point needs distance"), ({"distance": 5}, "by: point needs distance")):
        with pytest.raises(RecipeError, match=said):
            Recipe.from_dict(raw | {"data": raw["data"] | {"val": rule}})
    (folder / "zones.geojson").write_text(
        geopandas.GeoSeries([shapely.box(500_100, 8_999_300, 500_300, 8_999_900)], crs=32622).to_crs(4326).to_json()
    )
    zones = recipe_of(folder)
    polygons = zones.data.train.label_sources[0].model_copy(
        update={"path": str(folder / "zones.geojson"), "field": None, "radius": None, "classes": ("water",)}
    )
    source = zones.data.train.model_copy(update={"labels": polygons})
    samples = open_samples(source, zones.data, zones.task).samples
    with pytest.raises(DataError, match="no label file of the training scenes has points"):
        group_points(samples, SpatialSplit(by="point", distance=5))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_the_points_of_leipzig():
    """Oracle: rasterio's sample of a raster that holds the pixel numbers."""
    task = {"type": "multiclass", "background": False, "classes": [
        {"name": name, "value": value} for value, name in enumerate(("urban", "forest", "pasture", "water"), 1)
    ]}  # fmt: skip
    labels = {"path": str(SHARED / "leipzig" / "leipzig_points.gpkg"), "field": "land_cover"}
    train = {"images": str(SHARED / "leipzig" / "leipzig_raster.tif"), "labels": labels}
    recipe = Recipe.from_dict(
        {"name": "l", "task": task, "data": {"train": train, "val": {"by": "point", "distance": 200}}}
    )
    (sample,) = samples_of(recipe)
    targets = sample.labels.read(sample.scene.grid.full_window)[0]
    points = geopandas.read_file(labels["path"]).to_crs(sample.scene.grid.crs)
    columns, rows = ~sample.scene.grid.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    names = np.array(["urban", "forest", "pasture", "water"])
    assert names[targets[rows.astype(int), columns.astype(int)]].tolist() == points.land_cover.tolist()
    assert (targets >= 0).sum() == len({*zip(rows.astype(int), columns.astype(int), strict=True)})
