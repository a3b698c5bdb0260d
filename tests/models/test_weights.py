import argparse
import sys
from hashlib import sha256
from types import ModuleType

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import _utils as smp_utils
from synthetic import recipe_for, segmenter

from segkit.errors import MissingFileError, ModelFileError, RecipeError
from segkit.models.network import make_network
from segkit.models.segmenter import Segmenter
from segkit.models.weights import load_encoder_weights
from segkit.recipe.schema import Model


def state(name="resnet10t"):
    """What timm would offer for download."""
    torch.manual_seed(1)
    return timm.create_model(name).state_dict()


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


STORED = {
    "timm.safetensors": save_file,
    "timm.pth": torch.save,
    "encoder.pth": lambda weights, path: torch.save(prefixed(weights, "model."), path),
    "checkpoint.pth": lambda weights, path: torch.save(
        {"epoch": 3, "state_dict": prefixed(weights, "module.encoder.") | {"head": torch.ones(1)}}, path
    ),
}


@pytest.mark.parametrize("bands", [1, 3, 5, 6])
@pytest.mark.parametrize("name", STORED)
def test_encoder_weights_from_a_file(tmp_path, bands, name):
    path, weights = tmp_path / name, state()
    STORED[name](weights, path)
    recipe = recipe_for(tmp_path, "binary", model={"encoder_weights": str(path)})
    encoder = Segmenter(recipe, [0.0] * bands, [1.0] * bands, [str(band) for band in range(bands)]).network.encoder
    found = {name.removeprefix("model."): tensor for name, tensor in encoder.state_dict().items()}
    assert found.keys() < weights.keys()
    first = next(iter(found))
    for other in found.keys() - {first}:
        assert torch.equal(found[other], weights[other])
    oracle = torch.nn.Sequential(torch.nn.Conv2d(3, *weights[first].shape[:1], 3, bias=False))
    oracle[0].weight.data = weights[first].clone()
    smp_utils.patch_first_conv(oracle, bands)
    torch.testing.assert_close(found[first], oracle[0].weight.data)
    if bands != 5:  # where bands are a multiple of 3, or one, the response to grey stays
        torch.testing.assert_close(found[first].sum(dim=1), weights[first].sum(dim=1))


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "regnety_002"])
def test_files_of_timm_fit_its_encoders(tmp_path, name):
    torch.save(state(name), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    model = segmenter(tmp_path, architecture="fpn", encoder=f"tu-{name}", options={}, encoder_weights=weights)
    stored = list(state(name).values())
    for parameter in model.network.encoder.parameters():
        assert any(torch.equal(parameter, tensor) for tensor in stored)


WRONG = {
    "smaller": (lambda: state("resnet18"), "lacks 80 of 216 weights"),
    "larger": (lambda: timm.create_model("resnet50").state_dict(), "lacks|has other shapes|has unknown"),
    "nothing": (lambda: {"a": torch.ones(1)}, "lacks 180 of 216 weights"),
    "list": (lambda: [1, 2], "holds a list, not a table of weights"),
}


@pytest.mark.parametrize(("made", "message"), WRONG.values(), ids=WRONG)
def test_weights_of_another_encoder_are_refused(tmp_path, made, message):
    torch.save(made(), tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=f"w.pth: .*({message})"):
        segmenter(tmp_path, encoder="resnet34", options={}, encoder_weights=str(tmp_path / "w.pth"))


def test_weights_of_a_deeper_encoder_are_refused(tmp_path):
    torch.save(state("resnet34"), tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match="has unknown 96 of 120 weights"):
        segmenter(tmp_path, encoder="resnet18", options={}, encoder_weights=str(tmp_path / "w.pth"))


def test_weights_of_an_encoder_that_are_not_finite_are_refused(tmp_path):
    weights = state()
    next(iter(weights.values())).view(-1)[0] = torch.nan
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=r"w.pth: holds 1 of .* not finite .*; name another file in model.encoder"):
        segmenter(tmp_path, encoder_weights=str(tmp_path / "w.pth"))


def test_a_file_of_weights_that_is_text_or_missing(tmp_path):
    (tmp_path / "w.pth").write_text("no weights")
    with pytest.raises(ModelFileError, match=r"w\.pth: not a file of weights"):
        segmenter(tmp_path, encoder_weights=str(tmp_path / "w.pth"))
    with pytest.raises(MissingFileError, match="no such file of encoder weights"):
        segmenter(tmp_path, encoder_weights=str(tmp_path / "v.pth"))


SENTINEL_2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
RESNET = {"encoder": "resnet18", "options": {"encoder_depth": 4, "decoder_channels": [8, 8, 8, 8]}}


@pytest.fixture(scope="module")
def resnet():
    """A ResNet of torchvision with 13 inputs, as after a training."""
    torch.manual_seed(3)
    network = torchvision.models.resnet18(num_classes=2)
    network.conv1 = torch.nn.Conv2d(13, 64, 7, stride=2, padding=3, bias=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def features(resnet, pixels):
    """What torchvision's layers make of pixels, at each stride."""
    found = [torch.relu(resnet.bn1(resnet.conv1(pixels)))]
    found.append(resnet.layer1(resnet.maxpool(found[-1])))
    for layer in (resnet.layer2, resnet.layer3):
        found.append(layer(found[-1]))
    return found


def sequential(weights):
    """The names in `nn.Sequential(*resnet.children()[:-1])`."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    renamed = {}
    for name, tensor in weights.items():
        stage, _, rest = name.partition(".")
        if stage in numbers:
            renamed[f"{numbers[stage]}.{rest}"] = tensor
    return renamed


def noise(weights):
    """Weights of the same shapes that must not be taken."""
    return {name: torch.full_like(tensor, 7) for name, tensor in weights.items()}


class AttributeDict(dict):
    """Of pytorch_lightning.utilities.parsing."""


class ModelCheckpoint:
    """Of pytorch_lightning.callbacks."""


def lightning_checkpoint(weights):
    """What SeCo published: also Lightning's objects."""
    return {
        "epoch": 9,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.ones(())}},
        "hyper_parameters": AttributeDict(base_encoder="resnet18", emb_dim=128),
        "state_dict": {
            **prefixed(sequential(noise(weights)), "encoder_k."),
            **prefixed(sequential(weights), "encoder_q."),
            **prefixed({"0.0.weight": torch.ones(2), "0.2.weight": torch.ones(2)}, "heads_q."),
            "queue": torch.ones(3),
        },
    }


LAYOUTS = {
    "torchvision": lambda weights: weights,
    "torchgeo, a task": lambda weights: {"state_dict": prefixed(weights, "model."), "hyper_parameters": {"lr": 0.1}},
    "torchgeo, MoCo": lambda weights: {
        "state_dict": prefixed(noise(weights), "backbone_momentum.") | prefixed(weights, "backbone.")
    },
    "SSL4EO-S12, MoCo": lambda weights: {
        "epoch": 100,
        "arch": "resnet18",
        "optimizer": {"state": {}, "param_groups": []},
        "state_dict": {
            **prefixed(noise(weights), "module.encoder_k."),
            **prefixed(weights, "module.encoder_q."),
            "module.queue": torch.ones(2, 2),
            "module.queue_ptr": torch.ones(1),
        },
    },
    "SSL4EO-S12, DINO": lambda weights: {
        "student": prefixed(noise(weights), "module.backbone."),
        "teacher": prefixed(weights, "module.backbone.") | {"module.head.mlp.0.weight": torch.ones(1)},
        "args": argparse.Namespace(arch="resnet18", lr=0.1),
    },
    "SSL4EO-S12, backbone": lambda weights: prefixed(weights, "module.encoder_q."),
    "SeCo": lightning_checkpoint,
    "SeCo, the encoder": sequential,
    "smp": lambda weights: {
        "state_dict": prefixed(weights, "network.encoder.") | {"network.head.0.bias": torch.ones(1)}
    },
}


def load_encoder(tmp_path, stored, bands, **model):
    """Save and load a file; return the encoder and what is said about it."""
    path = tmp_path / "w.pth"
    torch.save(stored, path)
    settings = Model(architecture="unet", encoder_weights=str(path), **RESNET | model)
    network = make_network(settings, len(bands), 2, pretrained=False)
    return network.encoder.eval(), load_encoder_weights(network, settings, bands)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_encoder_has_the_features_of_the_network_that_the_file_was_made_from(tmp_path, resnet, layout):
    stored = LAYOUTS[layout](resnet.state_dict())
    encoder, said = load_encoder(tmp_path, stored, SENTINEL_2)
    pixels = torch.randn(1, 13, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(encoder(pixels)[1:], features(resnet, pixels), strict=True):
            torch.testing.assert_close(found, expected)
    assert said.summary == (
        "taken: all 120 tensors of the encoder",
        f"first layer: bands {', '.join(SENTINEL_2)} by order",
    )
    assert said.fingerprint == sha256((tmp_path / "w.pth").read_bytes()).hexdigest()


def test_bands_are_found_by_name_and_the_others_of_the_file_count_as_mean(tmp_path, resnet):
    bands = ("B8", "B4", "B3", "B2")
    encoder, said = load_encoder(tmp_path, resnet.state_dict(), bands, encoder_bands=SENTINEL_2)
    pixels, whole = torch.randn(1, 4, 64, 64), torch.zeros(1, 13, 64, 64)
    for place, band in enumerate(bands):
        whole[:, SENTINEL_2.index(band)] = pixels[:, place]
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pixels)[-1], features(resnet, whole)[-1], atol=1e-4, rtol=1e-4)
    assert "first layer: bands B8, B4, B3, B2 by name; not used: B1, B5, B6, " in said.render()


def test_bands_without_names_are_found_by_number(tmp_path, resnet):
    """A file of red, green and blue; imagery of blue, green, red and near-infrared."""
    weights = resnet.state_dict()
    weights["conv1.weight"] = weights["conv1.weight"][:, :3]
    encoder, said = load_encoder(tmp_path, weights, ("1", "2", "3", "4"), encoder_bands=(3, 2, 1))
    red, green, blue = weights["conv1.weight"].unbind(dim=1)
    torch.testing.assert_close(encoder.conv1.weight, torch.stack([blue, green, red, red], dim=1) * 3 / 4)
    assert "1, 2, 3 by name; new: 4 from 3" in said.render()


def test_published_weights_are_matched_by_name_as_well(monkeypatch, resnet):
    """What smp downloads stands in a file here."""
    weights = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    weights["conv1.weight"] = weights["conv1.weight"][:, :3]
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda *_, **__: "")
    monkeypatch.setattr(smp.encoders, "load_file", lambda *_, **__: weights)
    red, green, blue = weights["conv1.weight"].unbind(dim=1)
    expected = {
        (): torch.stack([red, green, blue, red], dim=1) * 3 / 4,
        ("red", "green", "blue"): torch.stack([blue, green, red, red], dim=1) * 3 / 4,
    }
    for names, weight in expected.items():
        model = Model(architecture="unet", encoder_weights="imagenet", encoder_bands=names or None, **RESNET)
        network = make_network(model, 4, 2, pretrained=True)
        said = load_encoder_weights(network, model, ("blue", "green", "red", "nir"))
        torch.testing.assert_close(network.encoder.conv1.weight, weight)
        assert ("by name" if names else "3 bands repeated over blue, green, red, nir") in said.render()


BANDS = {
    "number": (("B2", "B3"), ModelFileError, "has 13 input bands, model.encoder_bands names 2; name the bands that"),
    "names": (tuple("abcdefghijklm"), RecipeError, r"none of a, b, .* is a band of the imagery \(B2, B3\); name the"),
}


@pytest.mark.parametrize(("names", "error", "message"), BANDS.values(), ids=BANDS)
def test_band_names_that_do_not_fit(tmp_path, resnet, names, error, message):
    with pytest.raises(error, match=message):
        load_encoder(tmp_path, resnet.state_dict(), ("B2", "B3"), encoder_bands=names)


class _Harmful:
    def __reduce__(self):
        return eval, ("open('harm', 'w').write('')",)


def test_no_code_of_a_checkpoint_is_run_or_imported(tmp_path, resnet, monkeypatch):
    monkeypatch.chdir(tmp_path)
    allowed = torch.serialization.get_safe_globals()
    module = ModuleType("not_installed")
    module.Thing = type("Thing", (), {"__module__": "not_installed", "__qualname__": "Thing"})
    monkeypatch.setitem(sys.modules, "not_installed", module)
    torch.save({"state_dict": resnet.state_dict(), "a": module.Thing(), "b": _Harmful()}, tmp_path / "given.pth")
    monkeypatch.delitem(sys.modules, "not_installed")
    settings = Model(architecture="unet", encoder_weights="given.pth", **RESNET)
    said = load_encoder_weights(make_network(settings, 13, 2, pretrained=False), settings, SENTINEL_2)
    assert said.render().startswith("weights from given.pth\n  taken: all 120 tensors")
    assert not (tmp_path / "harm").exists()
    assert set(torch.serialization.get_safe_globals()) == set(allowed)
