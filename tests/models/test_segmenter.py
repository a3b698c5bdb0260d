import json
from dataclasses import asdict
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from synthetic import SMALLEST, recipe_for, segmenter, write_raster
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

from segkit.errors import MissingFileError, ModelFileError, RecipeError, SegkitError
from segkit.models.model_file import read_header
from segkit.models.network import describe_non_finite
from segkit.models.segmenter import Segmenter, load

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
# Of decoders whose own numbers of channels take seconds.
SLIM = {
    "unet": SMALLEST["options"],
    "segformer": {"decoder_segmentation_channels": 16},
    "dpt": {"decoder_intermediate_channels": [16] * 4, "decoder_fusion_channels": 16},
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
    options = SLIM.get(architecture, {})
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
    "plain": (
        lambda path, *_: save_file({"a": torch.ones(1)}, path),
        "a safetensors file without a recipe, so no model of segkit; ",
    ),
    "no JSON": (lambda path, *_: write(path, "{"), "its header is damaged"),
    "no table": (lambda path, *_: write(path, "[1]"), "its header is damaged"),
    "bare": (lambda path, *_: write(path, '{"format": 1}'), "its header is damaged"),
    "newer": (
        lambda path, _, header, __: write(path, header | {"format": 2}),
        "format 2, .* reads format 1; update segkit",
    ),
    "recipe": (lambda path, _, header, __: write(path, header | {"recipe": {}}), "cannot use its header: recipe: "),
    "bands": (lambda path, _, header, __: write(path, header | {"mean": [1]}), "of different numbers of bands"),
    "receptive_field": (
        lambda path, _, header, __: write(path, header | {"receptive_field": -1}),
        "its header is damaged: receptive_field is -1, ",
    ),
    "weights": (lambda path, _, header, __: write(path, header), "its weights do not fit its recipe"),
    "mean": (lambda path, _, header, __: write(path, header | {"mean": [1, 1, np.inf]}), "mean of band b3 is inf"),
    "std": (lambda path, _, header, __: write(path, header | {"std": [1, np.nan, 1]}), "deviation of band b2 is nan"),
    "calibration": (
        lambda path, _, header, __: write(path, header | {"calibration": {"scale": [np.nan], "shift": [0]}}),
        "its header is damaged: calibration has scale",
    ),
}


def write(path, header):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"a": torch.ones(1)}, path, metadata={"segkit": text})


@pytest.mark.parametrize(("breaking", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_model_is_reported_in_one_line(tmp_path, stored, breaking, message):
    path = tmp_path / "bad.safetensors"
    breaking(path, *stored)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(tmp_path, stored, value):
    _, header, weights = stored
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    first, *_, last = (name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[first].view(-1)[-1] = weights[last].view(-1)[0] = value
    whole = sum(tensor.numel() for tensor in weights.values())
    path = tmp_path / "bad.safetensors"
    found = f"2 of {whole:,} weights that are not finite numbers \\(first in {first}\\); train the model again"
    model = segmenter(tmp_path)
    model.load_state_dict(weights)
    with pytest.raises(ModelFileError, match=f"^{path}: is not written: it would hold {found}$"):
        model.save(path)
    assert list(tmp_path.iterdir()) == []
    save_file(weights, path, metadata={"segkit": json.dumps(header)})
    with pytest.raises(ModelFileError, match=f"^{path}: holds {found}$"):
        load(path)


def test_large_weights_whose_sum_overflows_are_finite(tmp_path):
    assert describe_non_finite({"a": torch.full((9,), 3e38), "b": torch.arange(3)}) is None


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="no such model file"):
        load(tmp_path / "m.safetensors")


def test_a_file_is_replaced_only_by_a_whole_one(stored, tmp_path, monkeypatch):
    path, before = tmp_path / "m.safetensors", stored[0].read_bytes()
    path.write_bytes(before)
    monkeypatch.setattr("segkit.models.segmenter.save_file", lambda weights, part, **_: part.write_bytes(b"half"))
    with pytest.raises(ModelFileError):
        segmenter(tmp_path).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_scene_of_other_bands_is_refused(stored, tmp_path):
    write_raster(tmp_path / "four.tif", np.ones((4, 8, 8), np.uint16))
    with pytest.raises(ModelFileError, match=r"four.tif: has 4 bands, .* trained on 3 \(b1, b2, b3\)"):
        load(stored[0]).open_scene(tmp_path / "four.tif")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "unett"}, "model.architecture: 'unett' is not known; did you mean unet?"),
        ({"encoder": "resnet19"}, "model.encoder: 'resnet19' is not known; did you mean resnet1"),
        ({"encoder": "tu-resnet19"}, "model: unet with encoder tu-resnet19 .* cannot be built: Unknown model"),
        ({"encoder": "resnet18", "options": {"depth": 3}}, "model.options.depth: unet has no such option; it has "),
        ({"options": {"encoder_depth": 3, "decoder_channels": [8]}}, "cannot be built: Model depth is 3"),
        ({"options": {"in_channels": 3}}, "in_channels: unet has no such option"),
    ],
)
def test_a_network_that_is_not_known(tmp_path, model, message):
    with pytest.raises(RecipeError, match=message) as caught:
        segmenter(tmp_path, **model)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(SegkitError, match="weights imagenet cannot be built: no network; without internet access"):
        segmenter(tmp_path, encoder=encoder, options=options, encoder_weights="imagenet")


CPU = torch.device("cpu")
SCSE = {"encoder_depth": 3, "decoder_channels": [32, 16, 16], "decoder_attention_type": "scse"}
PREPARED = {
    **{
        architecture: (architecture, encoder, SLIM.get(architecture, {}))
        for architecture, encoder in ARCHITECTURES.items()
    },
    "unet": ("unet", "resnet18", {}),
    "unet-scse": ("unet", "tu-resnet10t", SCSE),
    "unet-efficientnet": ("unet", "efficientnet-b0", {}),
    "unet-mobilenetv3": ("unet", "tu-mobilenetv3_small_100", {}),
    "unet-convnext": ("unet", "tu-convnext_atto", {}),
    "dpt": ("dpt", "tu-vit_tiny_patch16_224", SLIM["dpt"]),  # takes 224 pixels only
}


def probabilities(model, pixels, valid):
    return model.task.probabilities(logits(model, pixels, valid))


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.network.modules())


@pytest.mark.parametrize(("architecture", "encoder", "options"), PREPARED.values(), ids=PREPARED)
def test_a_prepared_model_says_the_same(tmp_path, architecture, encoder, options):
    model = segmenter(tmp_path, "multiclass", architecture=architecture, encoder=encoder, options=options)
    side = 224 if architecture == "dpt" else 128
    model.recipe = recipe_for(tmp_path, "multiclass", train={"tile_size": side})
    lively(model)
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    exact, rounded = model.optimized_for_inference(CPU, "fp32"), model.optimized_for_inference(CPU, "bf16")
    assert model.training
    assert not exact.training
    assert not rounded.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert norms(exact) < norms(model) or not norms(model)
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    image = an_image(height=side, width=side)
    true = probabilities(model.eval(), *image)
    assert true.std(dim=(2, 3)).max() > 1e-4
    torch.testing.assert_close(probabilities(exact, *image), true, rtol=0, atol=1e-4)
    near = logits(rounded, *image)
    assert near.dtype == torch.float32
    assert not torch.equal(near, logits(model, *image))
    assert (model.task.probabilities(near) - true).abs().mean() < 0.02


def test_normalisation_stays_float32_in_bf16(tmp_path):
    """Values whose differences bf16 does not hold."""
    model = segmenter(tmp_path, mean=[10_000.0] * 3, std=[4.0] * 3)
    pixels, valid = an_image()
    pixels = 10_000 + (pixels - 500) / 50 * 4
    near, true = (probabilities(one, pixels, valid) for one in (model.optimized_for_inference(CPU, "bf16"), model))
    assert (near - true).abs().mean() < 0.02


def holding(tmp_path, network, stride=1):
    """A segmenter of a hand-made network of 3 bands and 2 channels."""
    model = segmenter(tmp_path)
    model.network, model.stride = network.eval(), stride
    return lively(model)


def lively(model):
    """Give normalisations statistics and weights as after a training; some start as zeros that hide their layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.normal_(std=0.2)
    return model


def conv(inputs=3, outputs=2, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Wired(nn.Module):
    """A network whose layers are wired by hand."""

    def __init__(self, wiring, **layers):
        super().__init__()
        self.wiring = wiring
        self.layers = nn.ModuleDict(layers)

    def forward(self, pixels):
        return self.wiring(self.layers, pixels)


WIRED = {
    # wiring, layers, norms that remain
    "pair": (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": nn.BatchNorm2d(2)}, 0),
    "no bias": (lambda m, x: m.b(m.a(x)), {"a": conv(bias=False), "b": nn.BatchNorm2d(2, affine=False)}, 0),
    "activation": (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": BatchNormAct2d(2)}, 0),
    "in place": (lambda m, x: m.d(m.c(m.b(functional.relu_(m.a(x))))),
                 {"a": conv(), "b": nn.BatchNorm2d(2), "c": conv(2, 2), "d": nn.BatchNorm2d(2)}, 1),
    "between": (lambda m, x: m.b(m.a(x).tanh()), {"a": conv(), "b": nn.BatchNorm2d(2)}, 1),
    "two takers": (lambda m, x: m.b(y := m.a(x)) + y, {"a": conv(), "b": nn.BatchNorm2d(2)}, 1),
    "two norms": (lambda m, x: m.b(y := m.a(x)) + m.c(y),
                  {"a": conv(), "b": nn.BatchNorm2d(2), "c": nn.BatchNorm2d(2)}, 2),
    "conv twice": (lambda m, x: m.b(m.a(m.a(x))), {"a": conv(3, 3), "b": nn.BatchNorm2d(3)}, 1),
    "norm twice": (lambda m, x: m.b(m.a(x)) + m.b(m.c(x)), {"a": conv(), "b": nn.BatchNorm2d(2), "c": conv()}, 1),
    "batch's own": (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": nn.BatchNorm2d(2, track_running_stats=False)}, 1),
    "beside": (lambda m, x: m.b(m.a(x)) + m.d(m.c(x).tanh()),
               {"a": conv(), "b": nn.BatchNorm2d(2), "c": conv(), "d": nn.BatchNorm2d(2)}, 1),
    "none": (lambda m, x: m.a(x), {"a": conv()}, 0),
}  # fmt: skip


@pytest.mark.parametrize(("wiring", "layers", "remaining"), WIRED.values(), ids=WIRED)
def test_only_what_can_be_folded_is(tmp_path, wiring, layers, remaining):
    torch.manual_seed(0)
    model = holding(tmp_path, Wired(wiring, **layers))
    prepared = model.optimized_for_inference(CPU, "fp32")
    assert norms(prepared) == remaining
    image = an_image()
    torch.testing.assert_close(logits(prepared, *image), logits(model, *image), atol=1e-4, rtol=1e-4)


def test_a_network_with_an_operation_that_wants_float32_computes_the_rest_in_bf16(tmp_path):
    kernel = torch.randn(2, 4, 1, 1)  # no parameter: it stays float32 when the network is converted
    wiring = lambda m, x: functional.conv2d(m.b(m.a(x)), kernel)  # noqa: E731
    model = holding(tmp_path, Wired(wiring, a=conv(3, 4), b=nn.BatchNorm2d(4)))
    made = []
    rounded = model.optimized_for_inference(CPU, "bf16")
    rounded.network.network.layers.a.register_forward_hook(lambda _, __, output: made.append(output.dtype))
    image = an_image()
    near, true = logits(rounded, *image), logits(model, *image)
    assert made == [torch.bfloat16]
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, true, atol=0.1, rtol=0.1)
    torch.testing.assert_close(logits(model.optimized_for_inference(CPU, "fp32"), *image), true, atol=1e-4, rtol=1e-4)


@settings(max_examples=25)
@given(data=st.data())
def test_the_receptive_field_of_convolutions_is_what_changes_when_a_pixel_does(tmp_path_factory, data):
    layers, stride = [], 1
    for _ in range(data.draw(st.integers(1, 4))):
        kernel, step, dilation = (data.draw(st.sampled_from(of)) for of in ([1, 3, 5], [1, 1, 2], [1, 2, 4]))
        padding = dilation * (kernel // 2)
        pooled = step == 2 and data.draw(st.booleans())
        layers.append(nn.Conv2d(3, 3, kernel, 1 if pooled else step, padding, dilation))
        layers += [nn.Hardswish(), *[nn.MaxPool2d(3, 2, 1)] * pooled]
        stride *= step
    network = nn.Sequential(*layers, nn.Upsample(scale_factor=stride), conv(3, 2)).double()
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    # Rows and columns are alike, so not each row needs each column.
    shifts = range(0, stride, max(1, stride // 4))
    cell = [(128 + at, 128 + (at + shift) % stride) for at in range(stride) for shift in shifts]
    with torch.inference_mode():
        before = network(image)
        reaches = []
        for row, column in cell:
            changed = image.clone()
            changed[..., row, column] += 100 * torch.randn(3)
            rows, columns = (network(changed) != before).any(dim=(0, 1)).nonzero(as_tuple=True)
            reaches += [*(rows - row).abs().tolist(), *(columns - column).abs().tolist()]
    reach = holding(tmp_path_factory.mktemp("reach"), network, stride).receptive_field
    # A pixel that a maximum or an activation hides does not count in this run.
    pooled = any(isinstance(layer, nn.MaxPool2d) for layer in layers)
    assert max(reaches) <= reach < max(reaches) + stride + (4 * stride if pooled else 0)


def test_beyond_its_receptive_field_a_pixel_changes_no_bit(tmp_path):
    model = lively(segmenter(tmp_path)).double()
    reach = model.receptive_field
    pixels, valid = an_image(height=16, width=512)
    pixels, valid = pixels.double(), valid | True
    changed = pixels.clone()
    changed[..., 256:264] += 500
    hit = (logits(model, changed, valid) != logits(model, pixels, valid)).any(dim=(0, 1, 2)).nonzero()
    distances = (hit - 263).abs().max(), (hit - 256).abs().max()
    assert reach - model.stride < max(distances) <= reach


def test_what_lies_further_from_a_window_s_end_than_the_receptive_field_is_as_in_the_whole(tmp_path):
    model = lively(segmenter(tmp_path))
    pixels, valid = an_image(height=400, width=400)
    whole = logits(model, pixels, valid)
    margin, cut = model.receptive_field + 1, slice(8 * 17, 8 * 35)
    part = logits(model, pixels[..., cut, cut], valid[..., cut, cut])
    inner, same = slice(margin, 144 - margin), slice(8 * 17 + margin, 8 * 35 - margin)
    torch.testing.assert_close(part[..., inner, inner], whole[..., same, same], rtol=0, atol=1e-5)
    near = slice(margin // 2, 144 - margin // 2)
    wider = slice(8 * 17 + margin // 2, 8 * 35 - margin // 2)
    assert (part[..., near, near] - whole[..., wider, wider]).abs().max() > 1e-4


REACHES = {
    "3x3": (conv(), 1, 1),
    "dilated": (nn.Conv2d(3, 2, 3, padding=7, dilation=7), 1, 7),
    "wide": (nn.Conv2d(3, 2, (1, 9), padding=(0, 4)), 1, 4),
    "high": (nn.Conv2d(3, 2, (9, 1), padding=(4, 0)), 1, 4),
    "to the right": (nn.Sequential(nn.ZeroPad2d((5, 0, 0, 0)), nn.Conv2d(3, 2, (1, 6))), 1, 5),
    "to the left": (nn.Sequential(nn.ZeroPad2d((0, 5, 0, 0)), nn.Conv2d(3, 2, (1, 6))), 1, 5),
    "far": (nn.Sequential(*[nn.Conv2d(3, 3, (1, 3), padding=(0, 900), dilation=900)] * 3), 1, 2700),
    "global pool": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(scale_factor=8)), 8, None),
    "rows pooled": (nn.AdaptiveAvgPool2d((1, None)), 1, None),
    "group norm": (nn.GroupNorm(1, 3), 1, None),
    "batch's own": (nn.BatchNorm2d(3, track_running_stats=False), 1, None),
    "corners": (nn.Sequential(conv(stride=2), nn.UpsamplingBilinear2d(scale_factor=2)), 2, None),
    "one size": (nn.Sequential(nn.Flatten(2), nn.Linear(64, 64), nn.Unflatten(2, (8, 8))), 1, None),
}


class Pooled(nn.Module):
    """Adds what a pooling says to each pixel."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, pixels):
        return pixels + functional.interpolate(self.pool(pixels), pixels.shape[-2:])


@pytest.mark.parametrize(("network", "stride", "reach"), REACHES.values(), ids=REACHES)
def test_the_receptive_field_of_single_layers(tmp_path, network, stride, reach):
    network = Pooled(network) if isinstance(network, nn.AdaptiveAvgPool2d) else network
    model = holding(tmp_path, network, stride)
    modes = [module.training for module in network.modules()]
    assert model.receptive_field == reach
    assert model.fixed_window_size == (32 if reach is None else None)
    assert [module.training for module in network.modules()] == modes


WHOLE = {"unetplusplus": False, "linknet": False, "segformer": True, "pan": True, "fpn": True, "deeplabv3plus": True}


@pytest.mark.parametrize(("architecture", "everything"), WHOLE.items(), ids=WHOLE)
def test_networks_that_look_at_all_of_their_window_are_recognised(tmp_path, architecture, everything):
    """Also segformer with a convolutional encoder, whose interpolation is pinned to the window's corners."""
    model = segmenter(tmp_path, architecture=architecture, encoder="mobilenet_v2", options=SLIM.get(architecture, {}))
    assert (model.receptive_field is None) == everything


def test_attention_over_the_window_is_recognised(tmp_path):
    assert segmenter(tmp_path).receptive_field is not None
    assert segmenter(tmp_path, options=SCSE).receptive_field is None


@pytest.mark.parametrize(("options", "stored"), [(SMALLEST["options"], 54), (SCSE, "global")])
def test_the_receptive_field_is_measured_once_and_kept_in_the_file(tmp_path, options, stored):
    model = segmenter(tmp_path, options=options)
    file = tmp_path / "m.safetensors"
    model.save(file)
    assert read_header(file).receptive_field is None
    measured = model.receptive_field
    model.save(file)
    assert read_header(file).receptive_field == stored
    assert load(file).receptive_field == measured
    other = asdict(read_header(file)) | {"reach": 7}
    save_file(load_file(file), file, metadata={"segkit": json.dumps(other)})
    assert load(file).receptive_field == 7


def test_a_file_from_before_receptive_fields_were_stored(tmp_path):
    file = tmp_path / "m.safetensors"
    model = segmenter(tmp_path)
    model.save(file)
    header = asdict(read_header(file))
    del header["receptive_field"]
    save_file(load_file(file), file, metadata={"segkit": json.dumps(header)})
    assert load(file).receptive_field == model.receptive_field


def test_the_fingerprint_is_of_what_decides_the_logits(tmp_path):
    model = segmenter(tmp_path)
    prints = [model.fingerprint()]
    model.save(tmp_path / "m.safetensors")
    model.metrics = {"mean_iou": 1.0}
    assert {load(tmp_path / "m.safetensors").fingerprint(), model.fingerprint()} == set(prints)
    model.std[0, 1] *= 2
    prints.append(model.fingerprint())
    next(model.network.parameters()).data.view(-1)[0] += 1e-3
    prints.append(model.fingerprint())
    assert all(one != other for one, other in pairwise(prints))


NARROW = [(1, 300), (300, 1), (64, 32), (32, 64), (512, 32), (32, 512), (40, 20), (20, 20), (32, 32), (33, 64)]


@pytest.mark.parametrize("shape", NARROW)
def test_a_network_is_given_no_window_of_one_stride_by_several(tmp_path, shape):
    model = segmenter(tmp_path, options={})
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels, valid = an_image(height=shape[0], width=shape[1])
    assert logits(model, pixels, valid).shape[-2:] == shape
    sides = np.array(seen[0].shape[-2:]) // model.stride
    assert (sides * model.stride == seen[0].shape[-2:]).all()
    assert sides.min() > 1 or sides.max() == 1
    strides = -(-np.array(shape) // model.stride)
    assert (sides == np.maximum(strides, 1 + (strides.max() > 1))).all(), "no larger than it must be"
    known = ((pixels - 500) / 50 * valid[:, None]).numpy()
    beyond = [(0, int(side) * model.stride - own) for side, own in zip(sides, shape, strict=True)]
    np.testing.assert_allclose(seen[0], np.pad(known, [(0, 0), (0, 0), *beyond], mode="reflect"), atol=1e-5)


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="the CPU has no AMX")
@pytest.mark.parametrize("encoder", ["tu-resnet10t", "resnet18"])
def test_bf16_says_the_same_in_every_run_and_as_much_as_fp32_whatever_the_shape(tmp_path, encoder):
    model = segmenter(tmp_path, "multiclass", options={}, encoder=encoder)
    exact, rounded = (model.optimized_for_inference(torch.device("cpu"), precision) for precision in ("fp32", "bf16"))
    for shape in NARROW:
        pixels, valid = an_image(height=shape[0], width=shape[1])
        found = []
        for run in range(4):
            _ = torch.full((1000 + 99_991 * run,), 1e30)  # so that what is free memory holds something else
            found.append(logits(rounded, pixels, valid))
        assert all(torch.equal(found[0], again) for again in found), shape
        expected = logits(exact, pixels, valid)
        assert (found[0] - expected).abs().max() < 0.2 * expected.abs().max(), shape


def test_a_model_file_knows_how_its_scenes_are_read(tmp_path):
    """Units, no data and a quality band of the training; scenes have the bands in another order."""
    names = ["blue", "green", "red", "SCL"]
    pixels = np.random.default_rng(0).integers(1, 1000, (4, 20, 20), dtype=np.uint16)
    pixels[3] = np.random.default_rng(1).choice([4, 9], (20, 20))
    pixels[:3, 0] = 7
    recipe = recipe_for(tmp_path, "binary", data={"offset": [-1, -2, -3], "nodata": 7, "mask": "sentinel2_scl"})
    Segmenter(recipe, [500.0] * 3, [50.0] * 3, ["B02", "B03", "B04"]).save(tmp_path / "m.safetensors")
    write_raster(tmp_path / "scene.tif", pixels)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        with rasterio.open(tmp_path / "scene.tif", "r+") as dataset:
            dataset.write(pixels[order])
            dataset.descriptions = [names[at] for at in order]
        tile = load(tmp_path / "m.safetensors").open_scene(tmp_path / "scene.tif").read()
        valid = (pixels[3] == 4) & (pixels[:3] != 7).any(axis=0)
        np.testing.assert_array_equal(tile.valid, valid)
        expected = np.where(pixels[:3] == 7, np.nan, pixels[:3] - np.array([1.0, 2, 3])[:, None, None])
        np.testing.assert_array_equal(tile.pixels, expected)


def test_the_fingerprint_of_a_file_stays_when_keys_of_recipes_are_added_or_renamed(tmp_path):
    """So a prediction that segkit 0.2 began is continued. Oracle: the hash over what the file holds."""
    file = tmp_path / "m.safetensors"
    segmenter(tmp_path).save(file)
    header = asdict(read_header(file))
    train = header["recipe"]["train"]
    train["steps"], train["keep"] = train.pop("steps_per_epoch"), train.pop("checkpoint")
    header["reach"] = header.pop("receptive_field")
    weights = load_file(file)
    save_file(weights, file, metadata={"segkit": json.dumps(header)})
    model = load(file)
    digest = sha256(json.dumps([header["recipe"], list(header["mean"]), list(header["std"])]).encode())
    for name in model.state_dict():
        digest.update(name.encode())
        digest.update(weights[name].flatten().view(torch.uint8).numpy())
    assert model.fingerprint() == digest.hexdigest()
    model.save(file)
    assert load(file).fingerprint() != digest.hexdigest()  # written with the names of today
