"""Scenes in memory. Oracle: the map of a file with the same pixels, from the other way through the code."""

import subprocess
import sys
import warnings

import geopandas.testing
import numpy as np
import pytest
import rasterio
import rioxarray
import shapely
import torch
import xarray
from affine import Affine
from predicting import (
    FAST,
    TASKS,
    UTM,
    Neighbours,
    Network,
    placed,
    read,
    with_training_pixels,
    write_area,
    write_scene,
)
from rasterio.vrt import WarpedVRT

from segkit.errors import DataError, GridError, ModelFileError, UsageError
from segkit.inference import runner_base, tiling
from segkit.inference.in_memory import predict_in_memory
from segkit.inference.predict import predict
from segkit.recipe.imagery import Imagery
from segkit.vector import polygons


def open_array(path, **options):
    return rioxarray.open_rasterio(path, **options)


def of_file(model, scene, folder, **options):
    """The map of a file, and its probabilities as fractions."""
    predict(model, scene, folder / "map.tif", probabilities=folder / "p.tif", **(FAST | options))
    stored = read(folder / "p.tif")
    return read(folder / "map.tif"), np.where(stored == 255, np.nan, stored.astype(np.float32) / np.float32(254))


def bands_of(array):
    array = np.asarray(array)
    return array if array.ndim == 3 else array[None]


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.tif", 70, 60)


@pytest.fixture
def _small_bands(monkeypatch):
    """Row bands of a few rows of windows, so that there are seams."""
    monkeypatch.setattr(tiling, "_MIN_BAND_PIXELS", 2000)


@pytest.mark.usefixtures("_small_bands")
@pytest.mark.parametrize("task", [TASKS[at] for at in (0, 1, 4, 5)], ids=lambda task: f"{task.type}-{task.nodata}")
def test_the_map_is_that_of_a_file(tmp_path, scene, task):
    model = Network(task)
    values, probabilities = of_file(model, scene, tmp_path)
    array = read(scene)
    found = predict(model, array, nodata=0, probabilities=True, **FAST)
    assert found.map.dtype == task.dtype
    np.testing.assert_array_equal(bands_of(found), values)
    np.testing.assert_array_equal(found.probabilities, probabilities)
    assert (found.nodata, found.transform, found.crs) == (task.nodata, None, None)
    of_array = predict(model, open_array(scene), probabilities=True, **FAST)
    np.testing.assert_array_equal(bands_of(of_array["land_cover"]), values)
    np.testing.assert_array_equal(of_array["probabilities"], probabilities)


@pytest.mark.usefixtures("_small_bands")
def test_seams_are_those_of_a_file(tmp_path, scene):
    """With a network that looks around, each window says something else at its rim."""
    model = Neighbours()
    (values,), _ = of_file(model, scene, tmp_path)
    np.testing.assert_array_equal(predict(model, read(scene), nodata=0, **FAST), values)


def test_every_form_of_a_scene_gives_the_map_of_the_file(tmp_path):
    model, scene = Network(), write_scene(tmp_path / "scene.tif", 40, 50)
    (values,), _ = of_file(model, scene, tmp_path)
    array = read(scene)
    given = {
        "masked": (np.ma.masked_equal(array, 0), {}),
        "bool": (array, {"valid": (array != 0).any(axis=0)}),
        "GDAL's mask": (array.astype(np.float64), {"valid": np.where((array != 0).any(axis=0), 255, 0)}),
        "NaN": (np.where(array == 0, np.nan, array), {}),
        "DataArray": (open_array(scene), {}),
        "NaN in a DataArray": (open_array(scene, masked=True), {}),
        "dask": (open_array(scene, chunks={"x": 37, "y": 21}), {}),
        "bands last": (open_array(scene).transpose("y", "x", "band"), {}),
    }
    for name, (form, options) in given.items():
        found = predict(model, form, **FAST, **options)
        np.testing.assert_array_equal(np.asarray(found), values, err_msg=name)
    with rasterio.open(scene) as dataset, WarpedVRT(dataset) as warped:
        found = predict(model, dataset, **FAST)
        np.testing.assert_array_equal(predict(model, warped, **FAST), values)
        assert not dataset.closed
        assert (found.transform, found.crs) == (dataset.transform, dataset.crs)
    np.testing.assert_array_equal(found, values)


def test_a_band_without_data_at_a_pixel_is_its_mean_as_in_a_file(tmp_path):
    """The pixel stays valid; so do those of masked arrays and of DataArrays with NaN."""
    random = np.random.default_rng(0)
    pixels = random.integers(1, 1000, (2, 40, 50)).astype(np.uint16)
    pixels[0, 5:10], pixels[:, 20:25] = 0, 0
    path = write_scene(tmp_path / "scene.tif", 40, 50)
    with rasterio.open(path, "r+") as dataset:
        dataset.write(pixels)

    class Mean(Network):
        def forward(self, values, valid):
            return super().forward(values.nan_to_num(500.0), valid)

    (values,), _ = of_file(Mean(), path, tmp_path)
    assert (values[5:10] != 255).all()
    for form in (np.ma.masked_equal(pixels, 0), open_array(path), open_array(path, masked=True)):
        np.testing.assert_array_equal(predict(Mean(), form, **FAST), values)


def test_a_data_array_keeps_its_place(tmp_path, scene):
    array = open_array(scene).assign_coords(time=7)
    found = predict(Network(), array, **FAST)
    assert isinstance(found, xarray.DataArray)
    assert found.dims == ("y", "x")
    assert (found.rio.crs, found.rio.transform(), found.rio.nodata) == ("EPSG:32622", UTM, 255)
    assert found.time == 7
    xarray.testing.assert_identical(found.x, array.x)
    found.rio.to_raster(tmp_path / "own.tif")
    predict(Network(), scene, tmp_path / "map.tif", **FAST)
    columns = ["class_id", "class", "area_ha", "geometry"]
    geopandas.testing.assert_geodataframe_equal(
        polygons(tmp_path / "own.tif")[columns], polygons(tmp_path / "map.tif")[columns]
    )
    overlapping = predict(Network(TASKS[5]), array, **FAST)
    assert overlapping.dims == ("band", "y", "x")
    assert overlapping.sel(band="water").shape == (70, 60)


def test_a_part_of_a_data_array_is_where_it_is(scene):
    array = open_array(scene)
    part = array.isel(x=slice(20, 50), y=slice(10, 65))
    found = predict(Network(), part, **FAST)
    assert found.rio.transform(recalc=True) == UTM @ Affine.translation(20, 10)
    assert found.rio.bounds() == part.rio.bounds()
    # Without the stored transform, and turned upside down, the coordinates tell it.
    bare = array.drop_vars("spatial_ref")[:, ::-1]
    turned = predict(Network(), bare, **FAST)
    assert turned.rio.crs is None
    np.testing.assert_array_equal(turned[::-1], predict(Network(), array, **FAST))
    assert turned.rio.transform(recalc=True).e == 10


def test_polygons_of_a_map_in_memory(tmp_path, scene):
    model = Network(TASKS[5])
    predict(model, scene, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", **FAST)
    expected = polygons(tmp_path / "map.tif", probabilities=tmp_path / "p.tif")
    with rasterio.open(scene) as dataset:
        of_dataset = predict(model, dataset, **FAST)
    geopandas.testing.assert_geodataframe_equal(polygons(of_dataset), expected.drop(columns="mean_conf"))
    of_array = predict(model, open_array(scene), probabilities=True, **FAST)
    found = polygons(of_array["land_cover"], probabilities=of_array["probabilities"])
    geopandas.testing.assert_geodataframe_equal(found, expected, check_less_precise=True)


def test_bands_go_by_names(tmp_path):
    """As in files: in any order, with others between them."""
    model = Network()
    model.band_names = ("red", "nir")
    array = np.random.default_rng(0).integers(1, 1000, (2, 30, 40)).astype(np.uint16)
    expected = predict(model, array, **FAST).map
    other = np.stack([array[1], array[0] * 0 + 5, array[0]])
    names = ["B08", "green", "red"]
    model.band_names = ("B04", "B08")
    np.testing.assert_array_equal(predict(model, other, band_names=["B08", "B03", "B04"], **FAST), expected)
    model.band_names = ("red", "nir")
    np.testing.assert_array_equal(predict(model, other, band_names=["nir", *names[1:]], **FAST), expected)
    data_array = xarray.DataArray(other, dims=("band", "y", "x"), coords={"band": ["nir", "green", "red"]})
    np.testing.assert_array_equal(predict(model, data_array, **FAST), expected)
    named = xarray.DataArray(other, dims=("band", "y", "x"), attrs={"long_name": ("nir", "green", "red")})
    np.testing.assert_array_equal(predict(model, named, **FAST), expected)
    # Bands that were selected: long_name is still that of all.
    numbered = named.assign_coords(band=[1, 2, 3]).isel(band=[0, 2])
    np.testing.assert_array_equal(predict(model, numbered, **FAST), expected)
    with pytest.warns(UserWarning, match=r"array: the names of its bands \(a, b\) do not tell"):
        np.testing.assert_array_equal(predict(model, array, band_names=["a", "b"], **FAST), expected)
    with pytest.raises(UsageError, match="band_names is red, but the array has 2 bands"):
        predict(model, array, band_names=["red"], **FAST)


def test_bands_without_names_are_those_of_the_model_or_of_its_files(scene):
    """The recipe chose bands by their numbers; an array may be in the order of the model, or be all of a file."""
    model = Network()
    file = np.random.default_rng(0).integers(1, 1000, (4, 30, 40)).astype(np.uint16)
    expected = predict(model, file[[3, 1]], **FAST).map
    model.imagery = Imagery(bands=(4, 2))
    np.testing.assert_array_equal(predict(model, file[[3, 1]], **FAST), expected)
    np.testing.assert_array_equal(predict(model, file, **FAST), expected)
    numbered = xarray.DataArray(file, dims=("band", "y", "x"), coords={"band": [1, 2, 3, 4]})
    np.testing.assert_array_equal(predict(model, numbered, **FAST), expected)
    np.testing.assert_array_equal(predict(model, numbered.sel(band=[2, 4]), **FAST), expected)
    model.imagery = Imagery(bands=(2, 1))
    with pytest.raises(UsageError, match=r"reads the bands 2, 1 .* may be in either order; .* band_names=\['1', '2'\]"):
        predict(model, file[:2], **FAST)
    np.testing.assert_array_equal(predict(model, file[[3, 1]], band_names=["1", "2"], **FAST), expected)
    model.imagery = Imagery()
    turned = numbered.sel(band=[2, 1])
    np.testing.assert_array_equal(predict(model, turned, **FAST), predict(model, file[:2], **FAST).map)
    with pytest.raises(ModelFileError, match="array has 3 bands"):
        predict(model, file[:3], **FAST)
    with pytest.raises(ModelFileError, match="DataArray has 4 bands"):
        predict(model, numbered, **FAST)


def test_indices_are_computed_and_layers_read_as_for_a_file(tmp_path, scene):
    pixels, heights = read(scene), np.add.outer(np.arange(70), 7 * np.arange(60))
    with (
        rasterio.open(scene) as dataset,
        rasterio.open(tmp_path / "dem.tif", "w", **dataset.profile | {"count": 1}) as dem,
    ):
        dem.write(heights[None].astype(dem.dtypes[0]))
    model = Network(bands=len(pixels) + 2)
    model.band_names = (*map(str, range(1, len(pixels) + 1)), "d", "height")
    index = {"formula": "(a - b) / (a + b + 1) * 1000", "name": "d", "bands": {"a": 1, "b": 2}}
    imagery = {"indices": [index], "layers": {"height": str(tmp_path / "dem.tif")}}
    for bands in (None, tuple(range(1, len(pixels) + 1))):
        model.imagery = Imagery.model_validate(imagery | {"bands": bands})
        [expected] = of_file(model, scene, tmp_path, overwrite=True)[0]
        with rasterio.open(scene) as dataset:
            np.testing.assert_array_equal(predict(model, dataset, **FAST).map, expected)
        found = predict(model, open_array(scene), layers={"height": tmp_path / "dem.tif"}, **FAST)
        np.testing.assert_array_equal(found, expected)


def test_units_are_those_of_files(scene):
    """Stored values are scaled as the recipe, the DataArray or the call says."""
    model, array = Network(), read(scene)
    expected = predict(model, array * 0.5 + 3, valid=array[0] != 0, **FAST).map
    np.testing.assert_array_equal(predict(model, array, nodata=0, scale=0.5, offset=3, **FAST), expected)
    declared = open_array(scene).assign_attrs(scale_factor=0.5, add_offset=3.0)
    model.imagery = Imagery(apply_scale_offset=True)
    np.testing.assert_array_equal(predict(model, declared, **FAST), expected)
    model.imagery = Imagery(scale=0.5, offset=3, nodata=0)
    np.testing.assert_array_equal(predict(model, array, **FAST), expected)


def test_other_pixels_and_quality_masks(tmp_path, scene):
    array = read(scene)
    model = with_training_pixels(Network())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(model, array, nodata=0, **FAST)
    assert found.share_outside < 0.2
    with pytest.warns(
        UserWarning, match=r"array: 100% of its pixels are unlike .*\(values are about .* times larger\)"
    ):
        found = predict(model, array.astype(np.float32) * 100, nodata=0, **FAST)
    assert "100% of sampled pixels" in repr(found)
    # A quality band of the array, and one that the recipe expects in a file.
    clouds = np.zeros((1, *array.shape[1:]), np.uint16)
    clouds[0, :30] = 9
    valid = (array != 0).any(axis=0) & (clouds[0] != 9)
    expected = predict(Network(), array, valid=valid, **FAST).map
    masked = Network()
    masked.imagery = Imagery(mask={"values": [9], "band": 3}, nodata=0)
    np.testing.assert_array_equal(predict(masked, np.concatenate([array, clouds]), **FAST), expected)
    masked.imagery = Imagery(mask={"values": [9], "replace": {"scene": "clouds"}}, nodata=0)
    with pytest.raises(DataError, match="array: is a mosaic, or in memory"):
        predict(masked, array, **FAST)
    np.testing.assert_array_equal(predict(masked, array, valid=clouds[0] != 9, **FAST), expected)
    with rasterio.open(scene) as dataset, rasterio.open(tmp_path / "clouds.tif", "w", **dataset.profile) as beside:
        beside.write(clouds[0], 1)
    with rasterio.open(scene) as dataset:
        np.testing.assert_array_equal(predict(masked, dataset, **FAST), expected)


def test_a_mask_with_axes_lies_on_the_pixels_of_the_scene(tmp_path):
    model, array = Network(TASKS[0]), open_array(write_scene(tmp_path / "square.tif", 60, 60))
    valid = (array[0] > 0).drop_vars("band")
    valid[:20] = False
    expected = np.asarray(predict(model, array, valid=valid, **FAST))
    assert (expected[:20] == model.task.nodata).all()
    for other in (valid.transpose("x", "y"), valid.drop_vars(["x", "y"])):
        np.testing.assert_array_equal(predict(model, array, valid=other, **FAST), expected)
    with pytest.raises(UsageError, match="the coordinate y of valid differs from that of the scene"):
        predict(model, array, valid=valid[::-1], **FAST)
    with pytest.raises(UsageError, match="valid has the axes band, y, x; the scene's are y and x"):
        predict(model, array, valid=array > 0, **FAST)


def test_an_area_of_interest(tmp_path, scene):
    area = write_area(tmp_path / "area.gpkg", placed(UTM, (10, 10), (50, 12), (40, 60)))
    (values,), _ = of_file(Network(), scene, tmp_path, aoi=area)
    np.testing.assert_array_equal(predict(Network(), open_array(scene), aoi=area, **FAST), values)
    with pytest.raises(GridError, match="CRS"):
        predict(Network(), read(scene), aoi=area, **FAST)
    far = write_area(tmp_path / "far.gpkg", shapely.box(0, 0, 10, 10))
    with pytest.raises(DataError, match=r"far\.gpkg: does not overlap the scene"):
        predict(Network(), open_array(scene), aoi=far, **FAST)


def test_a_scene_without_data_is_said():
    with pytest.warns(UserWarning, match="array: no pixel is valid, so the map is all no data"):
        assert (predict(Network(), np.zeros((2, 40, 30)), nodata=0, **FAST).map == 255).all()


def test_only_the_windows_that_are_computed_are_read(scene, monkeypatch):
    """A DataArray that is not loaded stays so, and its largest part in memory is a window."""
    array, largest, original = open_array(scene), [], xarray.DataArray.values.fget

    def values(self):
        largest.append(self.size)
        return original(self)

    monkeypatch.setattr(xarray.DataArray, "values", property(values))
    predict(Network(), array, **FAST)
    assert max(largest) == 2 * 32 * 32
    assert not array.variable._in_memory


def test_memory_that_runs_out_makes_windows_smaller(scene, monkeypatch):
    options = FAST | {"tile": 512, "overlap": 8}
    model = Network()
    expected = predict(model, read(scene), **options).map
    original, failed = runner_base.Runner.__call__, []

    def fail_once(self, tiles):
        if not failed:
            failed.append(True)
            raise runner_base.OutOfMemoryError("no memory")
        return original(self, tiles)

    monkeypatch.setattr(runner_base.Runner, "__call__", fail_once)
    with pytest.warns(UserWarning, match="no memory; continuing with tile 256"):
        found = predict(model, read(scene), **options)
    assert found.choice.tile == 256
    np.testing.assert_array_equal(found, expected)


def test_what_a_prediction_says(scene):
    with rasterio.open(scene) as dataset:
        found = predict(Network(), dataset, **FAST)
    for row in found.task.legend:
        assert found.pixels[row["name"]] == (found.map == row["value"]).sum()
        assert found.hectares[row["name"]] == pytest.approx(found.pixels[row["name"]] * 0.01, rel=0.01)
    assert found.valid == (found.map != found.nodata).sum()
    text, page = repr(found), found._repr_html_()
    for word in ("70 x 60 pixels", "EPSG:32622", "water", "forest", "ha"):
        assert word in text
        assert word in page
    assert "#0000ff" in page
    np.testing.assert_array_equal(np.asarray(found, dtype=np.int64), found.map)


ARRAY = np.ones((2, 8, 9), np.uint16)


@pytest.mark.parametrize(
    ("scene", "options", "message"),
    [
        (ARRAY[0], {}, r"shape \(8, 9\); a scene is \(bands, rows, columns\); add the axis"),
        (ARRAY[None], {}, r"shape \(1, 2, 8, 9\); a scene is"),
        (ARRAY[:, :0], {}, "no pixels"),
        (ARRAY * 1j, {}, "holds complex128"),
        (ARRAY, {"valid": np.ones((9, 8), bool)}, r"valid has the shape \(9, 8\).*it is bool \(8, 9\)"),
        (ARRAY, {"valid": np.ones((8, 9))}, "the type float64"),
        (ARRAY, {"mask": np.ones((8, 9), bool)}, "give an array of the pixels with data as valid="),
        (ARRAY, {"probabilities": "p.tif"}, "probabilities is 'p.tif'.*give True"),
        (ARRAY, {"output": "map.tif", "vector": "map.gpkg"}, "output, vector: not for a scene in memory"),
        (ARRAY, {"aoi_layer": "a"}, "aoi_layer is given, but aoi is not"),
        (ARRAY, {"tta": "d5"}, "tta 'd5' is not known"),
        (ARRAY, {"band_names": ["red"]}, "band_names is red, but the array has 2 bands; name each"),
        (ARRAY, {"band_names": "ab"}, "band_names is ab, but the array has 2 bands"),
        ([ARRAY, ARRAY], {}, "several scenes in memory"),
        (torch.ones(2, 8, 9), {}, "is a torch.Tensor; give a numpy array"),
        (xarray.DataArray(ARRAY), {}, "has the axes dim_0, dim_1, dim_2"),
        (xarray.DataArray(ARRAY, dims=("band", "row", "x")), {}, "band, row, x; those of rows and columns must be"),
        (xarray.DataArray(ARRAY[:, :0], dims=("band", "y", "x")), {}, "so it has no pixels"),
        (xarray.DataArray(ARRAY[None], dims=("time", "band", "y", "x")), {}, "a scene has one besides y and x"),
        (xarray.Dataset({"red": (("y", "x"), ARRAY[0])}), {}, "is an xarray.Dataset; make its variables bands"),
        (
            xarray.DataArray(ARRAY[:, :1], dims=("band", "y", "x"), coords={"x": np.arange(9.0), "y": [3.0]}),
            {},
            "one row or column, whose coordinate does not tell the size",
        ),
        (
            xarray.DataArray(ARRAY, dims=("band", "y", "x"), attrs={"scales": (1, 2, 3)}),
            {},
            "has 2 bands, but 3 values in its attribute scales",
        ),
        (
            xarray.DataArray(ARRAY, dims=("band", "y", "x"), coords={"x": np.arange(9.0) ** 2}),
            {},
            r"coordinate x of the DataArray is not even \(from 1 to 15",
        ),
    ],
)  # fmt: skip
def test_what_is_no_scene_is_one_line(scene, options, message):
    with pytest.raises(UsageError, match=message) as error:
        predict(Network(), scene, **options)
    assert "\n" not in str(error.value)


def test_open_datasets_that_cannot_be_read(tmp_path, scene):
    with rasterio.open(scene) as dataset, pytest.raises(UsageError, match="valid and band_names are for arrays"):
        predict(Network(), dataset, valid=np.ones((70, 60), bool))
    with pytest.raises(UsageError, match=r"scene\.tif: the dataset is closed"):
        predict(Network(), dataset)
    with rasterio.open(scene, "r+") as dataset, pytest.raises(UsageError, match=r"open for writing \(r\+\)"):
        predict(Network(), dataset)


def test_xarray_is_not_imported_without_need():
    code = "import sys, segkit.io.data_array as one; one.is_data_array([]); print('xarray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_data_array_without_rioxarray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rioxarray", None)
    with pytest.raises(UsageError, match=r'install the extra: pip install "landcover-segkit\[xarray\]"'):
        predict_in_memory(Network(), xarray.DataArray(ARRAY, dims=("band", "y", "x")))
