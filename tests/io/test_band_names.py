"""Bands are the same if their names mean the same."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from synthetic import write_raster

from segkit.io.band_names import (
    LANDSAT_4_7,
    LANDSAT_8_9,
    OTHER_SPELLINGS,
    SENTINEL_2,
    WAVELENGTHS,
    are_named,
    common_names,
    distinct_parts,
    find_band,
    match_bands,
    normalize_name,
    read_names,
)

S2 = ("B02", "B03", "B04", "B08")


def test_the_tables_agree():
    for table in (SENTINEL_2, LANDSAT_8_9, LANDSAT_4_7):
        assert {*table.values()} <= {*WAVELENGTHS}
        assert len({*table.values()}) == len(table)
    assert {*OTHER_SPELLINGS.values()} <= {*WAVELENGTHS}
    order = [WAVELENGTHS[SENTINEL_2[name]] for name in SENTINEL_2]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (S2, ("blue", "green", "red", "nir")),
        (("b02", "b8a", "ndvi"), ("blue", "nir08", None)),
        (("B4, central wavelength 665 nm", "B8, central wavelength 842 nm"), ("red", "nir")),
        (("B2", "B3", "B4", "B8", "B12"), ("blue", "green", "red", "nir", "swir22")),
        (("B08-min", "B04-min"), ("nir", "red")),
        (("SR_B4", "SR_B5", "SR_B6"), ("red", "nir08", "swir16")),
        (("SR_B4", "SR_B5"), (None, None)),  # of Landsat 4 to 9
        (("B4", "B5"), (None, None)),
        (("LC08_L2SP_224063_20200801_B4:1", "LC08_L2SP_224063_20200801_B5:1"), ("red", "nir08")),
        (("LT52240631988227CUB02_B3:1", "LT52240631988227CUB02_B4:1"), ("red", "nir08")),
        (("T33UUP_20200101T101031_B04_10m:1", "T33UUP_20200101T101031_B8A_20m:1"), ("red", "nir08")),
        (("Red", "near-infrared", "SWIR 1", "Coastal_Aerosol"), ("red", "nir", "swir16", "coastal")),
        (("B8A", "SR_B6"), (None, None)),  # two sensors
        (("sur_refl_b01", "sur_refl_b02"), (None, None)),  # MODIS, whose band 1 is red
        (("1", "2", "elevation"), (None, None, None)),
    ],
)
def test_common_names(names, expected):
    assert common_names(names) == expected


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        (S2, ("B08", "B04", "B03", "B02"), (3, 2, 1, 0)),
        (S2, ("nir", "red", "green", "blue", "swir16"), (3, 2, 1, 0)),
        (("red", "nir"), S2, (2, 3)),
        (("elevation", "red"), ("B04", "Elevation"), (1, 0)),
        (("a:B04", "b:B04"), ("b:B04", "a:B04"), (1, 0)),  # two dates
        (("B04",), ("a:B04", "b:B04"), None),
        (("B05", "B8A"), ("SR_B5", "SR_B6"), None),  # a red edge is no near-infrared
        (("S2A_1:B5",), ("LC08_1:B5",), None),
        (("B4", "B5"), ("B5", "B4"), (1, 0)),
        (("red", "red"), ("red", "green"), None),
        (("1", "2"), ("2", "1"), None),
    ],
)
def test_bands_are_matched_by_what_their_names_mean(wanted, names, expected):
    assert match_bands(wanted, names) == expected


def test_a_user_may_call_the_only_near_infrared_nir():
    assert find_band("nir", ("SR_B4", "SR_B5", "SR_B6")) == [1]
    assert find_band("nir", ("B04", "B08", "B8A")) == [1]
    assert find_band("b8", ("B04", "B08", "B8A")) == [1]
    assert find_band("pan", S2) == []


def test_names_come_from_descriptions_metadata_and_colours(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((4, 5, 5), dtype=np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
        dataset.set_band_description(1, "B08")
        dataset.update_tags(2, DESCRIPTION="B04-min")
    with rasterio.open(path) as dataset:
        assert read_names(path, dataset) == ["B08", "B04-min", "blue", "4"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b04", "B4"),
        (" B4, central wavelength 665 nm", "B4"),
        ("tile7:red", "RED"),
        ("T32_B8A:1", "T32_B8A"),
        ("b08:1", "B8"),
        ("B10", "B10"),
        ("7", "7"),
    ],
)
def test_a_name_has_one_spelling(name, expected):
    assert normalize_name(name) == normalize_name(expected) == expected


@pytest.mark.parametrize(
    ("bands", "named", "parts"),
    [
        (("B2", "B3"), True, ("2", "3")),
        (("B02, blue", "B03, green", "B8A"), True, ("2", "3", "8A")),
        (("tile7_B11", "tile7_B12"), True, ("11", "12")),
        (("red_2019", "nir_2019"), True, ("RED", "NIR")),
        (("B1", "B2", "B3"), True, None),  # may be numbers
        (("a:1", "b:1"), True, None),  # names of files
        (("B2",), True, None),
        (("1", "2"), False, None),
        (("B2", "2"), False, None),
        (("B02", "B2"), False, None),
        (("a:red", "b:red"), False, None),
    ],
)
def test_names_tell_bands_apart_and_some_tell_which_they_are(bands, named, parts):
    assert are_named(bands) == named
    assert distinct_parts(bands) == parts
