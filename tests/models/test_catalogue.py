import pytest
import segmentation_models_pytorch as smp

from segkit.models.catalogue import _matches, encoders
from segkit.models.network import make_network
from segkit.recipe.schema import Model


def test_sizes_are_those_of_the_networks():
    found = encoders("tu-lcnet_035")
    assert [one.name for one in found.encoders] == ["tu-lcnet_035"]
    assert not found.encoders[0].published
    assert found.further == 0
    unet = next(one for one in found.architectures if one.name == "unet")
    network = make_network(Model(architecture="unet", encoder="tu-lcnet_035"), 3, 2, pretrained=False)
    assert sum(each.numel() for each in network.encoder.parameters()) == found.encoders[0].weights
    reference = smp.Unet("resnet34", encoder_weights=None, classes=2)
    decoder = [*reference.decoder.parameters(), *reference.segmentation_head.parameters()]
    assert unet.weights == sum(each.numel() for each in decoder)
    assert unet.options["decoder_channels"] == (256, 128, 64, 32, 16)
    assert {one.name for one in found.architectures} == set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert all(one.weights for one in found.architectures)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("resnet", "tu-resnet10t", True),
        ("resnet*", "tu-resnet10t", False),
        ("RESNET1?", "resnet18", True),
        ("[", "resnet18", False),
    ],
)
def test_a_pattern_is_a_part_or_has_wildcards(pattern, name, expected):
    assert _matches(name, pattern) == expected
