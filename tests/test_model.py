import json
from dataclasses import asdict

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.encoders import _utils as smp_utils
from synthetic import SMALLEST, recipe_for, segmenter, write_raster

from segkit.errors import MissingFileError, ModelFileError, RecipeError, SegkitError
from segkit.model import Segmenter, load, read_header

ARCHITECTURES = {
    "unet": "tu-resnet10t",
    "unetplusplus": "mobilenet_v2",
    "fpn": "mobilenet_v2",
    "deeplabv3": "mobilenet_v2",
    "deeplabv3plus": "mobilenet_v2",
    "segformer": "mit_b0",
    "pspnet": "mobilenet_v2",
    "linknet": "mobilenet_v2",
    "manet": "mobilenet_v2",
    "pan": "mobilenet_v2",
    "upernet": "tu-mobilenetv3_small_050",
}


def an_image(bands=3, height=32, width=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = 500 + 50 * torch.randn(2, bands, height, width, generator=random)
    valid = torch.rand(2, height, width, generator=random) > 0.2
    return pixels, valid


def logits(model, pixels, valid):
    with torch.inference_mode():
        return model(pixels, valid)


@pytest.mark.parametrize(("architecture", "encoder"), ARCHITECTURES.items(), ids=ARCHITECTURES)
def test_every_architecture_maps_any_size_and_heeds_only_valid_pixels(tmp_path, architecture, encoder):
    options = SMALLEST["options"] if architecture == "unet" else {}
    model = segmenter(tmp_path, "multiclass", architecture=architecture, encoder=encoder, options=options)
    pixels, valid = an_image(height=135, width=141)
    found = logits(model, pixels, valid)
    assert found.shape == (2, 3, 135, 141)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    for anything in (0.0, -1e30, torch.nan, torch.inf):
        torch.testing.assert_close(logits(model, pixels.where(valid[:, None], anything), valid), found)
    assert found.std(dim=(2, 3)).max() > 1e-3


@pytest.mark.parametrize("bands", [1, 5, 39])
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_any_number_of_bands(tmp_path, bands, kind):
    model = segmenter(tmp_path, kind, bands)
    assert logits(model, *an_image(bands)).shape == (2, model.task.channels, 32, 40)


def test_units_do_not_matter(tmp_path):
    """Where pixels and their statistics change together, logits stay."""
    pixels, valid = an_image()
    pixels = pixels.double()
    found = logits(segmenter(tmp_path).double(), pixels, valid)
    scale, shift = torch.tensor([2.0, 0.25, 8.0]), torch.tensor([64.0, -500.0, 0.0])
    changed = segmenter(tmp_path, mean=(500 * scale + shift).tolist(), std=(50 * scale).tolist())
    moved = pixels * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1)
    torch.testing.assert_close(logits(changed.double(), moved, valid), found)


def test_a_missing_value_of_one_band_is_its_mean(tmp_path):
    model = segmenter(tmp_path, mean=[500.0, 510.0, 520.0])
    pixels, valid = an_image()
    gone = torch.rand(pixels.shape) < 0.3
    filled = pixels.where(~gone, model.mean)
    torch.testing.assert_close(
        logits(model, pixels.where(~gone, torch.nan), valid), logits(model, filled, valid), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("mean", "std"), [(7.0, 0.0), (1e6, 1e-3), (0.1, 1e-17)])
def test_a_constant_band_is_only_shifted(tmp_path, mean, std):
    """Rounding makes a deviation of a constant band; a pixel that differs from it later must not explode."""
    model = segmenter(tmp_path, mean=[500.0, mean, 500.0], std=[50.0, std, 50.0])
    plain = segmenter(tmp_path, mean=[500.0, mean, 500.0], std=[50.0, 1.0, 50.0])
    pixels, valid = an_image()
    pixels[:, 1] = mean + 1
    torch.testing.assert_close(logits(model, pixels, valid), logits(plain, pixels, valid))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_saved_model_predicts_the_same(tmp_path, kind):
    model = segmenter(tmp_path, kind, mean=[1 / 3, 500.1, 1e6], std=[0.1, 50.3, 7e3])
    model.metrics = {"mean_iou": 0.5, "ece": None}
    model.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    pixels, valid = an_image()
    assert not again.training
    torch.testing.assert_close(logits(again, pixels, valid), logits(model, pixels, valid), rtol=0, atol=1e-6)
    assert again.recipe == model.recipe
    assert again.task == model.task
    assert again.metrics == model.metrics
    assert again.path == tmp_path / "m.safetensors"


def test_the_header_says_what_the_model_is(tmp_path):
    model = segmenter(tmp_path, "multilabel", mean=[1.5, 2.5, 3.5], std=[4.5, 0.0, 6.5])
    model.metrics = {"mean_iou": 0.5}
    model.save(tmp_path / "m.safetensors")
    header = read_header(tmp_path / "m.safetensors")
    assert header.recipe == model.recipe.to_dict()
    assert [one["name"] for one in header.recipe["task"]["classes"]] == ["water", "forest"]
    assert (header.mean, header.std, header.band_names) == ((1.5, 2.5, 3.5), (4.5, 1.0, 6.5), ("b1", "b2", "b3"))
    assert header.metrics == {"mean_iou": 0.5}
    assert {"segkit", "torch", "segmentation-models-pytorch"} <= header.versions.keys()
    assert header.created.startswith("20")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model file, its header as a dict, and its weights."""
    path = tmp_path_factory.mktemp("stored") / "m.safetensors"
    segmenter(path.parent).save(path)
    return path, asdict(read_header(path)), load_file(path)


BROKEN = {
    "empty": (lambda path, *_: path.write_bytes(b""), "not a model file"),
    "text": (lambda path, *_: path.write_text("hello " * 99), "not a model file"),
    "cut": (lambda path, good, *_: path.write_bytes(good.read_bytes()[:-100]), "not a model file .* or damaged"),
    "checkpoint": (lambda path, _, __, weights: torch.save(weights, path), "not a model file"),
    "folder": (lambda path, *_: path.mkdir(), r"is a folder; name the model file in it \(model.safetensors\)"),
    "plain": (lambda path, *_: save_file({"a": torch.ones(1)}, path), "not one that segkit train wrote"),
    "no JSON": (lambda path, *_: write(path, "{"), "its header is damaged"),
    "no table": (lambda path, *_: write(path, "[1]"), "its header is damaged"),
    "bare": (lambda path, *_: write(path, '{"format": 1}'), "its header is damaged"),
    "newer": (lambda path, _, header, __: write(path, header | {"format": 2}), "format 2, .* reads 1; update segkit"),
    "recipe": (lambda path, _, header, __: write(path, header | {"recipe": {}}), "cannot use its header: recipe: "),
    "bands": (lambda path, _, header, __: write(path, header | {"mean": [1]}), "cannot use its header"),
    "weights": (lambda path, _, header, __: write(path, header), "its weights do not fit its recipe"),
}


def write(path, header):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"a": torch.ones(1)}, path, metadata={"segkit": text})


@pytest.mark.parametrize(("breaking", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_model_is_said_in_one_line(tmp_path, stored, breaking, message):
    path = tmp_path / "bad.safetensors"
    breaking(path, *stored)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="no such model file"):
        load(tmp_path / "m.safetensors")


def test_a_file_is_replaced_only_by_a_whole_one(stored, tmp_path, monkeypatch):
    path, before = tmp_path / "m.safetensors", stored[0].read_bytes()
    path.write_bytes(before)
    monkeypatch.setattr("segkit.model.save_file", lambda weights, part, **_: part.write_bytes(b"half"))
    with pytest.raises(ModelFileError):
        segmenter(tmp_path).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_scene_of_other_bands_is_refused(stored, tmp_path):
    write_raster(tmp_path / "four.tif", np.ones((4, 8, 8), np.uint16))
    with pytest.raises(ModelFileError, match=r"four.tif: has 4 bands, .* trained on 3 \(b1, b2, b3\)"):
        load(stored[0]).scene(tmp_path / "four.tif")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "unett"}, "model.architecture: 'unett' is not known; use one of deeplabv3, "),
        ({"encoder": "resnet19"}, "model.encoder: 'resnet19' is not known; use tu- and a timm name, or one of "),
        ({"encoder": "tu-resnet19"}, "model: unet with encoder tu-resnet19 .* cannot be built: Unknown model"),
        ({"encoder": "resnet18", "options": {"depth": 3}}, "model.options.depth: unet has no such option; it has "),
        ({"options": {"encoder_depth": 3, "decoder_channels": [8]}}, "cannot be built: Model depth is 3"),
        ({"options": {"in_channels": 3}}, "cannot be built: .*in_channels"),
    ],
)
def test_a_network_that_is_not_known(tmp_path, model, message):
    with pytest.raises(RecipeError, match=message) as caught:
        segmenter(tmp_path, **model)
    assert "\n" not in str(caught.value)


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
    for name in found.keys() - {first}:
        assert torch.equal(found[name], weights[name])
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


def test_a_file_of_weights_that_is_text_or_missing(tmp_path):
    (tmp_path / "w.pth").write_text("no weights")
    with pytest.raises(ModelFileError, match=r"w\.pth: not a file of weights"):
        segmenter(tmp_path, encoder_weights=str(tmp_path / "w.pth"))
    with pytest.raises(MissingFileError, match="no such file of encoder weights"):
        segmenter(tmp_path, encoder_weights=str(tmp_path / "v.pth"))


@pytest.mark.parametrize(
    ("encoder", "options"), [("resnet18", {}), ("tu-resnet10t", SMALLEST["options"])], ids=["smp", "timm"]
)
def test_published_weights_without_a_network(tmp_path, monkeypatch, encoder, options):
    def offline(*_, **__):
        raise OSError("no network")

    for module in (smp.encoders, timm.models._builder):
        for name in ("hf_hub_download", "load_state_dict_from_hf", "load_state_dict_from_url"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, offline)
    with pytest.raises(SegkitError, match="weights imagenet cannot be built: no network; without a network, name a"):
        segmenter(tmp_path, encoder=encoder, options=options, encoder_weights="imagenet")
