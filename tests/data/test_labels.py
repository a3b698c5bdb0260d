import json
import pickle
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from places import SHARED
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.data.labels.open import open_labels
from segkit.errors import GridError, LabelError, MissingFileError
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_grid
from segkit.recipe.label_source import LabelSource
from segkit.task import IGNORE, LandCoverClass, Task

UTM = CRS.from_epsg(32622)
GRID = Grid(12, 17, Affine(30, 0, 600_000, 0, -30, 200_000), UTM)
ROTATED = Grid(12, 17, GRID.transform @ Affine.rotation(33), UTM)


def classes(**values):
    return tuple(LandCoverClass(name, value) for name, value in values.items())


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
    return labels.read(grid.full_window)


# Raster labels


def test_codes_become_targets_and_masked_pixels_are_unlabelled(tmp_path):
    codes = np.zeros(GRID.shape, dtype=np.uint8)
    codes[0, :6] = [1, 2, 7, 255, 254, 0]
    path = write_raster(tmp_path / "l.tif", codes, nodata=254)
    assert read(path, EXCLUSIVE, ignore=[255])[0, 0, :6].tolist() == [1, 2, 3, IGNORE, IGNORE, 0]
    with pytest.raises(LabelError, match=r"l\.tif: code 255 \(1 pixels\)"):
        read(path, EXCLUSIVE)


@st.composite
def coded(draw):
    """Return a task, a band of its codes and others, the no-data value, and codes to ignore."""
    dtype = np.dtype(draw(st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32"])))
    low, high = (0, 1000) if dtype.kind == "f" else (max(-1000, np.iinfo(dtype).min), min(60_000, np.iinfo(dtype).max))
    code = st.integers(low, high)
    values = draw(st.lists(code.filter(lambda one: one > 0), min_size=1, max_size=4, unique=True))
    kind = "binary" if len(values) == 1 else "multiclass"
    task = Task(kind, classes(**{f"c{number}": value for number, value in enumerate(values)}))
    others = st.lists(code.filter(lambda one: one and one not in values), max_size=2, unique=True)
    nodata, ignored = draw(others)[:1], draw(others)
    unknown = draw(others)
    band = draw(arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                       elements=st.sampled_from([0, *values, *nodata, *ignored, *unknown])))  # fmt: skip
    return task, band, nodata, ignored


@settings(max_examples=25)
@given(coded(), st.sampled_from([GRID, ROTATED]), st.integers(1, 4))
def test_each_code_is_a_class_unlabelled_or_an_error(tmp_path_factory, drawn, grid, side):
    """Of random numbers, data types and grids, read in windows of any size."""
    task, band, nodata, ignored = drawn
    grid = Grid(*band.shape, grid.transform, grid.crs)
    path = write_raster(tmp_path_factory.mktemp("codes") / "a.tif", band, grid, nodata=nodata[0] if nodata else None)
    labels = open_labels(LabelSource(path=path), task, grid, ignore=ignored)
    targets = {0: 0} | {one.value: number for number, one in enumerate(task.classes, 1)}
    targets |= dict.fromkeys([*nodata, *ignored], IGNORE)
    if strange := sorted(set(band.ravel().astype(int).tolist()) - targets.keys()):
        with pytest.raises(LabelError) as message:
            labels.read(grid.full_window)
        assert all(f"{code} ({(band == code).sum()} pixels)" in str(message.value) for code in strange)
        return
    expected = np.vectorize(targets.get, otypes=[np.int16])(band.astype(int))
    for window in grid.tiles(side):
        np.testing.assert_array_equal(labels.read(window)[0], expected[window.toslices()])


def test_a_mask_band_and_nan_are_unlabelled(tmp_path):
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
def test_fractional_codes_are_refused(tmp_path, odd):
    codes = np.full(GRID.shape, 2, dtype=np.float64)
    codes[3, 4:6] = odd
    with pytest.raises(LabelError, match=r"2 pixels have values such as .*; label codes are whole numbers"):
        read(write_raster(tmp_path / "l.tif", codes), FULL)


@pytest.mark.parametrize("nodata", [None, 254])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_one_band_per_class(tmp_path, k, nodata):
    """Four byte bands are taken for RGB and alpha by GDAL; they are four classes."""
    masks = np.random.default_rng(k).integers(0, 2, (k, *GRID.shape), dtype=np.uint8)
    masks[0, 0, 0] = 255
    task = Task("multilabel", tuple(LandCoverClass(f"c{i}", i + 1) for i in range(k)))
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
def test_labels_without_georeference_need_the_size_of_the_image(tmp_path):
    nowhere = Grid(*GRID.shape, Affine.identity(), None)
    path = write_raster(tmp_path / "l.tif", np.ones(GRID.shape, np.uint8), nowhere)
    small = write_raster(tmp_path / "s.tif", np.ones((3, 3), np.uint8), nowhere)
    labels = open_labels(LabelSource(path=path), BINARY, GRID)
    assert (labels.read(GRID.full_window) == 1).all()
    assert "no georeference" in labels.notes[0]
    with pytest.raises(GridError, match=r"cannot be resampled.*no CRS"):
        read(small, BINARY, resample=True)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "table", "part", "bands", "fractions"])
def test_a_nodata_value_that_is_also_a_code_is_ambiguous(tmp_path, kind):
    """Oracle: the same file that declares nothing (`code`), or lists the value as not known (`ignore`)."""
    codes = np.random.default_rng(0).integers(0, 2, (2, *GRID.shape), dtype=np.uint8)
    codes = codes if kind in ("bands", "fractions") else codes[0]
    codes[..., 0, 0] = 9
    options = {
        "table": {"values": {"0": "background", "1": "b", "9": None}},
        "part": {"classes": ("a",)},
        "fractions": {"fractions": True, "classes": ("a", "b"), "outside_polygons": "background"},
    }.get(kind, {})
    if kind == "fractions":
        codes[1] = 0
    task = {"binary": BINARY, "bands": OVERLAPPING, "fractions": Task("multiclass", classes(a=1, b=2))}.get(kind)
    task = task or EXCLUSIVE
    declared = LabelSource(path=write_raster(tmp_path / "l.tif", codes, nodata=0), **options)
    plain = LabelSource(path=write_raster(tmp_path / "plain.tif", codes), **options)
    hidden = codes == 0

    def opened(source, **changes):
        return open_labels(source.model_copy(update=changes), task, GRID, ignore=[9])

    doubted = opened(declared)
    [doubt] = doubted.ambiguities
    for said in (
        "l.tif declares 0 as no data, which is also",
        f"{hidden.reshape(-1, *GRID.shape).any(axis=0).mean():.1%}",
    ):
        assert said in doubt
    as_code, as_unknown = opened(declared, nodata="code"), opened(declared, nodata="ignore")
    assert as_code.ambiguities == as_unknown.ambiguities == opened(plain).ambiguities == ()
    expected = opened(plain).read(GRID.full_window)
    np.testing.assert_array_equal(as_code.read(GRID.full_window), expected)
    np.testing.assert_array_equal(as_unknown.read(GRID.full_window), doubted.read(GRID.full_window))
    if kind not in ("bands", "fractions"):
        np.testing.assert_array_equal(as_unknown.read(GRID.full_window)[0], np.where(hidden, IGNORE, expected[0]))
    else:
        assert (as_unknown.read(GRID.full_window) == IGNORE).sum() > (expected == IGNORE).sum()


def test_a_nodata_value_that_is_no_code_is_not_ambiguous(tmp_path):
    for nodata, codes in ((254, np.zeros(GRID.shape, np.uint8)), (0, np.ones(GRID.shape, np.uint8))):
        path = write_raster(tmp_path / "l.tif", codes, nodata=nodata)
        assert open_labels(LabelSource(path=path), BINARY, GRID).ambiguities == ()
    path = write_polygons(tmp_path / "p.gpkg", [placed(shapely.box(1, 1, 5, 5), GRID)])
    with pytest.raises(LabelError, match="nodata is only for label rasters"):
        read(LabelSource(path=path, nodata="code"), BINARY)


def test_a_nodata_code_on_another_grid_stays_inside_its_file(tmp_path):
    coarse = Grid(4, 5, GRID.transform @ Affine.translation(2, 3) @ Affine.scale(2), UTM)
    codes = np.random.default_rng(1).integers(0, 2, coarse.shape, dtype=np.uint8)
    source = LabelSource(path=write_raster(tmp_path / "l.tif", codes, coarse, nodata=0), nodata="code")
    expected = np.full(GRID.shape, IGNORE, dtype=np.int16)
    expected[3:11, 2:12] = np.kron(codes, np.ones((2, 2), int))
    np.testing.assert_array_equal(read(source, BINARY, resample=True)[0], expected)


def test_options_of_polygons_are_refused_for_rasters(tmp_path):
    path = write_raster(tmp_path / "l.tif", np.zeros(GRID.shape, np.uint8))
    with pytest.raises(LabelError, match="field is only for vector labels"):
        read(LabelSource(path=path, field="kind"), BINARY)
    with pytest.raises(LabelError, match="full_value is only for fractions"):
        read(LabelSource(path=path, full_value=100), BINARY)
    with pytest.raises(LabelError, match="one label raster"):
        read(LabelSource(path=(path, path)), BINARY)
    with pytest.raises(MissingFileError):
        read(str(tmp_path / "none.tif"), BINARY)
    with pytest.raises(MissingFileError):
        read(str(tmp_path / "none.gpkg"), BINARY)


def test_a_table_of_codes(tmp_path):
    codes = np.zeros(GRID.shape, dtype=np.uint16)
    codes[0, :6] = [11, 12, 20, 99, 255, 300]
    path = write_raster(tmp_path / "l.tif", codes, nodata=300)
    values = {"0": "background", "11": "a", "12": "a", "20": "c", "99": None, "300": "b"}
    source = LabelSource(path=path, values=values)
    assert read(source, EXCLUSIVE, ignore=[255, 11])[0, 0, :7].tolist() == [1, 1, 3, IGNORE, IGNORE, IGNORE, 0]
    assert open_labels(source, EXCLUSIVE, GRID).ambiguities == (
        f"{path} declares 300 as no data, which is also the code of b (0.5% of the pixels)",
    )
    labels = open_labels(source, EXCLUSIVE, GRID)
    with pytest.raises(
        LabelError, match=r"l\.tif: code 255 \(1 pixels\) is not defined, labels\.values defines 0, 11, .*, 300; add"
    ):
        labels.read(Window(0, 0, 5, 1))
    for wrong, said in (({"1.0": "a"}, "lists '1.0'; raster codes are whole"), ({"1": "x"}, "lists 'x'")):
        with pytest.raises(LabelError, match=said):
            read(LabelSource(path=path, values=wrong), EXCLUSIVE)
    masks = write_raster(tmp_path / "m.tif", np.zeros((3, *GRID.shape), np.uint8))
    with pytest.raises(LabelError, match="values is only for rasters with one band of codes, this has 3 bands"):
        read(LabelSource(path=masks, values=values), EXCLUSIVE)


# Several sources


@pytest.mark.parametrize("task", [EXCLUSIVE, OVERLAPPING, FULL])
@settings(max_examples=40)
@given(data=st.data())
def test_each_class_comes_from_the_sources_that_cover_it(tmp_path_factory, task, data):
    """Every pixel against the rule in words; small rasters, so that many agree."""
    folder, grid = tmp_path_factory.mktemp("l"), Grid(2, 3, GRID.transform, UTM)
    names = [one.name for one in task.classes]
    values = {one.name: one.value for one in task.classes}
    sources, said = [], []  # said: per source {pixel: class, "none" or None}
    for number in range(data.draw(st.integers(2, 3))):
        own = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True))
        kinds = data.draw(st.lists(st.sampled_from([*own, "none", None]), min_size=6, max_size=6))
        table = {str(values[name]): name for name in own} | {"200": None}
        table |= {"100": "background" if task.allows_no_class else None}
        codes = [200 if kind is None else 100 if kind == "none" else values[kind] for kind in kinds]
        path = write_raster(folder / f"{number}.tif", np.reshape(codes, grid.shape).astype(np.uint8), grid)
        sources.append(LabelSource(path=path, values=table, classes=own))
        said.append((own, [None if kind == "none" and not task.allows_no_class else kind for kind in kinds]))

    expected, disputed = [], 0
    for pixel in range(6):
        partial_labels = {name: set() for name in names}
        for own, kinds in said:
            kind = kinds[pixel]
            # A class that is there denies, of those that exclude it, all; of those that overlap it, none but its own.
            denied = [] if kind is None else own if kind == "none" or task.n_targets > 1 else names
            for name in denied:
                partial_labels[name].add(name == kind)
        disputed += any(len(each) > 1 for each in partial_labels.values())
        if task.n_targets > 1:
            expected.append(
                [IGNORE if not partial_labels[name] else int(True in partial_labels[name]) for name in names]
            )
            continue
        there = [place for place, name in enumerate(names) if True in partial_labels[name]]
        none = 0 if task.background and all(partial_labels[name] == {False} for name in names) else IGNORE
        expected.append([there[0] + bool(task.background) if there else none])
    if disputed:
        with pytest.raises(LabelError, match=r"\d\.tif and .*\d\.tif contradict each other in \d pixels"):
            read_all(sources, task, grid)
    else:
        found = read_all(sources, task, grid)
        assert found.dtype == np.int16
        assert found.reshape(task.n_targets, 6).T.tolist() == expected


def read_all(sources, task, grid=GRID, **options):
    return open_labels(sources, task, grid, **options).read(grid.full_window)


def test_a_contradiction_names_both_files_and_all_pixels(tmp_path):
    water, forest = np.zeros((2, *GRID.shape), np.uint8)
    water[:3], forest[2:6] = 1, 2
    sources = [
        LabelSource(path=write_raster(tmp_path / "water.tif", water), classes=("a",)),
        LabelSource(path=write_raster(tmp_path / "forest.tif", forest), classes=("b",)),
    ]
    labels = open_labels(sources, EXCLUSIVE, GRID)
    assert (labels.read(Window(0, 0, 17, 2)) == 1).all()
    with pytest.raises(
        LabelError, match=r"water\.tif and .*forest\.tif contradict each other in 17 pixels \(classes a, b\)"
    ):
        labels.read(Window(3, 2, 1, 1))
    both = read_all(sources, OVERLAPPING)
    assert np.array_equal(both, np.stack([water == 1, forest == 2]))


def test_background_is_where_all_classes_are_absent(tmp_path):
    first, second = np.zeros((2, *GRID.shape), np.uint8)
    first[0], second[1], second[2] = 1, 2, 255
    sources = [
        LabelSource(path=write_raster(tmp_path / "1.tif", first), classes=("a",)),
        LabelSource(path=write_raster(tmp_path / "2.tif", second), classes=("b",)),
    ]
    task = Task("multiclass", classes(a=1, b=2))
    rows = read_all(sources, task, ignore=[255])[0, :4, 0]
    assert rows.tolist() == [1, 2, IGNORE, 0]
    assert (read_all(sources, EXCLUSIVE, ignore=[255])[0, 3:] == IGNORE).all()  # nobody speaks for c
    assert read(sources[0], task)[0, :4, 0].tolist() == [1, IGNORE, IGNORE, IGNORE]
    with pytest.raises(LabelError, match=r"2\.tif: code 2 \(17 pixels\) is of a class that these labels do not cover"):
        read(sources[1].model_copy(update={"classes": ("a",)}), task, ignore=[255])


def test_rasters_masks_and_polygons_are_merged(tmp_path):
    codes = np.full(GRID.shape, 255, np.uint8)
    codes[:6] = 1
    masks = np.zeros((2, *GRID.shape), np.uint8)
    masks[1, 6:8], masks[:, 8] = 1, 255
    roads = write_polygons(tmp_path / "roads.gpkg", boxes((0, 9, 17, 10)), ["asphalt"])
    far = write_polygons(tmp_path / "far.gpkg", boxes((90, 90, 91, 91)))
    sources = [
        LabelSource(path=write_raster(tmp_path / "codes.tif", codes), classes=("a",)),
        LabelSource(path=write_raster(tmp_path / "masks.tif", masks), classes=("c", "b")),
        LabelSource(path=roads, classes=("b",), outside_polygons="ignore"),
        LabelSource(path=far, classes=("a",)),
    ]
    # Band 2 of the masks is b. Row 9 is b in the polygons, which the masks deny.
    with pytest.raises(
        LabelError, match=r"masks\.tif and .*roads\.gpkg contradict each other in 17 pixels \(classes b\)"
    ):
        read_all(sources, EXCLUSIVE, ignore=[255])
    masks[:, 9] = 255
    write_raster(tmp_path / "masks.tif", masks)
    joined = open_labels(sources, EXCLUSIVE, GRID, ignore=[255])
    assert not joined.soft
    assert joined.name == " and ".join(one.path for one in sources[:3])
    expected = np.repeat([1, 2, IGNORE, 2, IGNORE], [6, 2, 1, 1, 2])
    assert np.array_equal(joined.read(GRID.full_window)[0], np.tile(expected[:, None], 17))
    tiled = pickle.loads(pickle.dumps(joined)).read(Window(-1, 5, 3, 6))[0]
    assert tiled.tolist() == [[IGNORE, value, value] for value in expected[5:11]]
    assert open_labels(sources[3:], EXCLUSIVE, GRID) is None


def test_polygons_of_one_class_need_no_field(tmp_path):
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 4, 3)), ["whatever"])
    target = read(LabelSource(path=path, classes=("c",)), EXCLUSIVE)[0]
    assert (target[:3, :4] == 3).all()
    assert (target == IGNORE).sum() == 12 * 17 - 12
    overlapping = read(LabelSource(path=path, classes=("b",)), OVERLAPPING)
    assert (overlapping[0] == IGNORE).all()
    assert overlapping[1].sum() == 12
    with pytest.raises(LabelError, match=r"these labels cover 2 classes; labels\.field must name the field"):
        read(LabelSource(path=path, classes=("c", "a")), EXCLUSIVE)
    other = write_polygons(tmp_path / "q.gpkg", boxes((0, 0, 4, 3), (5, 5, 6, 6)), ["a", "c"])
    with pytest.raises(
        LabelError, match=r"undefined values \(number of polygons\): 'c' \(1\); defined are 0, 1, background, a"
    ):
        read(LabelSource(path=other, field="kind", classes=("a",)), EXCLUSIVE)
    for wrong, said in (
        ({"classes": ("a", "a")}, "lists a class twice"),
        ({"classes": ("background",)}, "labels.classes lists 'background'"),
        ({"classes": ("a",), "priority": ("b",)}, "labels.priority lists 'b'; possible names are a, background"),
        ({"classes": ("a",), "values": {"a": "b"}}, "labels.values lists 'b'"),
        ({"fractions": True}, "fractions is only for rasters"),
        ({"classes": ("a",), "field": None, "other_values": "ignore"}, "other_values is for values of a field"),
    ):
        with pytest.raises(LabelError, match=said):
            read(LabelSource(**{"path": other, "field": "kind"} | wrong), EXCLUSIVE)


def test_all_other_values_are_background_or_unlabelled_where_the_recipe_says_so(tmp_path):
    """Oracle: the same labels with all values listed; features without a value are among the others."""
    shapes = boxes((0, 0, 3, 3), (4, 0, 6, 3), (7, 0, 9, 3), (10, 0, 12, 3))
    path = write_polygons(tmp_path / "p.gpkg", shapes, ["rye", "oak", "elm", None])
    for others, name in (("ignore", None), ("background", "background")):
        listed = {"oak": name, "elm": name, "": name}
        expected = read(LabelSource(path=path, field="kind", values={"rye": "a"} | listed), EXCLUSIVE)
        source = LabelSource(path=path, field="kind", values={"rye": "a"}, other_values=others)
        np.testing.assert_array_equal(read(source, EXCLUSIVE), expected)
        assert (expected[0, :3, 10:12] == (0 if name else IGNORE)).all()
    many = write_polygons(tmp_path / "many.gpkg", shapes[:1] * 15, [f"crop {number}" for number in range(15)])
    with pytest.raises(LabelError, match=r"'crop 11' \(1\) and 3 more; .*set labels\.other_values: ignore"):
        read(LabelSource(path=many, field="kind", values={"rye": "a"}), EXCLUSIVE)

    with pytest.raises(LabelError, match="other_values is background, which the task does not have"):
        read(LabelSource(path=path, field="kind", values={"rye": "a"}, other_values="background"), FULL)


def test_all_other_codes_of_a_raster_are_background_or_unlabelled_where_the_recipe_says_so(tmp_path):
    codes = np.random.default_rng(2).choice([0, 1, 2, 40, 41, 255], GRID.shape).astype(np.uint8)
    path = write_raster(tmp_path / "codes.tif", codes[None])
    values = {1: 0, 2: 2, 40: 1}  # code: category
    for others in ("ignore", "background"):
        target = IGNORE if others == "ignore" else 0
        table = {"40": "a", "2": "b", "1": "background"}
        listed = LabelSource(path=path, values=table, other_values=others)
        expected = np.vectorize(lambda code: values.get(int(code), target))(codes)  # noqa: B023
        expected[codes == 255] = IGNORE
        np.testing.assert_array_equal(read(listed, EXCLUSIVE, ignore=[255])[0], expected)
        plain = read(LabelSource(path=path, other_values=others), EXCLUSIVE, ignore=[255])[0]
        known = {one.value: number for number, one in enumerate(EXCLUSIVE.classes, 1)} | {0: 0}
        expected = np.vectorize(lambda code: known.get(int(code), target))(codes)  # noqa: B023
        expected[codes == 255] = IGNORE
        np.testing.assert_array_equal(plain, expected)
    masks = write_raster(tmp_path / "masks.tif", np.zeros((3, *GRID.shape), np.uint8))
    with pytest.raises(LabelError, match="other_values is only for rasters with one band of codes"):
        read(LabelSource(path=masks, other_values="ignore"), EXCLUSIVE)


# Fractions


def write_fractions(path, bands, scale=1.0, offset=0.0, **profile):
    write_raster(path, bands, **profile)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (scale,) * len(bands), (offset,) * len(bands)
    return str(path)


def test_fractions_are_scaled_and_masked(tmp_path):
    stored = np.zeros((2, *GRID.shape), np.int16)
    stored[0], stored[1] = 150, 50  # (150 + 50) / 400 = 0.5; (50 + 50) / 400 = 0.25
    stored[0, 0, 0], stored[1, 0, 1] = -7, 999
    path = write_fractions(tmp_path / "f.tif", stored, 1, 50, nodata=-7)
    source = LabelSource(path=path, fractions=True, full_value=400)
    labels = open_labels(source, Task("multiclass", classes(a=1, b=2)), GRID, ignore=[999])
    assert labels.soft
    target = labels.read(Window(-1, 0, 5, 2))
    assert target.dtype == np.float32
    assert target[:, 0].T.tolist() == [[IGNORE] * 3] * 3 + [[0.25, 0.5, 0.25]] * 2
    each = read(source, OVERLAPPING, ignore=[999])
    assert each[:, 0, :3].tolist() == [[IGNORE, 0.5, 0.5], [0.25, IGNORE, 0.25]]
    swapped = read(source.model_copy(update={"classes": ("b", "a")}), OVERLAPPING, ignore=[999])
    assert np.array_equal(swapped, each[::-1])
    with pytest.raises(LabelError, match=r"f\.tif: 1 pixels of band 2 \(b\) have fractions such as 2\.6225"):
        read(source, OVERLAPPING)
    with pytest.raises(LabelError, match=r"data\.ignore lists 50, which is a valid fraction \(0\.25\)"):
        read(source, OVERLAPPING, ignore=[999, 50])
    none = write_fractions(tmp_path / "n.tif", stored, 1, 50, nodata=50)
    [doubt] = open_labels(source.model_copy(update={"path": none}), OVERLAPPING, GRID, ignore=[999]).ambiguities
    assert "n.tif declares 50 as no data, which is also the fraction 0.25" in doubt


def test_fractions_of_floats_may_be_nan_and_rounded(tmp_path):
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], GRID.shape).transpose(2, 0, 1).astype(np.float32)
    shares[:, 0, 0] = np.nan
    shares[:, 0, 1] = 0, 1 + 1e-7, -1e-9
    path = write_raster(tmp_path / "f.tif", shares)
    known = np.nan_to_num(shares[:2].clip(0, 1), nan=IGNORE)
    found = read(LabelSource(path=path, fractions=True, classes=("a", "b", "background")), TWO)
    np.testing.assert_allclose(found[1:], known, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0)[1:], 1, atol=1e-6)
    for cut in (shares[:2], shares[:1]):
        path = write_raster(tmp_path / "cut.tif", cut)
        source = LabelSource(path=path, fractions=True, classes=("a", "b")[: len(cut)])
        if len(cut) == 2:
            np.testing.assert_allclose(read(source, TWO), found, atol=1e-6)
        else:  # of one class nothing follows for the others, unless it covers all
            assert (read(source, TWO)[:, shares[0] < 0.99] == IGNORE).all()
    with pytest.raises(LabelError, match=r"1 bands of fractions, but these labels cover 2 classes \(a, b\)"):
        read(LabelSource(path=path, fractions=True), TWO)
    with pytest.raises(LabelError, match="label codes are whole numbers: is this a map of fractions"):
        read(path, BINARY)


TWO = Task("multiclass", classes(a=1, b=2))


@pytest.mark.parametrize("value", [-1, 101, 255])
def test_numbers_outside_0_to_1_are_counted_in_the_whole_file(tmp_path, value):
    stored = np.zeros((2, *GRID.shape), np.int16)
    stored[1, 4:6, 3] = value
    path = write_fractions(tmp_path / "f.tif", stored, 0.01)
    labels = open_labels(LabelSource(path=path, fractions=True), TWO, GRID)
    with pytest.raises(LabelError, match=rf"f\.tif: 2 pixels of band 2 \(b\) have fractions such as {value / 100:g};"):
        labels.read(Window(3, 4, 1, 1))


def test_sums_of_rounded_percentages_are_scaled_to_1(tmp_path):
    shares = np.random.default_rng(0).dirichlet([1] * 6, GRID.shape).transpose(2, 0, 1)
    percent = np.rint(shares * 100).astype(np.uint8)
    sums = percent.astype(int).sum(axis=0)
    assert (np.abs(sums - 100) > 1).any()
    task = Task("multiclass", tuple(LandCoverClass(f"c{i}", i) for i in range(6)), background=False)
    source = LabelSource(path=write_fractions(tmp_path / "f.tif", percent), fractions=True, full_value=100)
    np.testing.assert_allclose(read(source, task), percent / sums, atol=1e-6)
    for found, why in (
        (106, "mutually exclusive"),
        (78, "labels.outside_polygons: ignore"),
        (0, "labels.outside_polygons: ignore"),
    ):
        percent[:, 5, 7] = found // 6
        percent[0, 5, 7] += found % 6
        write_fractions(tmp_path / "f.tif", percent)
        with pytest.raises(LabelError, match=rf"add up to {found / 100:g} \(1 pixels\).*{why}"):
            read(source, task)
    known = read(source.model_copy(update={"outside_polygons": "ignore"}), task)
    assert (known[:, 5, 7] == IGNORE).all()
    assert (known == IGNORE).sum() == 6


def test_fractions_of_several_files_are_merged(tmp_path):
    a, b, again = np.zeros((3, 1, *GRID.shape), np.float32)
    a[0, :2], b[0, :2], again[0] = 0.25, 0.5, 0.25
    again[0, 2:] = np.nan
    sources = [
        LabelSource(path=write_raster(tmp_path / f"{name}.tif", band), fractions=True, classes=(name[0],))
        for name, band in (("a", a), ("b", b), ("a2", again))
    ]
    soft = read_all(sources, TWO)
    assert soft[:, 0, 0].tolist() == [0.25, 0.25, 0.5]
    assert soft[:, 2, 0].tolist() == [1, 0, 0]
    assert read_all(sources, OVERLAPPING)[:, 0, 0].tolist() == [0.25, 0.5]
    write_raster(tmp_path / "a2.tif", again + np.float32(0.1))
    with pytest.raises(LabelError, match=r"a\.tif and .*a2\.tif contradict each other in 34 pixels \(classes a\)"):
        read_all(sources, OVERLAPPING)
    write_raster(tmp_path / "b.tif", b + np.float32(0.5))
    with pytest.raises(LabelError, match=r"a\.tif and .*b\.tif: fractions add up to 1\.25 \(34 pixels\)"):
        read_all(sources[:2], TWO)
    codes = LabelSource(path=write_raster(tmp_path / "c.tif", np.zeros(GRID.shape, np.uint8)))
    with pytest.raises(LabelError, match=r"a\.tif holds fractions, .*c\.tif does not"):
        read_all([codes, sources[0]], OVERLAPPING)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"values": {"1": "a"}}, "values is only for codes"),
        ({"outside_polygons": "ignore"}, "outside_polygons is only for mutually exclusive"),
        ({"priority": ("a",)}, "priority is only for vector"),
    ],
)
def test_options_that_do_not_fit_fractions(tmp_path, wrong, said):
    path = write_raster(tmp_path / "f.tif", np.zeros((2, *GRID.shape), np.float32))
    with pytest.raises(LabelError, match=said):
        read(LabelSource(path=path, fractions=True, **wrong), OVERLAPPING)


def test_published_fractions(shared):
    """Covers of 30 m pixels by polygons that leave parts of most pixels out: 100 stands for a whole one."""
    path = shared / "label_maps" / "fraction_polygon_l3.tif"
    with rasterio.open(path) as dataset:
        stored, names, grid = dataset.read(), dataset.descriptions, read_grid(dataset)
    known, sums = (stored != 255).all(axis=0), np.where(stored == 255, 0, stored).astype(int).sum(axis=0)
    legend = tuple(LandCoverClass(name, value) for value, name in enumerate(names, 1))
    source = LabelSource(path=str(path), fractions=True)

    overlapping = Task("multilabel", legend)
    each = read(source, overlapping, grid)
    np.testing.assert_allclose(each, np.where(known, stored / 100, IGNORE), atol=1e-6)
    assert np.array_equal(overlapping.harden(each), np.where(known, stored >= 50, IGNORE))

    background = Task("multiclass", legend)
    target = read(source, background, grid)
    np.testing.assert_allclose(target[1:], np.where(known, stored / 100, IGNORE), atol=1e-6)
    np.testing.assert_allclose(target[0], np.where(known, 1 - sums / 100, IGNORE), atol=1e-6)
    rest = 100 - sums
    expected = np.where(stored.max(axis=0) >= rest, stored.argmax(axis=0) + 1, 0)
    assert np.array_equal(background.harden(target)[0], np.where(known, expected, IGNORE))

    full = Task("multiclass", legend, background=False)
    with pytest.raises(LabelError, match=rf"\({(known & (sums < 97)).sum()} pixels\); the rest"):
        read(source, full, grid)
    whole = known & (sums >= 97)
    target = read(source.model_copy(update={"outside_polygons": "ignore"}), full, grid)
    np.testing.assert_allclose(target[:, whole], stored[:, whole] / sums[whole], atol=1e-6)
    assert (target[:, ~whole] == IGNORE).all()
    assert whole.sum() > 1000


# Vector labels

pixels = st.floats(-4, 21).map(lambda value: round(value, 3))
triangles = st.lists(
    st.lists(st.tuples(pixels, pixels), min_size=3, max_size=3).map(shapely.Polygon).filter(lambda one: one.area > 0.5),
    min_size=1,
    max_size=6,
)


@settings(max_examples=20)
@given(triangles, triangles, st.sampled_from([GRID, ROTATED]), st.integers(1, 9))
def test_polygons_cover_the_pixels_whose_centres_they_contain(tmp_path_factory, a, b, grid, size):
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
    target = labels.read(grid.full_window)
    assert np.array_equal(target, np.stack([in_a, in_b]))
    tiled = np.full_like(target, 99)
    for window in grid.tiles(size):
        rows, columns = window.toslices()
        tiled[:, rows, columns] = labels.read(window)
    assert np.array_equal(tiled, target)

    known = open_labels(LabelSource(path=path, field="kind", outside_polygons="ignore"), OVERLAPPING, grid).read(
        grid.full_window
    )
    assert np.array_equal(known, np.where(in_a | in_b, target, IGNORE))
    winner = LabelSource(path=path, field="kind", priority=("b",))
    assert np.array_equal(read(winner, EXCLUSIVE, grid)[0], np.where(in_b, 2, np.where(in_a, 1, 0)))
    assert np.array_equal(read(winner, FULL, grid)[0], np.where(in_b, 1, np.where(in_a, 0, IGNORE)))
    undecided = LabelSource(path=path, field="kind")
    if (in_a & in_b).any():
        with pytest.raises(LabelError, match=rf"a and b overlap in {(in_a & in_b).sum()} pixels.*priority"):
            read(undecided, EXCLUSIVE, grid)
    else:
        assert np.array_equal(read(undecided, EXCLUSIVE, grid)[0], np.where(in_b, 2, np.where(in_a, 1, 0)))


def boxes(*bounds):
    """Boxes in pixels (left, top, right, bottom) as polygons on `GRID`."""
    return [placed(shapely.box(*one), GRID) for one in bounds]


def test_background_and_unlabelled_polygons(tmp_path):
    kinds = ["clear", "intact", "cloud"]
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 4, 12), (4, 0, 8, 12), (0, 0, 17, 3)), kinds)
    values = {"clear": "a", "intact": "background", "cloud": None}
    source = LabelSource(path=path, field="kind", values=values, outside_polygons="ignore")
    expected = np.full(GRID.shape, IGNORE, dtype=np.int16)
    expected[3:, :4], expected[3:, 4:8] = 1, 0
    assert np.array_equal(read(source, BINARY)[0], expected)
    assert np.array_equal(read(source, OVERLAPPING)[0], expected)
    everywhere = expected.copy()
    everywhere[3:, 8:] = 0
    assert np.array_equal(read(source.model_copy(update={"outside_polygons": None}), BINARY)[0], everywhere)


def test_overlaps_with_background_polygons_are_refused(tmp_path):
    path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 4, 4), (2, 2, 8, 8)), ["a", "background"])
    with pytest.raises(LabelError, match="a and background overlap in 4 pixels"):
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
    with pytest.raises(LabelError, match=r"labels\.field must name"):
        read(path, EXCLUSIVE)
    with pytest.raises(LabelError, match=r"'255' \(1\); defined are 0, 1, 2, 7"):
        read(LabelSource(path=path, field="kind"), EXCLUSIVE)
    with pytest.raises(LabelError, match="its fields are kind"):
        read(LabelSource(path=path, field="class"), EXCLUSIVE)


def test_nulls_are_skipped_and_invalid_polygons_repaired_and_both_are_counted(tmp_path):
    bowtie = placed(shapely.Polygon([(0, 0), (8, 8), (8, 0), (0, 8)]), GRID)
    line = placed(shapely.Polygon([(10, 1), (14, 1), (10, 1)]), GRID)
    path = write_polygons(tmp_path / "p.gpkg", [bowtie, None, shapely.Polygon(), line])
    labels = open_labels(LabelSource(path=path), BINARY, GRID)
    assert [note.split(": ")[1] for note in labels.notes] == [
        "features without geometry are skipped (2)",
        "2 invalid polygons on this scene were repaired",
    ]
    columns, rows = np.arange(17) + 0.5, (np.arange(12) + 0.5)[:, None]
    lobes = (np.abs(columns - 4) > np.abs(rows - 4)) & (columns < 8) & (rows < 8)
    target = labels.read(GRID.full_window)[0]
    off_edge = np.abs(np.abs(columns - 4) - np.abs(rows - 4)) > 1e-6
    assert np.array_equal(target[off_edge], lobes[off_edge])


@pytest.mark.parametrize("other", ["POINT (600010 199990)", "LINESTRING (600010 199990, 600100 199000)"])
def test_points_and_lines_are_refused_by_name(tmp_path, other):
    geometry = shapely.from_wkt(other)
    path = write_polygons(tmp_path / "p.gpkg", [*boxes((0, 0, 1, 1)), geometry])
    kind = "are points, 1 have other types" if geometry.geom_type == "Point" else "have the type LineString"
    with pytest.raises(LabelError, match=f"1 of 2 geometries {kind}"):
        read(path, BINARY)


def test_layers(tmp_path):
    path = tmp_path / "p.gpkg"
    write_polygons(path, boxes((0, 0, 2, 2)), layer="one")
    assert read(str(path), BINARY).sum() == 4
    write_polygons(path, boxes((0, 0, 3, 3)), layer="two", append=True)
    assert read(LabelSource(path=str(path), layer="two"), BINARY).sum() == 9
    for layer in (None, "three"):
        with pytest.raises(LabelError, match="are one, two; give one with"):
            read(LabelSource(path=str(path), layer=layer), BINARY)
    (tmp_path / "text.gpkg").write_text("no geopackage")
    with pytest.raises(LabelError, match=r"text\.gpkg: cannot be read"):
        read(str(tmp_path / "text.gpkg"), BINARY)


def test_a_crs_on_one_side_only_is_an_error(tmp_path):
    path = write_polygons(tmp_path / "p.geojson", boxes((0, 0, 2, 2)))
    with pytest.raises(GridError, match=r"p\.geojson has CRS EPSG:.*the scene none"):
        read(path, BINARY, Grid(12, 17, GRID.transform, None))
    with pytest.warns(UserWarning, match="crs"):
        path = write_polygons(tmp_path / "p.gpkg", boxes((0, 0, 2, 2)), crs=None)
    with pytest.raises(GridError, match=r"p\.gpkg has CRS none, the scene EPSG:32622"):
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


def test_polygons_elsewhere_give_no_labels(tmp_path):
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
def test_labels_can_be_pickled_and_are_unlabelled_outside_the_scene(tmp_path, kind):
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


# Published polygons and the rasters that were made of them


def grid_at(path):
    if not path.exists():
        pytest.skip("the shared imagery is not here")
    with open_raster(path) as dataset:
        return read_grid(dataset)


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
    grid = grid_at(SHARED / raster)
    burnt = read(LabelSource(path=str(SHARED / vector), field=field), task, grid, ignore=ignore)
    assert np.array_equal(burnt, read(str(SHARED / raster), task, grid, ignore=ignore))
    assert (burnt >= 0).any()


def test_labels_on_another_crs_are_refused():
    grid = grid_at(SHARED / "zurich" / "images" / "1091-322_00.tif")
    with pytest.raises(GridError, match="is on another grid"):
        read(str(SHARED / "zurich" / "bad_label_1091-322_00.tif"), BINARY, grid)


def test_an_unknown_code_is_counted_in_the_whole_file(write_raster):
    codes = np.ones((40, 50), dtype=np.uint8)
    codes[::2], codes[5, 7] = 9, 4
    task = Task("binary", (LandCoverClass("class", 1),))
    path = write_raster("codes.tif", codes)
    with open_raster(path) as dataset:
        labels = open_labels(LabelSource(path=str(path)), task, read_grid(dataset))
    with pytest.raises(LabelError, match=r"codes.tif: code 4 \(1 pixels\), 9 \(1000 pixels\) is not defined, .* 0, 1;"):
        labels.read(Window(0, 0, 3, 3))


# Points


def write_points(path, places, values, crs=UTM, grid=GRID, **columns):
    """Write points, given by (column, row) of a grid, with the fields "kind" and `columns`."""
    shapes = shapely.points([grid.transform @ place for place in places])
    frame = geopandas.GeoDataFrame({"kind": values, **columns}, geometry=shapes, crs=grid.crs.to_wkt())
    frame.to_crs(crs.to_wkt()).to_file(path)
    return str(path)


@pytest.mark.parametrize("grid", [GRID, ROTATED], ids=["north-up", "rotated"])
@pytest.mark.parametrize("crs", [UTM, CRS.from_epsg(4326)], ids=["same", "degrees"])
def test_points_label_the_pixels_under_them_and_nothing_else(tmp_path, grid, crs):
    places, kinds = [(0.1, 0.1), (16.9, 11.9), (5.5, 3.5), (-0.1, 3), (9, 12.1)], ["a", "b", "c", "a", "b"]
    expected = np.full(GRID.shape, IGNORE)
    expected[0, 0], expected[11, 16], expected[3, 5] = 1, 2, 3
    path = write_points(tmp_path / "p.gpkg", places, kinds, crs, grid)
    source = LabelSource(path=path, field="kind")
    np.testing.assert_array_equal(read(source, EXCLUSIVE, grid)[0], expected)
    assert open_labels(source, EXCLUSIVE, grid).outside_is_background is False
    frame = geopandas.read_file(path).set_crs(crs.to_wkt(), allow_override=True)
    table = frame.assign(x=frame.geometry.x, y=frame.geometry.y).drop(columns="geometry")
    table.to_csv(tmp_path / "p.csv", sep=";", decimal=",", index=False)
    source = LabelSource(path=str(tmp_path / "p.csv"), field="kind", crs=crs.to_wkt())
    np.testing.assert_array_equal(read(source, EXCLUSIVE, grid)[0], expected)
    far = Grid(3, 3, grid.transform @ Affine.translation(100, 0), UTM)
    assert open_labels(source, EXCLUSIVE, far) is None


def test_points_of_background_unlabelled_points_and_discs(tmp_path):
    values = {"a": "a", "nothing": "background", "cloud": None}
    places, kinds = [(5.5, 5.5), (12.5, 5.5), (7.5, 5.5)], ["a", "nothing", "cloud"]
    path = write_points(tmp_path / "p.gpkg", places, kinds)
    target = read(LabelSource(path=path, field="kind", values=values, radius=61), BINARY)[0]
    rows, columns = np.indices(GRID.shape) + 0.5
    near = [np.hypot(columns - x, rows - y) * 30 <= 61 for x, y in places]
    expected = np.where(near[0], 1, np.where(near[1], 0, IGNORE))
    expected[near[2]] = IGNORE
    np.testing.assert_array_equal(target, expected)


def test_points_of_two_classes_on_one_pixel_need_a_priority(tmp_path):
    path = write_points(tmp_path / "p.gpkg", [(5.2, 5.5), (5.8, 5.5), (1, 1)], ["a", "b", "a"])
    with pytest.raises(LabelError, match=r"points of a and b overlap in 1 pixels.*correct the points"):
        read(LabelSource(path=path, field="kind"), EXCLUSIVE)
    assert read(LabelSource(path=path, field="kind", priority=("b",)), EXCLUSIVE)[0, 5, 5] == 2


def test_a_period_selects_by_date(tmp_path):
    places, dates = [(x + 0.5, 0.5) for x in range(5)], ["2020-12-31", "2021-01-01", "2021-06-30", "2022-01-01", None]
    path = write_points(tmp_path / "p.gpkg", places, ["a"] * 5, day=dates, year=[2020, 2021, 2021, 2022, 2022])

    def used(field, *period):
        source = LabelSource(path=path, classes=("a",), field="kind", date_field=field, period=period)
        labels = open_labels(source, EXCLUSIVE, GRID)
        assert (
            f"{5 - (labels.read(GRID.full_window) >= 0).sum()} of 5 features are not of labels.period"
            in labels.notes[0]
        )
        return np.flatnonzero(labels.read(Window(0, 0, 5, 1)).max(axis=0)[0] >= 0).tolist()

    assert (
        used("day", "2021-01-01", "2021-12-31") == used("day", "2021", "2021") == used("year", "2021", "2021") == [1, 2]
    )
    assert used("day", "2021-01-02", "2022-01-01") == [2, 3]
    assert used("day", "2020", "2021-01") == [0, 1]
    with pytest.raises(LabelError, match=r"year is 2020, which is less exact than labels\.period"):
        used("year", "2021-01-01", "2021-12-31")
    with pytest.raises(LabelError, match=r"kind is 'a'; dates are written as"):
        used("kind", "2021", "2021")


def test_options_that_do_not_fit_points(tmp_path):
    points = write_points(tmp_path / "p.gpkg", [(5.5, 5.5)], ["a"])
    polygons = write_polygons(tmp_path / "q.gpkg", [placed(shapely.box(1, 1, 5, 5), GRID)])
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    for source, said in (
        ({"path": points, "outside_polygons": "background"}, "has points, which say nothing about other pixels"),
        ({"path": points, "crs": "EPSG:4326"}, r"crs is only for tables of points \(\.csv\)"),
        ({"path": polygons, "radius": 5}, "radius is only for points"),
        ({"path": (polygons, points)}, "has polygons, .* has points; list them as two label sources"),
        ({"path": str(tmp_path / "t.csv"), "layer": "a", "crs": "EPSG:4326"}, "layer is only for vector files"),
    ):
        with pytest.raises(LabelError, match=said):
            read(LabelSource(**source), BINARY)


# Colours


COLORS = {"#00ff00": "a", "#0000ff": "b", "#00ffff": None, "#FF0000": "background"}


def write_png(path, pixels, palette=None):
    from PIL import Image

    image = Image.fromarray(pixels, "P" if palette is not None else None)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return str(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Pillow, about the mode
@pytest.mark.parametrize("kind", ["rgb.tif", "rgb.png", "rgba.png", "palette.png", "palette.tif"])
def test_colours_are_classes(tmp_path, kind):
    table = np.array([[0, 255, 0], [0, 0, 255], [0, 255, 255], [255, 0, 0]], np.uint8)
    meaning = np.array([1, 2, IGNORE, 0])
    codes = np.random.default_rng(0).integers(0, 4, GRID.shape).astype(np.uint8)
    expected = meaning[codes]
    path, pixels = tmp_path / kind, table[codes]
    if kind == "rgb.tif":
        write_raster(path, pixels.transpose(2, 0, 1), photometric="RGB")
    elif kind == "palette.tif":
        write_raster(path, codes)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_colormap(1, {index: (*map(int, color), 255) for index, color in enumerate(table)})
    elif kind == "rgba.png":
        clear = np.random.default_rng(1).random(GRID.shape) < 0.2
        write_png(path, np.dstack([pixels, np.where(clear, 0, 255).astype(np.uint8)]))
        expected = np.where(clear, IGNORE, expected)
    else:
        write_png(path, codes if "palette" in kind else pixels, table.ravel().tolist() if "palette" in kind else None)
    source = LabelSource(path=str(path), values=COLORS)
    np.testing.assert_array_equal(read(source, EXCLUSIVE)[0], expected)
    one = LabelSource(path=str(path), values={key: name if name != "b" else None for key, name in COLORS.items()})
    np.testing.assert_array_equal(read(one, BINARY)[0], np.where(expected == 2, IGNORE, expected))
    with pytest.raises(
        LabelError, match=r"the colours #ff0000 \(\d+ pixels\) are not in labels\.values, which lists #00ff"
    ):
        read(LabelSource(path=str(path), values=dict(list(COLORS.items())[:3])), EXCLUSIVE)
    others = LabelSource(path=str(path), values=dict(list(COLORS.items())[:3]), other_values="background")
    np.testing.assert_array_equal(read(others, EXCLUSIVE)[0], expected)


def test_colours_that_cannot_be_read(tmp_path):
    one = write_raster(tmp_path / "one.tif", np.zeros(GRID.shape, np.uint8))
    two = write_raster(tmp_path / "two.tif", np.zeros((2, *GRID.shape), np.uint8))
    for path, values, said in (
        (one, COLORS, "its band has no colour table"),
        (two, COLORS, "does not have red, green and blue as bytes"),
        (one, COLORS | {"7": "a"}, "lists colours, and also '7'"),
        (one, {"#12": "a"}, "lists colours, and also '#12'"),
    ):
        with pytest.raises(LabelError, match=said):
            read(LabelSource(path=path, values=values), EXCLUSIVE)


def test_black_that_is_declared_as_no_data_is_ambiguous(tmp_path):
    pixels = np.zeros((3, *GRID.shape), np.uint8)
    pixels[1, :3] = 255
    path = write_raster(tmp_path / "l.tif", pixels, nodata=0, photometric="RGB")
    source = LabelSource(path=path, values={"#00ff00": "a", "#000000": "background"})
    assert (
        "declares 0 as no data, which is also the colour #000000 (75.0% of the pixels)"
        in open_labels(source, BINARY, GRID).ambiguities[0]
    )
    expected = np.where(pixels[1] > 0, 1, IGNORE)
    np.testing.assert_array_equal(read(source, BINARY)[0], expected)
    as_code = source.model_copy(update={"nodata": "code"})
    np.testing.assert_array_equal(read(as_code, BINARY)[0], np.where(pixels[1] > 0, 1, 0))


def test_pictures_and_masks_of_255_are_recognised(tmp_path):
    table = np.array([[0, 255, 0], [0, 0, 255], [0, 255, 255]], np.uint8)
    codes = np.random.default_rng(0).integers(0, 3, GRID.shape)
    picture = write_raster(tmp_path / "rgb.tif", table[codes].transpose(2, 0, 1), photometric="RGB")
    for task in (EXCLUSIVE, BINARY, OVERLAPPING):
        with pytest.raises(
            LabelError, match=r"has the colours #.* \(\d+ pixels\).*labels\.values: \{\"#.*\": a, \.\.\.\}"
        ):
            read(picture, task)
    mask = write_raster(tmp_path / "m.tif", np.where(codes == 1, 255, 0).astype(np.uint8))
    with pytest.raises(LabelError, match=r'If 255 is a, set labels\.values: \{"0": background, "255": a\}'):
        read(mask, BINARY)
    masks = write_raster(tmp_path / "ms.tif", np.where(np.stack([codes == 1, codes == 2]), 255, 0).astype(np.uint8))
    with pytest.raises(LabelError, match=r"set labels\.fractions: true and labels\.full_value: 255"):
        read(masks, OVERLAPPING)
    halves = read(LabelSource(path=masks, fractions=True, full_value=255), OVERLAPPING)
    np.testing.assert_array_equal(halves, np.stack([codes == 1, codes == 2]))


@pytest.mark.parametrize("driver", ["JPEG", "WEBP"])
def test_lossy_labels_are_refused(tmp_path, driver):
    path = tmp_path / "l.png"  # the content decides
    from PIL import Image

    Image.fromarray(np.zeros((*GRID.shape, 3), np.uint8)).save(path, driver)
    with pytest.raises(LabelError, match=rf"is a {driver} picture, and the compression"):
        read(str(path), BINARY)


def test_names_that_the_raster_gives_its_codes(tmp_path):
    codes = np.random.default_rng(0).integers(0, 3, GRID.shape).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", codes)
    classes_of_map = [{"name": "none", "value": 0}, {"name": "Wald", "value": 1}, {"name": "Wiese", "value": 2}]
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(segkit_classes=json.dumps(classes_of_map))
    values = {"none": "background", "Wald": "a", "2": "c"}
    expected = np.array([0, 1, 3])[codes]
    np.testing.assert_array_equal(read(LabelSource(path=path, values=values), EXCLUSIVE)[0], expected)
    with pytest.raises(LabelError, match=r"lists 'Wasser'; raster codes are whole numbers or names of its own classes"):
        read(LabelSource(path=path, values={"Wasser": "a"}), EXCLUSIVE)


@pytest.mark.parametrize("nodata", [None, 0])
def test_labels_on_the_same_lattice_are_cut_not_resampled(tmp_path, nodata):
    """Oracle: slices of the array."""
    codes = np.random.default_rng(0).integers(0, 2, (40, 50)).astype(np.uint8)
    larger = Grid(40, 50, GRID.transform @ Affine.translation(-20, -9), UTM)
    path = write_raster(tmp_path / "l.tif", codes, larger, nodata=nodata)
    source = LabelSource(path=path, nodata=None if nodata is None else "code")
    expected = codes[9 : 9 + 12, 20 : 20 + 17]
    np.testing.assert_array_equal(read(source, BINARY)[0], expected)
    assert not open_labels(source, BINARY, GRID).notes
    for window in (Window(3, 2, 5, 7), Window(0, 0, 17, 1)):
        np.testing.assert_array_equal(open_labels(source, BINARY, GRID).read(window)[0], expected[window.toslices()])
    shifted = Grid(40, 50, GRID.transform @ Affine.translation(5.5, 0), UTM)
    with pytest.raises(GridError, match=r"another grid.*data\.resample"):
        read(write_raster(tmp_path / "s.tif", codes, shifted), BINARY)
    apart = Grid(40, 50, GRID.transform @ Affine.translation(500, 0), UTM)
    with pytest.raises(GridError, match="another grid"):
        read(write_raster(tmp_path / "s.tif", codes, apart), BINARY)
