import re

import pytest
import torch
from synthetic import recipe_for, segmenter

from segkit.errors import MissingFileError, ModelFileError, RecipeError
from segkit.models.model_file import read_header
from segkit.models.segmenter import Segmenter, load
from segkit.models.transfer import check_start, start_from_model, with_start

BANDS = ("B2", "B3", "B4")
CLASSES = [("water", 3), ("forest", 9), ("field", 4)]
MEAN, STD = (500.0, 600.0, 700.0), (50.0, 60.0, 70.0)


def small(values):
    """Reflectances instead of stored values."""
    return tuple(value / 8192 for value in values)


def classes(*names):
    return {"type": "multiclass", "classes": [{"name": name, "value": dict(CLASSES).get(name, 20)} for name in names]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The file of a model of three named bands and three classes with background."""
    folder = tmp_path_factory.mktemp("source")
    model = segmenter(folder, "multiclass")
    model = new(folder, BANDS, classes("water", "forest", "field"), MEAN, STD, like=model)
    model.save(folder / "source.safetensors")
    return folder / "source.safetensors"


def new(folder, bands, task, mean=None, std=None, *, like=None, train=None, **model):
    """A new segmenter with random weights, other ones in each call; normalisations as in `segmenter`."""
    recipe = recipe_for(folder, "multiclass", task=task, model=model, train=train or {})
    made = Segmenter(recipe, mean or [500.0] * len(bands), std or [50.0] * len(bands), bands, pretrained=False)
    for module, other in zip(made.modules(), like.modules() if like else made.modules(), strict=True):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.load_state_dict(other.state_dict())
    return made.eval()


def pixels(bands=3, side=32):
    random = torch.Generator().manual_seed(5)
    return 600 + 60 * torch.randn(1, bands, side, side, generator=random), torch.ones(1, side, side, dtype=torch.bool)


def logits(model, image, valid):
    """In double precision, in which other sums of the same numbers are the same."""
    with torch.inference_mode():
        return model.double()(image.double(), valid)


def started(source, tmp_path, bands, task, mean, std, **changes):
    made = new(tmp_path, bands, task, mean, std, start_from=str(source), **changes)
    start_from_model(made, source)
    return made.eval()


def test_the_same_bands_and_classes_give_the_same_logits(source, tmp_path):
    made = started(
        source, tmp_path, BANDS, classes("water", "forest", "field"), (480.0, 610.0, 700.0), (60.0, 60.0, 60.0)
    )
    original = load(source)
    assert torch.equal(logits(made, *pixels()), logits(original, *pixels()))
    said = made.initial_weights
    assert (said.source, said.fingerprint) == (str(source), load(source).fingerprint())
    assert re.fullmatch(
        rf"weights from {source}\n  taken: all \d+ tensors\n  first layer: bands B2, B3, B4 by name\n  "
        "last layer: classes background, water, forest, field by name\n  normalisation: that of the model "
        r"\(means of the new data differ by at most 0.4 standard deviations, standard deviations by a factor of 1.2\)",
        said.render(),
    )


def test_bands_and_classes_in_another_order_give_the_same_logits_in_that_order(source, tmp_path):
    order, mean, std = [2, 0, 1], (700.0, 500.0, 600.0), (70.0, 50.0, 60.0)
    made = started(source, tmp_path, ("B4", "B02", "B3"), classes("field", "water", "forest"), mean, std)
    image, valid = pixels()
    expected = logits(load(source), image, valid)[:, [0, 3, 1, 2]]  # the first is background
    torch.testing.assert_close(logits(made, image[:, order], valid), expected)


def test_bands_without_names_are_taken_in_order(source, tmp_path):
    made = started(source, tmp_path, ("1", "2", "3"), classes("water", "forest", "field"), MEAN, STD)
    assert torch.equal(logits(made, *pixels()), logits(load(source), *pixels()))
    assert "bands 1, 2, 3 by order\n  last" in made.initial_weights.render()


def test_other_classes_keep_the_logits_of_those_that_are_the_same(source, tmp_path):
    made = started(source, tmp_path, BANDS, classes("burnt", "forest"), MEAN, STD)
    found, expected = logits(made, *pixels()), logits(load(source), *pixels())
    torch.testing.assert_close(found[:, [0, 2]], expected[:, [0, 2]])
    assert not torch.allclose(found[:, 1], expected[:, 1])
    assert "classes background, forest by name; new: burnt; not used: water, field" in made.initial_weights.render()


def test_of_entirely_other_classes_only_the_last_layer_is_new(source, tmp_path):
    task = {"type": "multilabel", "classes": [{"name": "road", "value": 1}, {"name": "rail", "value": 2}]}
    made = new(tmp_path, BANDS, task, MEAN, STD, start_from=str(source))
    before = made.state_dict()["network.segmentation_head.0.weight"].clone()
    start_from_model(made, source)
    old = load(source).state_dict()
    differing = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, old[name])}
    assert differing == {"network.segmentation_head.0.weight", "network.segmentation_head.0.bias"}
    assert torch.equal(made.state_dict()["network.segmentation_head.0.weight"], before)
    total = len(old)
    assert f"taken: {total - 2} of {total} tensors\n" in made.initial_weights.render()
    assert "last layer: classes new: road, rail; not used: background, water, " in made.initial_weights.render()


def test_a_new_band_starts_from_its_neighbours_and_has_its_own_statistics(source, tmp_path):
    bands, mean, std = ("B2", "B3", "B4", "B8"), (*MEAN, 3000.0), (*STD, 900.0)
    made = started(source, tmp_path, bands, classes("water", "forest", "field"), mean, std)
    image, valid = pixels()
    # A fourth band with the normalised values of the third.
    fourth = (image[:, 2:] - 700) / 70 * 900 + 3000
    original = load(source)
    name = "network.encoder.model.conv1.0.weight"
    old, found = original.state_dict()[name], made.state_dict()[name]
    torch.testing.assert_close(found, torch.cat([old, old[:, 2:]], dim=1) * 3 / 4)
    torch.testing.assert_close(made.mean.flatten(), torch.tensor([*MEAN, 3000.0]))
    assert logits(made, torch.cat([image, fourth], dim=1), valid).isfinite().all()
    said = made.initial_weights.render()
    assert "bands B2, B3, B4 by name; new: B8 from B4\n  last" in said
    assert "that of the model; of the new data for new bands (" in said


def test_missing_bands_count_as_their_mean(source, tmp_path):
    made = started(source, tmp_path, ("B4", "B2"), classes("water", "forest", "field"), (700.0, 500.0), (70.0, 50.0))
    image, valid = pixels()
    image[:, 1] = 600.0
    torch.testing.assert_close(logits(made, image[:, [2, 0]], valid), logits(load(source), image, valid))
    assert "not used: B3" in made.initial_weights.render()


@pytest.mark.parametrize(("mean", "std"), [(small(MEAN), small(STD)), ((500.0, 670.0, 700.0), STD)])
def test_data_on_another_scale_is_normalised_by_its_own_statistics(source, tmp_path, mean, std):
    """Then values in other units give the same logits."""
    made = started(source, tmp_path, BANDS, classes("water", "forest", "field"), mean, std)
    torch.testing.assert_close(made.mean.flatten(), torch.tensor(mean))
    image, valid = pixels()
    image, shape = image.double(), (1, 3, 1, 1)
    normalised = (image - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    other = normalised * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    torch.testing.assert_close(logits(made, other, valid), logits(load(source), image, valid))
    assert "normalisation: of the new data, whose values are on another scale (band B" in made.initial_weights.render()


def test_of_a_network_with_other_options_the_encoder_is_taken(source, tmp_path):
    options = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    made = new(tmp_path, BANDS, classes("water", "forest", "field"), MEAN, STD, start_from=str(source), options=options)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    start_from_model(made, source)
    old = load(source).state_dict()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, (old if name.startswith("network.encoder.") else before)[name])
    assert "tensors (the encoder only, because model.options differ)\n  first layer" in made.initial_weights.render()


OTHER = {"architecture": {"architecture": "fpn", "options": {}}, "encoder": {"encoder": "resnet18"}}


@pytest.mark.parametrize("model", OTHER.values(), ids=OTHER)
def test_another_network_is_refused(source, tmp_path, model):
    recipe = recipe_for(tmp_path, "binary", model=model | {"start_from": str(source)})
    wanted = f"{recipe.model.architecture} with encoder {recipe.model.encoder}"
    message = (
        f"model.start_from: {source} is a unet with encoder tu-resnet10t, the recipe has a {wanted}; set model.arch"
    )
    with pytest.raises(RecipeError, match=f"^{message}"):
        check_start(recipe)


def test_what_is_not_a_model_is_refused(source, tmp_path):
    with pytest.raises(MissingFileError, match="no such model file"):
        check_start(with_start(recipe_for(tmp_path, "binary"), tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ModelFileError, match="not a model file"):
        check_start(with_start(recipe_for(tmp_path, "binary"), tmp_path / "text.safetensors"))
    check_start(recipe_for(tmp_path, "binary"))


FROZEN = {
    "new class": (("head",), classes("water", "burnt"), {}, "because classes of the recipe are not in the model"),
    "options": (("decoder",), classes("water"), {"options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}},
                "because the model has other model.options"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "task", "model", "message"), FROZEN.values(), ids=FROZEN)
def test_a_frozen_part_must_come_from_the_model(source, tmp_path, parts, task, model, message):
    made = new(tmp_path, BANDS, task, train={"freeze": parts}, start_from=str(source), **model)
    with pytest.raises(RecipeError, match=f"train.freeze: the head or the decoder would stay random, {message}"):
        start_from_model(made, source)


def test_with_start_replaces_weights_of_the_encoder_and_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(tmp_path, "binary", model={"encoder_weights": "imagenet", "encoder_bands": [3, 2, 1]})
    changed = with_start(recipe, "first/model.safetensors").model
    assert changed.start_from == str(tmp_path / "first/model.safetensors")
    assert (changed.encoder_weights, changed.encoder_bands) == (None, None)


def test_the_model_file_says_where_the_weights_came_from(source, tmp_path):
    made = started(source, tmp_path, BANDS, classes("water", "burnt"), MEAN, STD)
    made.save(tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors").initial_weights == made.initial_weights
    assert load(tmp_path / "m.safetensors").initial_weights == made.initial_weights
    assert load(source).initial_weights is None
