import pytest
import torch
from safetensors.torch import load_file
from synthetic import recipe_for, segmenter, write_pairs

from segkit.errors import UsageError
from segkit.models.model_file import read_header
from segkit.models.segmenter import load
from segkit.training.callbacks import EpochLog
from segkit.training.module import TrainingModule
from segkit.training.train import train

STEP = {"epochs": 1, "steps_per_epoch": 1, "checkpoint": "last"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two binary scenes, and in it the file of a model of other classes."""
    folder = write_pairs(tmp_path_factory)["binary"]
    segmenter(folder, "multiclass", mean=[550.0, 500.0, 500.0], std=[50.0, 10.0, 10.0]).save(
        folder / "source.safetensors"
    )
    return folder


def start(data, **settings):
    return recipe_for(data, "binary", model={"start_from": str(data / "source.safetensors")}, train=settings)


def changes(run, source):
    """{part of the network: the largest change of a parameter, the largest of a statistic}."""
    before, after, found = load_file(source), load_file(run.model), {}
    for part in ("encoder", "decoder", "segmentation_head"):
        of_part = [name for name in after if name.startswith(f"network.{part}.")]
        same = [name for name in of_part if after[name].shape == before[name].shape]
        found[part] = tuple(
            max([float((after[name] - before[name]).abs().max()) for name in names], default=None)
            for names in (
                [name for name in same if "running" not in name and "num_batches" not in name],
                [name for name in same if "running" in name],
            )
        )
    return found


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_a_frozen_part_keeps_its_weights_and_statistics_also_after_a_validation(data, tmp_path, frozen):
    run = train(start(data, freeze=[frozen], epochs=2), tmp_path / "run")
    found = changes(run, data / "source.safetensors")
    other = {"encoder": "decoder", "decoder": "encoder"}[frozen]
    assert found[frozen] == (0, 0)
    assert min(found[other]) > 1e-3


def test_a_frozen_part_needs_no_gradients_and_is_never_in_training_mode(data):
    """Gradients that are not used would count when the others are clipped."""
    model = segmenter(data)
    model.recipe = start(data, freeze=["encoder", "head"])
    module = TrainingModule(model.train(), None)
    network = model.network
    for _ in range(2):
        for part, trained in ((network.encoder, False), (network.decoder, True), (network.segmentation_head, False)):
            assert all(weight.requires_grad == trained for weight in part.parameters())
            if module.training:
                assert all(layer.training == trained for layer in part.modules())
        module.eval().train()


def test_the_encoder_changes_less_by_the_factor_of_its_learning_rate(data, tmp_path):
    """In its first step AdamW changes a weight by the learning rate, whatever the gradient is."""
    settings = STEP | {"learning_rate": 1e-3, "weight_decay": 0.0, "encoder_learning_rate_factor": 0.125}
    run = train(start(data, **settings), tmp_path / "run")
    found = changes(run, data / "source.safetensors")
    assert found["decoder"][0] == pytest.approx(1e-3, rel=1e-2)
    assert found["encoder"][0] == pytest.approx(0.125e-3, rel=1e-2)


def interrupt(patch, epoch):
    def strike(log, trainer, module):
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    patch.setattr(EpochLog, "on_train_epoch_start", strike)


def test_a_run_that_started_from_a_model_is_resumed_without_it(data, tmp_path, monkeypatch, capsys):
    """Also with another learning rate; the factor of the encoder stays."""
    source = tmp_path / "source.safetensors"
    source.write_bytes((data / "source.safetensors").read_bytes())

    def settings(rate):
        train = {"epochs": 2, "encoder_learning_rate_factor": 0.5, "learning_rate": rate}
        return recipe_for(data, "binary", model={"start_from": str(source)}, train=train)

    straight = train(settings(1e-3), tmp_path / "straight", show_progress=True)
    expected = read_header(straight.model)
    assert expected.initial_weights.fingerprint == load(source).fingerprint()
    assert (expected.mean, expected.std) == ((550.0, 500.0, 500.0), (50.0, 10.0, 10.0))  # those of the source
    said = capsys.readouterr().err
    assert said.count(f"weights from {source}\n  taken: ") == 1
    assert said.index("weights from") < said.index("epoch 1/2")
    for rate in (1e-3, 2e-4):
        folder = tmp_path / str(rate)
        with monkeypatch.context() as patch:
            interrupt(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                train(settings(1e-3), folder)
        source.rename(tmp_path / "gone")
        resumed = train(settings(rate), folder, resume=True, show_progress=True)
        (tmp_path / "gone").rename(source)
        found = read_header(resumed.model)
        assert (found.mean, found.std, found.initial_weights) == (expected.mean, expected.std, expected.initial_weights)
        assert "weights from" not in capsys.readouterr().err
        optimizer = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
        assert {group["initial_lr"] for group in optimizer["param_groups"]} == {rate, rate / 2}
        same = all(
            torch.allclose(tensor, load_file(straight.model)[name], atol=1e-6)
            for name, tensor in load_file(resumed.model).items()
        )
        assert same == (rate == 1e-3)


REFUSED = {
    "random": (
        {"train": {"freeze": ["encoder"]}},
        "train.freeze: the encoder would keep random weights; give model.encoder_weights or model.start_from",
    ),
    "random head": (
        {"train": {"freeze": ["head"]}, "model": {"encoder_weights": "imagenet"}},
        "train.freeze: the head would keep random weights; give model.start_from, or remove it",
    ),
    "another network": (
        {"model": {"start_from": "source.safetensors", "architecture": "linknet", "options": {}}},
        "is a unet with encoder tu-resnet10t, the recipe has a linknet with",
    ),
    "no file": ({"model": {"start_from": "none.safetensors"}}, "no such model file"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_start_is_refused_before_anything_is_read(data, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(data)
    with pytest.raises(UsageError, match=message):
        train(recipe_for(tmp_path, "binary", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_is_not_overwritten_by_the_training_that_starts_from_it(data, tmp_path):
    run = train(recipe_for(data, "binary", train=STEP), tmp_path / "run")
    with pytest.raises(UsageError, match="name another run folder"):
        train(recipe_for(data, "binary", train=STEP), run.folder, start_from=run.model, overwrite=True)
