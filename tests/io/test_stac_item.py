"""Items of STAC, in the forms in which catalogues write them: names of bands, units, and which files may be read."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from products import item, write_item, write_jp2
from synthetic import write_raster

from segkit.errors import DataError, RasterError
from segkit.io.derived_bands import BandFormula
from segkit.io.file_search import IMAGE_SUFFIXES, expand_paths
from segkit.io.product import Product, find_products
from segkit.io.quality_mask import MASK_PRESETS, QualityMask
from segkit.io.scene import Scene
from segkit.io.stac_item import read_items

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
S2 = {"constellation": "sentinel-2"}


def write(folder, *names, value=3000, bands=1):
    """Write a raster for each name: all of its pixels are `value`, but for one that is 0; the next holds value + 1."""
    for number, name in enumerate(names):
        pixels = np.full((bands, 6, 6), value + number, dtype=np.uint16)
        pixels[:, 0, 0] = 0
        write_raster(folder / f"{name}.tif", pixels)


def asset(name, *bands, key="eo:bands", **more):
    """Return an asset with the file of a name."""
    return {"href": f"./{name}.tif", "type": COG, "roles": ["data"]} | ({key: list(bands)} if bands else {}) | more


def values(path, **options):
    """Return a value of each band of a scene, by the bands' names."""
    scene = Scene.from_files(path, **options)
    return dict(zip(scene.band_names, scene.read().pixels[:, -1, -1].tolist(), strict=True))


def test_sentinel_2_of_the_planetary_computer(tmp_path):
    """Keys are names of bands, four bands have the common name rededge, and the baseline alone tells the offset."""
    common = {"B04": "red", "B05": "rededge", "B06": "rededge", "B07": "rededge", "B8A": "rededge"}
    write(tmp_path, *common, "SCL", "visual")
    assets = {"visual": asset("visual", {"name": "B04", "common_name": "red"})}
    assets |= {name: asset(name, {"name": name, "common_name": each}) for name, each in common.items()}
    assets["SCL"] = asset("SCL")
    for baseline, shift in (("05.09", -1000), ("04.00", -1000), ("02.12", 0)):
        path = write_item(
            tmp_path / "item.json", assets, platform="Sentinel-2A", **{"s2:processing_baseline": baseline}
        )
        assert values(path) == {name: 3000 + at + shift for at, name in enumerate(common)}
    assert values(path, bands=["rededge075", "nir08", "red"]) == {"B06": 3002, "B8A": 3004, "B04": 3000}
    assert values(path, trained=["B8A", "B05"]) == {"B8A": 3004, "B05": 3001}
    masked = Scene.from_files(path, bands=["B04"], mask=QualityMask(MASK_PRESETS["sentinel2_scl"]))
    assert masked.masks[0].path.name == "SCL.tif"


@pytest.mark.parametrize(("applied", "shift"), [(True, 0), (False, -1000), (None, -1000)])
def test_sentinel_2_of_earth_search(tmp_path, applied, shift):
    """The copies on a server are in the item, too; a property says that the declared offset was applied before."""
    write(tmp_path, "B04", "B05", "B8A", "SCL")
    units = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}]}
    assets = {}
    for key, name, common in (("red", "B04", "red"), ("rededge1", "B05", "rededge"), ("nir08", "B8A", "nir08")):
        assets[key] = asset(name, {"name": key, "common_name": common}, roles=["data", "reflectance"], **units)
        remote = {"href": f"s3://sentinel-s2-l2a/tiles/{name}.jp2", "type": "image/jp2"}
        assets[f"{key}-jp2"] = assets[key] | remote
    assets["scl"] = asset("SCL", roles=["data", "reflectance"], **{"raster:bands": [{"nodata": 0}]})
    assets["thumbnail"] = {"href": "https://example.com/a.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    more = {} if applied is None else {"earthsearch:boa_offset_applied": applied}
    path = write_item(tmp_path / "item.json", assets, **S2, **more)
    assert values(path) == {"red": 3000 + shift, "rededge1": 3001 + shift, "nir08": 3002 + shift}
    assert values(path, scaled=True)["red"] == pytest.approx((3000 + shift) / 10_000)
    assert values(path, bands=["B04", "B05", "B8A"]).keys() == {"red", "rededge1", "nir08"}
    assert not Scene.from_files(path).read().valid[0, 0]  # no data, as the item declares
    (tmp_path / "B04.tif").unlink()
    write_jp2(tmp_path / "B04.jp2", np.full((6, 6), 4100, dtype=np.uint16), 10)
    assets["red-jp2"]["href"] = "./B04.jp2"
    local = write_item(tmp_path / "local.json", assets, **S2, **more)
    assert values(local, bands=["red"]) == {"red": 3100}  # the file of ESA, to which no catalogue applies the offset


def test_sentinel_2_of_copernicus(tmp_path):
    """STAC 1.1: a band has an asset for each resolution."""
    write(tmp_path, "B04_10m")
    for name, value in (("B04_20m", 4000), ("B11_20m", 5000)):
        write_raster(tmp_path / f"{name}.tif", np.full((3, 3), value, dtype=np.uint16))
    rewrite(tmp_path / "B04_20m.tif", 20)
    rewrite(tmp_path / "B11_20m.tif", 20)
    units = {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0}
    common = {"B04": "red", "B11": "swir16"}
    assets = {
        key: asset(key, {"name": key[:3], "eo:common_name": common[key[:3]]}, key="bands", **units)
        for key in ("B04_20m", "B04_10m", "B11_20m")
    }
    path = write_item(tmp_path / "item.json", assets, **S2, **{"processing:version": "05.11"})
    assert values(path) == {"B04": 2000, "B11": 4000}
    assert values(path, resolution=20) == {"B04": 3000, "B11": 4000}
    assert values(path, bands=["swir16"], scaled=True) == {"B11": pytest.approx(0.4)}
    assert Scene.from_files(path, bands=["swir16"]).grid.shape == (3, 3)


def rewrite(path, resolution):
    """Give a raster pixels of another size."""
    import rasterio
    from affine import Affine

    with rasterio.open(path, "r+") as dataset:
        dataset.transform = Affine(resolution, 0, 500_000, 0, -resolution, 9_000_000)


def test_landsat_of_the_usgs(tmp_path):
    """Units of other sensors are those that the item declares, if the recipe asks for them."""
    write(tmp_path, "SR_B4", "SR_B5", "QA_PIXEL", value=10_000)
    units = {"raster:bands": [{"scale": 0.0000275, "offset": -0.2, "nodata": 0}]}
    path = write_item(
        tmp_path / "item.json",
        {
            "red": asset("SR_B4", {"name": "OLI_B4", "common_name": "red"}, **units),
            "nir08": asset("SR_B5", {"name": "OLI_B5", "common_name": "nir08"}, **units),
            "qa_pixel": asset("QA_PIXEL", roles=["cloud", "cloud-shadow"]),
            "ang": {"href": "./ANG.txt", "type": "text/plain"},
        },
        platform="landsat-9",
    )
    assert values(path) == {"red": 10_000, "nir08": 10_001}
    assert values(path, scaled=True)["red"] == pytest.approx(0.075)
    assert values(path, bands=["OLI_B5", "red"]) == {"OLI_B5": 10_001, "red": 10_000}
    masked = Scene.from_files(path, mask=QualityMask(MASK_PRESETS["landsat_qa_pixel"]))
    assert masked.masks[0].path.name == "QA_PIXEL.tif"


def test_items_without_bands(tmp_path):
    write(tmp_path, "one")
    write(tmp_path, "two", bands=2)
    plain = {"b": asset("one"), "a": {"href": "two.tif"}, "metadata": {"href": "two.xml"}}
    scene = Scene.from_files(write_item(tmp_path / "item.json", plain))
    assert scene.band_names == ("b", "a:1", "a:2")
    assert scene.name == "scene"
    np.testing.assert_array_equal(
        scene.read().pixels, Scene.from_files([tmp_path / "one.tif", tmp_path / "two.tif"]).read().pixels
    )


def test_values_of_sentinel_2_without_a_baseline_are_the_stored_ones(tmp_path):
    write(tmp_path, "B04")
    path = write_item(tmp_path / "item.json", {"B04": asset("B04")}, **S2)
    assert values(path) == {"B04": 3000}
    identity = "S2A_MSIL2A_20220601T101559_N0400_R065_T32TQM_20220601T162202"
    assert values(write_item(tmp_path / "item.json", {"B04": asset("B04")}, identity=identity, **S2)) == {"B04": 2000}


OUTSIDE = [
    "../b.tif",
    "..\\b.tif",
    "x/../../b.tif",
    "/b.tif",
    "C:\\b.tif",
    "file:///b.tif",
    "/vsicurl/x.tif",
    "s3://bucket/b.tif",
    "b" * 300 + ".tif",
]


@pytest.mark.parametrize("text", [*OUTSIDE, "https://user:word@example.com/b.tif?token=1", "", 7])
def test_an_item_names_only_files_in_its_folder(tmp_path, text):
    write(tmp_path / "in", "a")
    write(tmp_path, "b")
    href = str(tmp_path / "b.tif") if text == "/b.tif" else text
    path = write_item(tmp_path / "in" / "item.json", {"a": asset("a"), "b": asset("b", href=href)})
    assert values(path, bands=["a"]) == {"a": 3000}
    with pytest.raises(RasterError, match="asset 'b'") as error:
        Scene.from_files(path)
    assert "word" not in str(error.value)
    assert "token" not in str(error.value)
    assert tmp_path / "b.tif" not in Product(path, "scene").files


def test_only_known_rasters_are_read(tmp_path):
    write(tmp_path, "a")
    (tmp_path / "b.tif").write_text(f"<VRTDataset><SRS/><x>{tmp_path / 'a.tif'}</x></VRTDataset>")
    path = write_item(tmp_path / "item.json", {"a": asset("a"), "b": asset("b"), "c": asset("c")})
    assert values(path, bands=["a"]) == {"a": 3000}
    with pytest.raises(RasterError, match="is a virtual raster"):
        Scene.from_files(path, bands=["b"])
    with pytest.raises(RasterError, match=r"is incomplete, ./c.tif \(asset 'c'\) is missing"):
        Scene.from_files(path, bands=["c"])
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.transform = Affine(5e-324, 0, 0, 0, -5e-324, 0)
    with pytest.raises(RasterError, match=r"a\.tif: its pixels have no size"):
        Scene.from_files(path, bands=["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as a STAC item"),
        ("[" * 100_000, "cannot be read as a STAC item"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "is no STAC item"),
        ("[]", "is no STAC item"),
        (json.dumps({"type": "FeatureCollection", "features": [item({}, "a"), item({}, "a")]}), "2 items with the id"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "item.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        find_products(path)


@pytest.mark.parametrize("units", [{"scale": 0}, {"scale": "x"}, {"offset": True}, {"nodata": [0]}, {"scale": 10**400}])
def test_units_that_are_not_valid_are_refused(tmp_path, units):
    write(tmp_path, "a")
    path = write_item(tmp_path / "item.json", {"a": asset("a", **{"raster:bands": [units]})})
    with pytest.raises(DataError, match="its asset 'a' declares the"):
        Scene.from_files(path)


def test_nan_and_codes(tmp_path):
    """NaN as the no-data value is no number to look for; an item of quality bands alone is imagery."""
    write(tmp_path, "qa")
    for nodata in ("nan", float("nan"), "-inf", float("inf")):
        assets = {"qa": asset("qa", roles=["cloud"], **{"raster:bands": [{"nodata": nodata}]})}
        assert values(write_item(tmp_path / "item.json", assets), bands=["qa"], resolution=5) == {"qa": 3000}


def test_items_are_found_in_folders_globs_and_collections(tmp_path):
    write(tmp_path, "a")
    one = write_item(tmp_path / "one.json", {"a": asset("a")}, identity="first")
    scenes = {"type": "FeatureCollection", "features": [item({"a": asset("a")}, each) for each in "xy"]}
    (tmp_path / "two.json").write_text(json.dumps(scenes))
    (tmp_path / "collection.json").write_text('{"type": "Collection"}')
    assert [path.stem for path in expand_paths(tmp_path / "*.json", "images", IMAGE_SUFFIXES)] == ["first", "x", "y"]
    assert [path.stem for path in expand_paths(one, "images", IMAGE_SUFFIXES)] == ["first"]
    assert [path.name for path in expand_paths(tmp_path, "images", IMAGE_SUFFIXES)] == ["a.tif"]  # as before
    (tmp_path / "a.tif").unlink()
    assert [path.stem for path in expand_paths(tmp_path, "images", IMAGE_SUFFIXES)] == ["first", "x", "y"]
    with pytest.raises(DataError, match="catalogues or collections of STAC"):
        expand_paths(tmp_path / "collection.json", "images", IMAGE_SUFFIXES)
    assert [*read_items(tmp_path / "two.json")] == ["x", "y"]


def test_numbers_count_the_bands_of_a_product_whichever_files_hold_them(tmp_path):
    """Files have bands of another resolution that are not used, and their bands in another order."""
    write(tmp_path, "fine", value=100, bands=2)
    pixels = np.stack([np.full((3, 3), value, dtype=np.uint16) for value in (300, 400, 500)])
    rewrite(write_raster(tmp_path / "coarse.tif", pixels), 20)
    fine, coarse = ({"name": name} for name in ("red", "nir")), ({"name": name} for name in ("swir", "red", "pan"))
    path = write_item(tmp_path / "item.json", {"fine": asset("fine", *fine), "coarse": asset("coarse", *coarse)})
    names = [band.name for band in find_products(path)[0].bands]
    assert names == ["red", "nir", "swir", "pan"]
    for resolution, expected in ((10, [100, 100, 300, 500]), (20, [400, 100, 300, 500])):
        everything = dict(zip(names, expected, strict=True))
        assert values(path, resolution=resolution) == everything
        for number, name in enumerate(names, 1):
            assert values(path, bands=[number], resolution=resolution) == {name: everything[name]}
    ratio = BandFormula("ratio", "a / b", (("a", "pan"), ("b", "red")))
    assert values(path, indices=[ratio])["ratio"] == 5


def test_a_file_may_be_several_assets(tmp_path):
    write(tmp_path, "B04")
    assets = {"red": asset("B04", {"name": "B04", "common_name": "red"}), "data": asset("B04", {"name": "other"})}
    path = write_item(tmp_path / "item.json", assets, **S2)
    assert values(path, bands=["red"]) == {"B04": 3000}


def test_assets_of_the_same_pixels_and_names_are_no_copies(tmp_path):
    """Such as dates of a season: each is a band of its own, and a name that several have is refused."""
    write(tmp_path, "may", "july", bands=2)
    bands = [{"name": "red", "common_name": "red"}, {"name": "b", "common_name": "nir"}]
    path = write_item(tmp_path / "item.json", {name: asset(name, *bands) for name in ("may", "july")})
    assert values(path) == {"may:1": 3000, "may:2": 3000, "july:1": 3001, "july:2": 3001}
    assert values(path, bands=["july:1"]) == {"july:1": 3001}
    with pytest.raises(RasterError, match="2 bands that may be called 'red'"):
        values(path, bands=["red"])
    alike = write_item(tmp_path / "alike.json", {"may": asset("may", {"name": "b"}, {"name": "b"})})
    assert values(alike) == {"may:1": 3000, "may:2": 3000}
