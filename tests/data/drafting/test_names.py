from datetime import date
from pathlib import Path

import pytest

from segkit.data.drafting.names import band_stacks, find_date, find_named_pairs


def paths(*names):
    return [Path(name) for name in names]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["7_sat.jpg", "7_mask.png", "8_sat.jpg", "8_mask.png"], ("{}_sat", "{}_mask")),
        (["image_1.tif", "label_1.tif", "image_2.tif"], ("image_{}", "label_{}")),
        (["a.tif", "a_gt.tif", "b.tif"], ("{}", "{}_gt")),
        (["2020-north-image.tif", "2020-north-Labels.tif"], ("{}-image", "{}-Labels")),
        (["a.tif", "b.tif"], None),
        (["1_sat.jpg", "2_mask.png"], None),  # no two belong together
    ],
)
def test_names_tell_images_from_labels(names, patterns):
    assert find_named_pairs(paths(*names)) == patterns


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("S2L1C_20150711", (date(2015, 7, 11), "{date:%Y%m%d}", "S2L1C")),
        ("north_2015-07-11_x", (date(2015, 7, 11), "{date:%Y-%m-%d}", "north__x")),
        ("2015_07_11", (date(2015, 7, 11), "{date:%Y_%m_%d}", "scene")),
        ("Zu\u0308rich_20150711", (date(2015, 7, 11), "{date:%Y%m%d}", "Z\u00fcrich")),  # as macOS writes it
        ("LE70220491999322EDC01", None),  # not a date inside of a longer number
        ("tile_20151711", None),
        ("tile_1", None),
    ],
)
def test_dates_in_names(stem, found):
    assert find_date(stem) == found


def test_bands_are_stacked_in_the_order_of_their_numbers():
    files = paths("L5_B10.tif", "L5_B2.tif", "L5_B1.tif", "labels.tif", "L8_B1.tif", "L8_B2.tif")
    assert band_stacks(files) == [paths("L5_B1.tif", "L5_B2.tif", "L5_B10.tif"), paths("L8_B1.tif", "L8_B2.tif")]
    assert band_stacks(paths("a.tif", "b.tif")) == []
