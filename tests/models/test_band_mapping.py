import pytest
import torch
from torch import nn

from segkit.models.band_mapping import match_names, match_order, repeat_inputs

SENTINEL_2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def sources(mapping, inputs):
    """{place of a band: the inputs that it starts from}."""
    return [{inputs[at] for at in each} for each in mapping.sources]


NEIGHBOURS = {
    # inputs, bands, what each band starts from
    "between": (("B2", "B4", "B8"), ("B2", "B3", "B8"), [{"B2"}, {"B2", "B4"}, {"B8"}]),
    "order of the files does not matter": (("B8", "B2", "B4"), ("B8", "B3", "B2"), [{"B8"}, {"B2", "B4"}, {"B2"}]),
    "at the end": (("B4", "B3", "B2"), ("B2", "B3", "B4", "B8", "B12"), [{"B2"}, {"B3"}, {"B4"}, {"B4"}, {"B4"}]),
    "at the start": (("B3", "B4"), ("B1", "B3"), [{"B3"}, {"B3"}]),
    "inputs that the imagery lacks are neighbours, too": (SENTINEL_2, ("B4", "B05"), [{"B4"}, {"B5"}]),
    "B8A": (tuple({*SENTINEL_2} - {"B8A"}), ("B4", "B8A"), [{"B4"}, {"B8", "B9"}]),
    "common names": (("red", "green"), ("green", "red", "nir"), [{"green"}, {"red"}, {"red"}]),
    "same wavelength": (("B4", "B8"), ("B4", "nir"), [{"B4"}, {"B8"}]),
    "Landsat": (("SR_B2", "SR_B4"), ("SR_B4", "SR_B3"), [{"SR_B4"}, {"SR_B2", "SR_B4"}]),
    "unknown names: neighbours in the imagery": (
        ("vv", "vh"), ("vv", "ratio", "vh", "slope"), [{"vv"}, {"vv", "vh"}, {"vh"}, {"vh"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "bands", "expected"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_a_missing_band_starts_from_its_neighbours(inputs, bands, expected):
    assert sources(match_names(inputs, bands), inputs) == expected


@pytest.mark.parametrize("name", ["b04", "B4", "B04", "B4, central wavelength 665 nm", "T32_2020:B4"])
def test_spelling_does_not_matter(name):
    mapping = match_names(("B8", "B4"), (name, "B8"))
    assert mapping.sources == ((1,), (0,))
    assert mapping.matched == (True, True)


def test_common_names_count_as_they_do_in_a_prediction():
    """Matched by order, red would start from the weights of blue."""
    weights = ["B02", "B03", "B04", "B8A"]
    assert match_names(weights, ["red", "green", "nir08", "blue"]).sources == ((2,), (1,), (3,), (0,))
    landsat = match_names(weights, ["SR_B4", "SR_B5", "SR_B6"])
    assert (landsat.sources[:2], landsat.matched) == (((2,), (3,)), (True, True, False))


def test_no_common_name_is_no_mapping():
    assert match_names(("B2", "B3"), ("1", "2")) is None


@pytest.mark.parametrize("inputs", [SENTINEL_2, ("B4", "B3", "B2")])
def test_the_mapped_layer_responds_as_the_original_one_of_which_the_other_inputs_are_at_their_mean(inputs):
    """Where all bands of the imagery are inputs."""
    bands = ("B2", "B4", "B3")
    layer, mapped = (nn.Conv2d(number, 5, 3, bias=False) for number in (len(inputs), 3))
    mapped.weight.data = match_names(inputs, bands).apply(layer.weight.data, 1)
    pixels = torch.randn(2, 3, 8, 8)
    whole = torch.zeros(2, len(inputs), 8, 8)
    for place, band in enumerate(bands):
        whole[:, inputs.index(band)] = pixels[:, place]
    torch.testing.assert_close(mapped(pixels), layer(whole))


@pytest.mark.parametrize("bands", [("B2", "B3", "B4", "B8", "B11"), ("B2", "B3", "B4"), ("B2", "B3", "B4", "B12")])
@pytest.mark.parametrize("rule", [match_names, repeat_inputs, match_order])
def test_new_bands_keep_the_magnitude_of_a_response_to_which_all_inputs_contribute_alike(rule, bands):
    inputs = ("B4", "B3", "B2")
    weight = torch.rand(5, 1, 3, 3).expand(5, 3, 3, 3)
    mapped = rule(inputs if rule is match_names else 3, bands).apply(weight, 1)
    torch.testing.assert_close(mapped.sum(dim=1), weight.sum(dim=1))


def test_all_bands_of_a_space_to_depth_stem_are_mapped():
    weight = torch.randn(4, 2 * 3, 1, 1)  # two positions of three inputs
    mapped = match_names(("B4", "B3", "B2"), ("B2", "B3", "B4")).apply(weight, 1)
    assert torch.equal(mapped, weight[:, [2, 1, 0, 5, 4, 3]])


SUMMARIES = {
    "B2, B4 by name; new: B3 from B2 and B4; not used: B8": (match_names, ("B2", "B4", "B8"), ("B2", "B3", "B4")),
    "1, 2 by order": (match_order, 2, ("1", "2")),
    "1 by order; not used: the last 2 of 3 bands": (match_order, 3, ("1",)),
    "1, 2 by order; new: 3, 4 from 2": (match_order, 2, ("1", "2", "3", "4")),
    "3 bands repeated over 1, 2, 3, 4": (repeat_inputs, 3, ("1", "2", "3", "4")),
    "1 from the sum of 3 bands": (repeat_inputs, 3, ("1",)),
    "r, g, b by order": (repeat_inputs, 3, ("r", "g", "b")),
}


@pytest.mark.parametrize(("summary", "given"), SUMMARIES.items(), ids=SUMMARIES)
def test_the_summary_says_what_comes_from_where(summary, given):
    rule, inputs, bands = given
    assert rule(inputs, bands).summary == summary
