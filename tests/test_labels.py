import pickle
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import GridError, LabelError, MissingFileError
from segkit.grid import Grid
from segkit.labels import is_vector, open_labels
from segkit.raster import grid_of, open_raster
from segkit.recipe import LabelSource
from segkit.task import IGNORE, LandClass, Task

DATA = Path(__file__).parents[2] / "shared" / "data"
UTM = CRS.from_epsg(32622)
GRID = Grid(12, 17, Affine(30, 0, 600_000, 0, -30, 200_000), UTM)
ROTATED = Grid(12, 17, GRID.transform @ Affine.rotation(33), UTM)


def classes(**values):
    return tuple(LandClass(name, value) for name, value in values.items())


BINARY = Task("binary", classes(a=1))
EXCLUSIVE = Task("multiclass", classes(a=1, b=2, c=7))
FULL = Task("multiclass", classes(a=1, b=2), background=False)
OVERLAPPING = Task("multilabel", classes(a=1, b=2))


def write_raster(path, bands, grid=GRID, **profile):
    bands = np.asarray(bands)
    bands = bands if bands.ndim == 3 else bands[None]
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype,
        crs=grid.crs, transform=grid.transform, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(bands)
    return str(path)


def write_polygons(path, polygons, values=None, crs=UTM, layer=None, append=False):
    """Write polygons given in CRS coordinates, with a field "kind"."""
    values = np.array(["a"] * len(polygons) if values is None else values)
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(polygons, dtype=object)), [values], ["kind"], geometry_type="Unknown",
        crs=crs.to_wkt() if crs else None, layer=layer, append=append,
    )  # fmt: skip
    return str(path)


def placed(polygon, grid):
    """Take a polygon in pixel coordinates to the grid's CRS."""
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    return shapely.transform(polygon, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)


def centres_in(polygon, grid):
    """Oracle: which pixel centres lie in a polygon given in pixel coordinates, (H, W)."""
    rows, columns = np.indices(grid.shape) + 0.5
    return shapely.contains_xy(polygon, columns, rows)


def read(source, task, grid=GRID, **options):
    labels = open_labels(source if isinstance(source, LabelSource) else LabelSource(path=source), task, grid, **options)
    return labels.read(grid.whole)


# Raster labels


def test_codes_are_the_tasks_and_hidden_pixels_are_not_known(tmp_path):
    codes = np.zeros(GRID.shape, dtype=np.uint8)
    codes[0, :6] = [1, 2, 7, 255, 254, 0]
    path = write_raster(tmp_path / "l.tif", codes, nodata=254)
    assert read(path, EXCLUSIVE, ignore=[255])[0, 0, :6].tolist() == [1, 2, 3, IGNORE, IGNORE, 0]
    with pytest.raises(LabelError, match=r"l\.tif: code 255 \(1 pixels\)"):
        read(path, EXCLUSIVE)


def test_a_mask_band_and_nan_hide_labels(tmp_path):
    codes = np.ones(GRID.shape, dtype=np.float32)
    codes[0, 0] = np.nan
    path = write_raster(tmp_path / "l.tif", codes)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.indices(GRID.shape)[1] != 3)
    target = read(path, BINARY)[0]
    expected = np.ones(GRID.shape, dtype=np.int16)
    expected[0, 0] = expected[:, 3] = IGNORE
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("odd", [0.5, np.inf])
def test_numbers_that_are_no_codes_are_refused(tmp_path, odd):
    codes = np.full(GRID.shape, 2, dtype=np.float64)
    codes[3, 4:6] = odd
    with pytest.raises(LabelError, match=r"\(2 pixels\); label codes are whole numbers"):
        read(write_raster(tmp_path / "l.tif", codes), FULL)


@pytest.mark.parametrize("nodata", [None, 254])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_one_band_per_class(tmp_path, k, nodata):
    """Four byte bands are taken for RGB and alpha by GDAL; they are four classes."""
    masks = np.random.default_rng(k).integers(0, 2, (k, *GRID.shape), dtype=np.uint8)
    masks[0, 0, 0] = 255
    task = Task("multilabel", tuple(LandClass(f"c{i}", i + 1) for i in range(k)))
    masks[1, 0, 1] = nodata or 0
    path = write_raster(tmp_path / "l.tif", masks, nodata=nodata)
    expected = np.where(masks > 1, IGNORE, masks.astype(np.int16))
    assert np.array_equal(read(path, task, ignore=[255]), expected)
    with pytest.raises(LabelError, match="give one 0/1 band per class"):
        read(path, Task("multilabel", classes(x=1, y=2, z=3, v=4, w=5)), ignore=[255])


def test_another_grid_is_an_error_or_resampled_by_nearest(tmp_path):
    coarse = Grid(6, 9, GRID.transform @ Affine.scale(2), UTM)
    codes = np.random.default_rng(0).choice(np.array([0, 1, 7], dtype=np.uint8), coarse.shape)
    path = write_raster(tmp_path / "l.tif", codes, coarse)
    with pytest.raises(GridError, match=r"6 x 9.*data\.resample"):
        read(path, EXCLUSIVE)
    expected = np.kron(np.where(codes == 7, 3, codes), np.ones((2, 2), int))[:12, :17]
    assert np.array_equal(read(path, EXCLUSIVE, resample=True)[0], expected)
    shifted = Grid(*GRID.shape, GRID.transform @ Affine.translation(5, 0), UTM)
    path = write_raster(tmp_path / "s.tif", np.ones(GRID.shape, np.uint8), shifted)
    target = read(path, BINARY, resample=True)[0]
    assert (target[:, :5] == IGNORE).all()
    assert (target[:, 5:] == 1).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_without_georeference_lie_on_the_image_only_if_they_have_its_size(tmp_path):
    nowhere = Grid(*GRID.shape, Affine.identity(), None)
    path = write_raster(tmp_path / "l.tif", np.ones(GRID.shape, np.uint8), nowhere)
    small = write_raster(tmp_path / "s.tif", np.ones((3, 3), np.uint8), nowhere)
    labels = open_labels(LabelSource(path=path), BINARY, GRID)
    assert (labels.read(GRID.whole) == 1).all()
    assert "no georeference" in labels.notes[0]
    with pytest.raises(GridError, match=r"cannot be resampled.*no CRS"):
        read(small, BINARY, resample=True)


def test_a_no_data_value_that_is_a_class_is_noted(tmp_path):
    path = write_raster(tmp_path / "l.tif", np.zeros(GRID.shape, np.uint8), nodata=0)
    labels = open_labels(LabelSource(path=path), BINARY, GRID)
    assert "no-data 0, the value of background" in labels.notes[0]
    assert (labels.read(GRID.whole) == IGNORE).all()


def test_instructions_for_polygons_do_not_go_to_rasters(tmp_path):
    path = write_raster(tmp_path / "l.tif", np.zeros(GRID.shape, np.uint8))
    with pytest.raises(LabelError, match="field is for vector labels"):
        read(LabelSource(path=path, field="kind"), BINARY)
    with pytest.raises(LabelError, match="one label raster"):
        read(LabelSource(path=(path, path)), BINARY)
    with pytest.raises(MissingFileError):
        read(str(tmp_path / "none.tif"), BINARY)
    with pytest.raises(MissingFileError):
        read(str(tmp_path / "none.gpkg"), BINARY)


# Vector labels

pixels = st.floats(-4, 21).map(lambda value: round(value, 3))
triangles = st.lists(
    st.lists(st.tuples(pixels, pixels), min_size=3, max_size=3).map(shapely.Polygon).filter(lambda one: one.area > 0.5),
    min_size=1,
    max_size=6,
)


@settings(max_examples=20, deadline=None)
@given(triangles, triangles, st.sampled_from([GRID, ROTATED]), st.integers(1, 9))
def test_polygons_are_the_pixels_whose_centres_they_hold(tmp_path_factory, a, b, grid, size):
    rows, columns = np.indices(grid.shape) + 0.5
    edges = shapely.union_all([one.boundary for one in a + b])
    assume((shapely.distance(edges, shapely.points(columns, rows)) > 1e-6).all())  # a centre on an edge is a toss
    folder = tmp_path_factory.mktemp("l")
    kinds = ["a"] * len(a) + ["b"] * len(b)
    path = write_polygons(folder / "p.fgb", [placed(one, grid) for one in a + b], kinds)
    in_a = np.any([centres_in(one, grid) for one in a], axis=0)
    in_b = np.any([centres_in(one, grid) for one in b], axis=0)
    labels = open_labels(LabelSource(path=path, field="kind"), OVERLAPPING, grid)
    if labels is None:
        assert not in_a.any()
        assert not in_b.any()
        return
    target = labels.read(grid.whole)
    assert np.array_equal(target, np.stack([in_a, in_b]))
    tiled = np.full_like(target, 99)
    for window in grid.tiles(size):
        rows, columns = window.toslices()
        tiled[:, rows, columns] = labels.read(window)
    assert np.array_equal(tiled, target)

    known = open_labels(LabelSource(path=path, field="kind", outside="ignore"), OVERLAPPING, grid).read(grid.whole)
    assert np.array_equal(known, np.where(in_a | in_b, target, IGNORE))
    winner = LabelSource(path=path, field="kind", priority=("b",))
    assert np.array_equal(read(winner, EXCLUSIVE, grid)[0], np.where(in_b, 2, np.where(in_a, 1, 0)))
    assert np.array_equal(read(winner, FULL, grid)[0], np.where(in_b, 1, np.where(in_a, 0, IGNORE)))
    undecided = LabelSource(path=path, field="kind")
    if (in_a & in_b).any():
        with pytest.raises(LabelError, match=rf"a and b overlap on {(in_a & in_b).sum()} pixels.*priority"):
            read(undecided, EXCLUSIVE, grid)
    else:
        assert np.array_equal(read(undecided, EXCLUSIVE, grid)[0], np.where(in_b, 2, np.where(in_a, 1, 0)))


def boxes(*bounds):
    """Boxes in pixels (left, top, right, bottom) as polygons on `GRID`."""
    return [placed(shapely.box(*one), GRID) for one in bounds]


def test_background_and_not_known_polygons(tmp_path):
    kinds = ["clear", "intact", "cloud"]
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 4, 12), (4, 0, 8, 12), (0, 0, 17, 3)), kinds)
    values = {"clear": "a", "intact": "background", "cloud": None}
    source = LabelSource(path=path, field="kind", values=values, outside="ignore")
    expected = np.full(GRID.shape, IGNORE, dtype=np.int16)
    expected[3:, :4], expected[3:, 4:8] = 1, 0
    assert np.array_equal(read(source, BINARY)[0], expected)
    assert np.array_equal(read(source, OVERLAPPING)[0], expected)
    everywhere = expected.copy()
    everywhere[3:, 8:] = 0
    assert np.array_equal(read(source.model_copy(update={"outside": None}), BINARY)[0], everywhere)


def test_background_polygons_dispute_too(tmp_path):
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 4, 4), (2, 2, 8, 8)), ["a", "background"])
    with pytest.raises(LabelError, match="a and background overlap on 4 pixels"):
        read(LabelSource(path=path, field="kind"), BINARY)
    ranked = LabelSource(path=path, field="kind", priority=("background", "a"))
    assert read(ranked, BINARY).sum() == 12


def test_a_field_may_hold_codes_and_one_class_needs_none(tmp_path):
    codes = np.array([7, 2, 0, 255])
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 1, 1), (1, 0, 2, 1), (2, 0, 3, 1), (3, 0, 4, 1)), codes)
    for kinds in (codes, codes.astype(float), codes.astype(str)):
        write_polygons(path, boxes((0, 0, 1, 1), (1, 0, 2, 1), (2, 0, 3, 1), (3, 0, 4, 1)), kinds)
        target = read(LabelSource(path=path, field="kind"), EXCLUSIVE, ignore=[255])
        assert target[0, 0, :5].tolist() == [3, 2, 0, IGNORE, 0]
    assert read(path, BINARY).sum() == 4
    with pytest.raises(LabelError, match="name the field"):
        read(path, EXCLUSIVE)
    with pytest.raises(LabelError, match=r"'255' \(1 polygons\), known are 0, 1, 2, 7"):
        read(LabelSource(path=path, field="kind"), EXCLUSIVE)
    with pytest.raises(LabelError, match="its fields are kind"):
        read(LabelSource(path=path, field="class"), EXCLUSIVE)


def test_nulls_are_skipped_and_invalid_polygons_repaired_and_both_are_counted(tmp_path):
    bowtie = placed(shapely.Polygon([(0, 0), (8, 8), (8, 0), (0, 8)]), GRID)
    line = placed(shapely.Polygon([(10, 1), (14, 1), (10, 1)]), GRID)
    path = write_polygons(tmp_path / "p.gpkg", [bowtie, None, shapely.Polygon(), line])
    labels = open_labels(LabelSource(path=path), BINARY, GRID)
    assert [note.split(": ")[1] for note in labels.notes] == [
        "2 features have no geometry; skipped",
        "2 polygons on this scene were invalid; repaired",
    ]
    columns, rows = np.arange(17) + 0.5, (np.arange(12) + 0.5)[:, None]
    lobes = (np.abs(columns - 4) > np.abs(rows - 4)) & (columns < 8) & (rows < 8)
    target = labels.read(GRID.whole)[0]
    off_edge = np.abs(np.abs(columns - 4) - np.abs(rows - 4)) > 1e-6
    assert np.array_equal(target[off_edge], lobes[off_edge])


@pytest.mark.parametrize("other", ["POINT (600010 199990)", "LINESTRING (600010 199990, 600100 199000)"])
def test_points_and_lines_are_refused_by_name(tmp_path, other):
    geometry = shapely.from_wkt(other)
    path = write_polygons(tmp_path / "p.gpkg", [*boxes((0, 0, 1, 1)), geometry])
    with pytest.raises(LabelError, match=f"1 of 2 geometries are of type {geometry.geom_type}"):
        read(path, BINARY)


def test_layers(tmp_path):
    path = tmp_path / "p.gpkg"
    write_polygons(path, boxes((0, 0, 2, 2)), layer="one")
    assert read(str(path), BINARY).sum() == 4
    write_polygons(path, boxes((0, 0, 3, 3)), layer="two", append=True)
    assert read(LabelSource(path=str(path), layer="two"), BINARY).sum() == 9
    for layer in (None, "three"):
        with pytest.raises(LabelError, match="are one, two; name one under"):
            read(LabelSource(path=str(path), layer=layer), BINARY)
    (tmp_path / "text.gpkg").write_text("no geopackage")
    with pytest.raises(LabelError, match=r"text\.gpkg: cannot be read"):
        read(str(tmp_path / "text.gpkg"), BINARY)


def test_a_crs_on_one_side_only_is_an_error(tmp_path):
    path = write_polygons(tmp_path / "p.geojson", boxes((0, 0, 2, 2)))
    with pytest.raises(GridError, match=r"p\.geojson has CRS EPSG:.*its image none"):
        read(path, BINARY, Grid(12, 17, GRID.transform, None))
    with pytest.warns(UserWarning, match="crs"):
        path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 2, 2)), crs=None)
    with pytest.raises(GridError, match=r"p\.gpkg has CRS none, its image EPSG:32622"):
        read(path, BINARY)
    assert read(path, BINARY, Grid(12, 17, GRID.transform, None)).sum() == 4


@pytest.mark.parametrize("epsg", [4326, 3857, 2263])
def test_edges_are_straight_in_the_polygons_own_crs(tmp_path, epsg):
    """On 100 km a parallel is bent by hundreds of metres in UTM; EPSG:2263 counts feet."""
    grid = Grid(60, 60, Affine(2_000, 0, 300_000, 0, -2_000, 4_560_000), CRS.from_epsg(32618))
    rows, columns = np.indices(grid.shape) + 0.5
    x, y = 300_000 + 2_000 * columns, 4_560_000 - 2_000 * rows
    x, y = pyproj.Transformer.from_crs(32618, epsg, always_xy=True).transform(x, y)
    left, right = np.quantile(x, [0.02, 0.98])
    polygon = shapely.box(left, np.median(y), right, np.quantile(y, 0.9))
    path = write_polygons(tmp_path / "p.gpkg", [polygon], crs=CRS.from_epsg(epsg))
    inside = shapely.contains_xy(polygon, x, y)
    assert inside.sum() > 500
    assert np.array_equal(read(path, BINARY, grid)[0] == 1, inside)


def test_polygons_elsewhere_do_not_serve_the_scene(tmp_path):
    far = write_polygons(tmp_path / "far.gpkg", [shapely.box(-170, -80, -160, -60)], crs=CRS.from_epsg(4326))
    near = write_polygons(tmp_path / "near.gpkg", boxes((0, 0, 3, 2)))
    assert open_labels(LabelSource(path=far), BINARY, GRID) is None
    assert read(LabelSource(path=(far, near)), BINARY).sum() == 6


def test_a_changed_file_is_read_again(tmp_path):
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 3, 2)))
    assert read(path, BINARY).sum() == 6
    Path(path).unlink()
    write_polygons(path, boxes((0, 0, 1, 1)))
    assert read(path, BINARY).sum() == 1


@pytest.mark.parametrize("kind", ["raster", "vector"])
def test_outside_the_scene_nothing_is_known_and_labels_travel(tmp_path, kind):
    if kind == "raster":
        path = write_raster(tmp_path / "l.tif", np.ones(GRID.shape, np.uint8))
    else:
        path = write_polygons(tmp_path / "p.gpkg", boxes((-9, -9, 40, 40)))
    labels = pickle.loads(pickle.dumps(open_labels(LabelSource(path=path), BINARY, GRID)))
    target = labels.read(Window(-2, -3, 30, 40))
    assert (target[:, 3:15, 2:19] == 1).all()
    assert (target == 1).sum() == 12 * 17
    assert (labels.read(Window(100, 0, 4, 5)) == IGNORE).all()
    assert labels.read(Window(100, 0, 4, 5)).shape == (1, 5, 4)


def test_is_vector():
    assert is_vector("a.SHP")
    assert not is_vector("a.gpkg.tif")


# Published polygons and the rasters that were made of them


def grid_at(path):
    if not path.exists():
        pytest.skip("the shared imagery is not here")
    with open_raster(path) as dataset:
        return grid_of(dataset)


@pytest.mark.parametrize(
    ("raster", "vector", "field", "task", "ignore"),
    [
        (
            "slovenia/LULC.tif", "slovenia/LULC.gpkg", "LULC_ID",
            Task("multiclass", classes(cultivated=1, forest=2, grass=3, shrub=4, built=8), background=False), [0],
        ),
        (
            "mexico/training_data.gtif", "mexico/training_data.shp", "id",
            Task("multiclass", classes(forest=1, water=2, herbaceous=3, barren=4, urban=5), background=False), [0],
        ),
        (
            "para_landsat5/labels.tif", "para_landsat5/training_polygons.gpkg", "class",
            Task("multiclass", classes(forest=1, water=2, cleared=3, fallen_dry=4), background=False), [0],
        ),
        (
            "trees_overlapping/SOAP_061_multilabel.tif", "trees_overlapping/SOAP_061_boxes_pixelcoords.gpkg", "class",
            Task("multilabel", classes(Alive=1, Dead=2)), [],
        ),
    ],
    ids=["slovenia", "mexico", "para", "trees"],
)  # fmt: skip
def test_published_polygons_equal_their_published_raster(raster, vector, field, task, ignore):
    grid = grid_at(DATA / raster)
    burnt = read(LabelSource(path=str(DATA / vector), field=field), task, grid, ignore=ignore)
    assert np.array_equal(burnt, read(str(DATA / raster), task, grid, ignore=ignore))
    assert (burnt >= 0).any()


def test_labels_on_another_crs_are_refused():
    grid = grid_at(DATA / "zurich" / "images" / "1091-322_00.tif")
    with pytest.raises(GridError, match="lies on another grid"):
        read(str(DATA / "zurich" / "bad_label_1091-322_00.tif"), BINARY, grid)


def test_an_unknown_code_is_counted_in_the_whole_file(write_raster):
    codes = np.ones((40, 50), dtype=np.uint8)
    codes[::2], codes[5, 7] = 9, 4
    task = Task("binary", (LandClass("class", 1),))
    path = write_raster("codes.tif", codes)
    with open_raster(path) as dataset:
        labels = open_labels(LabelSource(path=str(path)), task, grid_of(dataset))
    with pytest.raises(LabelError, match=r"codes.tif: code 4 \(1 pixels\), 9 \(1000 pixels\) is not in .* 0, 1;"):
        labels.read(Window(0, 0, 3, 3))
