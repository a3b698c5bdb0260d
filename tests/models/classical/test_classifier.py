import numpy as np
import pytest
import torch
from synthetic import TASKS, recipe_for

from segkit.models.classical import classifier
from segkit.models.classical.classifier import PixelClassifier
from segkit.recipe.schema import Recipe

HEADS = [("binary", "softmax"), ("binary", "sigmoid"), ("multiclass", "softmax"), ("multiclass", "sigmoid")]
HEADS.append(("multilabel", "sigmoid"))


def make(tmp_path, kind, head=None, **features):
    recipe = recipe_for(tmp_path, kind)
    model = {"architecture": "lda"} | ({"features": features} if features else {})
    recipe = Recipe.from_dict(recipe.to_dict() | {"model": model, "task": TASKS[kind] | {"head": head}})
    made = PixelClassifier(recipe, torch.zeros(3), torch.ones(3), ("r", "g", "b"))
    random = np.random.default_rng(0)
    for learner in made.learners:
        shape = learner.categories, learner.features
        learner.set_arrays(weight=random.normal(0, 1, shape), bias=random.normal(0, 1, shape[0]))
    return made


def scene(height=17, width=23):
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(2, height, width, generator=generator) > 0.2
    return torch.randn(2, 3, height, width, generator=generator) * valid[:, None], valid


@pytest.mark.parametrize(("kind", "head"), HEADS)
def test_logits_give_the_probability_of_each_channel(tmp_path, kind, head):
    made, (pixels, valid) = make(tmp_path, kind, head), scene()
    found = made.task.probabilities(made(pixels, valid))
    vectors = pixels.movedim(1, -1).reshape(-1, 3)
    expected = torch.stack([learner(vectors).softmax(dim=1) for learner in made.learners])  # (T, n, K)
    for channel, (target, category) in enumerate(made.task.channel_categories):
        torch.testing.assert_close(found[:, channel].flatten(), expected[target, :, category], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "head"), HEADS)
def test_logits_are_finite_where_a_probability_is_0(tmp_path, kind, head):
    made, (pixels, valid) = make(tmp_path, kind, head), scene()
    for learner in made.learners:
        learner.bias[0] = -1e30
    logits = made(pixels, valid)
    assert logits.isfinite().all()
    assert logits.abs().max() < 17


def test_strips_are_as_the_whole(tmp_path, monkeypatch):
    """Also where the texture of a pixel needs rows of other strips."""
    made, (pixels, valid) = make(tmp_path, "multiclass", texture=[3, 7]), scene()
    assert made.receptive_field == 3
    whole = made(pixels, valid)
    for pixels_of_strip in (1, 50, 200):
        monkeypatch.setattr(classifier, "_STRIP_PX", pixels_of_strip)
        torch.testing.assert_close(made(pixels, valid), whole, atol=1e-5, rtol=0)
