"""SAFE folders: which files hold which bands, their units, and products that are refused."""

import numpy as np
import pytest
from products import ORDER, metadata, random_bands, write_safe

from segkit.errors import RasterError
from segkit.io.product import Product, find_products
from segkit.io.safe import is_safe, read_safe
from segkit.io.scene import Scene

SMALL = {("B04", 10): np.full((12, 12), 3000, dtype=np.uint16), ("B11", 20): np.full((6, 6), 2000, dtype=np.uint16)}


@pytest.fixture
def safe(tmp_path):
    return write_safe(tmp_path, SMALL)


def change(safe, old, new):
    """Replace a text in the metadata."""
    file = next(safe.glob("MTD_MSIL*.xml"))
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_bands_files_and_units_of_level_2a(tmp_path):
    safe = write_safe(tmp_path, random_bands(["SCL", "AOT", "B11", "B8A", "B04"], side=12))
    for band_id, offset in ((3, -10), (8, -20), (11, -30)):
        change(safe, f'<BOA_ADD_OFFSET band_id="{band_id}">-1000<', f'<BOA_ADD_OFFSET band_id="{band_id}">{offset}<')
    found = {band.name: band for band in read_safe(safe)}
    assert [*found] == ["B04", "B8A", "B11", "AOT", "SCL"]
    assert [found[name].shift for name in found] == [-10, -20, -30, None, None]
    assert [found[name].nodata for name in found] == [0, 0, 0, None, None]
    assert [found[name].files[0].resolution for name in found] == [10, 20, 20, 20, 20]
    assert found["B04"].scale == 1e-4
    assert found["B04"].offset == pytest.approx(-0.001)
    assert found["AOT"].scale == 1e-3
    assert [name for name in found if not found[name].is_imagery] == ["AOT", "SCL"]
    assert [name for name in found if found[name].is_categorical] == ["SCL"]


def test_level_1c_has_no_folders_of_resolutions(tmp_path):
    bands = {key: pixels for key, pixels in random_bands(ORDER).items() if key[0] != "B09"}
    safe = write_safe(tmp_path, bands, level="1C", offset=-500)
    found = {band.name: band for band in read_safe(safe)}
    assert [*found] == [name for name in ORDER if name != "B09"]
    assert {(name, band.files[0].resolution) for name, band in found.items()} == {*bands}
    assert {band.shift for band in found.values()} == {-500}
    tile = Scene.from_files(safe, bands=["B10", "B02"], resampling="nearest").read()
    np.testing.assert_array_equal(tile.pixels[0], np.kron(bands["B10", 60], np.ones((6, 6))) - 500)


def test_early_names_of_metadata_and_images(tmp_path):
    safe = write_safe(tmp_path, SMALL, baseline="02.06")
    change(safe, "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
    change(safe, "IMAGE_FILE", "IMAGE_ID")
    (safe / "MTD_MSIL2A.xml").rename(safe / "S2A_USER_MTD_SAFL2A_PDMC_20160101T000000.xml")
    for file in [*safe.rglob("*.jp2")]:
        file.rename(file.with_name(f"L2A_{file.name}"))
    assert is_safe(safe)
    bands = Product(safe).bands
    assert [band.name for band in bands] == ["B04", "B11"]
    assert {band.shift for band in bands} == {0}


def test_a_folder_is_a_product_by_its_suffix_or_metadata(safe, tmp_path):
    (tmp_path / "empty.SAFE").mkdir()
    (tmp_path / "other").mkdir()
    renamed = safe.rename(tmp_path / "renamed")
    assert is_safe(renamed)
    assert Scene.from_files(renamed).name == "renamed"
    assert is_safe(tmp_path / "empty.SAFE")
    assert not is_safe(tmp_path / "other")
    assert find_products(tmp_path / "other") is None
    with pytest.raises(RasterError, match=r"empty\.SAFE: has no metadata"):
        read_safe(tmp_path / "empty.SAFE")


def test_a_product_has_one_granule(safe):
    granule = next((safe / "GRANULE").iterdir())
    (safe / "GRANULE" / "second").mkdir()
    with pytest.raises(RasterError, match="has 2 granules"):
        read_safe(safe)
    (safe / "GRANULE" / "second").rmdir()
    granule.rename(safe / "moved")
    with pytest.raises(RasterError, match="has no granule"):
        read_safe(safe)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</n1:Level-2A_User_Product>", "", "is damaged"),
        ("10000</BOA", "ten</BOA", "QUANTIFICATION_VALUE is 'ten', and must be a number"),
        ("10000</BOA", "0</BOA", "declares no QUANTIFICATION_VALUE of B04"),
        ('<BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>', "", "declares no offset .* of B04"),
        ('"3">-1000', '"three">-1000', "without the number of its band"),
        ('"3">-1000', '"3">nan', "BOA_ADD_OFFSET is 'nan', and must be a number"),
        ("INDEX>0<", "INDEX><", "NODATA is"),
    ],
)
def test_metadata_that_do_not_tell_the_units_are_refused(safe, old, new, message):
    change(safe, old, new)
    with pytest.raises(RasterError, match=message) as error:
        read_safe(safe)
    assert "MTD_MSIL2A.xml: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(safe, tmp_path, encoding):
    """Neither files that entities name are read, nor are entities expanded; whatever encoding hides them."""
    (tmp_path / "secret.txt").write_text("05.11")
    file = safe / "MTD_MSIL2A.xml"
    content = file.read_text().partition("?>")[2].replace("05.11", "&secret;")
    entity = f'<!DOCTYPE x [<!ENTITY secret SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>'
    file.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{entity}{content}'.encode(encoding))
    with pytest.raises(RasterError, match="declares a document type" if encoding == "utf-8" else "is damaged"):
        read_safe(safe)


def test_listed_files_cannot_lie_elsewhere(tmp_path):
    safe = write_safe(tmp_path, SMALL)
    outside = next(safe.rglob("*_B11_20m.jp2")).rename(tmp_path / "x_B12_20m.jp2")
    listed = ["GRANULE/../../x_B12_20m", str(outside.with_suffix("")), "x_B08_10m\0"]
    (safe / "MTD_MSIL2A.xml").write_text(metadata(listed, "05.11", "2A", -1000).replace("\0", ""))
    for band in read_safe(safe):
        assert all(file.path.is_relative_to(safe / "GRANULE") and ".." not in file.path.parts for file in band.files)
    with pytest.raises(RasterError, match=r"B12_20m\.jp2 is missing"):
        Scene.from_files(safe, bands=["B12"])


def test_images_of_no_band_are_not_used(safe):
    for file in [*safe.rglob("*.jp2")]:
        file.rename(file.with_name(file.name.replace("_B04_", "_TCI_").replace("_B11_", "_PVI_")))
    change(safe, "_B04_10m", "_TCI_10m")
    change(safe, "_B11_20m", "_PVI_20m")
    with pytest.raises(RasterError, match="has no images of bands"):
        read_safe(safe)
