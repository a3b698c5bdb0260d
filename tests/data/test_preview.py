import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from synthetic import read_whole, recipe_for, write_pair, write_pairs, write_raster

from segkit.data.areas import open_areas
from segkit.data.check import check
from segkit.data.datasets import TrainDataset
from segkit.data.preview import draw_data
from segkit.plots.images import colorize
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE

KINDS = ["binary", "multiclass", "multilabel"]
MAGENTA = (1, 0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: folder of two scenes}."""
    return write_pairs(tmp_path_factory)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **how: (figures.append(figure), save(figure, *args, **how))
    )
    return figures


def shares(parts, task):
    """Oracle: {name: share among the known pixels of its target}, over whole scenes."""
    found = {}
    for name, target, category in task.scored_categories:
        known = np.concatenate([targets[target][counted] for _, targets, counted in map(read_whole, parts)])
        known = known[known != IGNORE]
        found[name] = (known == category).mean()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_bars_are_the_shares_of_both_sides(data, tmp_path, drawn, kind):
    recipe = recipe_for(data[kind], kind)
    draw_data(recipe, check(recipe), tmp_path / "p.png")
    bars = drawn[0].axes[0]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == [name for name, _, _ in recipe.task.scored_categories]
    widths = np.array([bar.get_width() for bar in bars.patches]).reshape(2, -1)
    for row, part in zip(widths, open_areas(recipe), strict=True):
        np.testing.assert_allclose(row, list(shares(part, recipe.task).values()))
    messages = [text.get_text() for text in bars.texts]
    assert messages[0] == f"{widths[0, 0]:.1%}".replace("%", " %") + "  training"
    assert messages[-1] == f"{widths[1, -1]:.1%}".replace("%", " %") + "  validation"
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_those_of_the_training(data, tmp_path, drawn, kind):
    recipe = recipe_for(data[kind], kind, train={"augment": "none", "seed": 3})
    draw_data(recipe, check(recipe), tmp_path / "p.png")
    pictures = [ax for ax in drawn[0].axes[1:] if ax.images and not ax.get_title()]  # that of co-occurrence has one
    assert len(pictures) == 24
    tiles = TrainDataset(open_areas(recipe)[0], recipe.train.tile_size, None, 3)
    unseen = 0
    for number in range(12):
        pixels, valid, targets = (each.numpy() for each in tiles[number])
        image, labels = (np.asarray(ax.images[0].get_array()) for ax in pictures[2 * number : 2 * number + 2])
        magenta = (image == MAGENTA).all(axis=2)
        np.testing.assert_array_equal(magenta, ~valid)
        unseen += magenta.sum()
        if valid.sum() > 100:  # brighter pixels are shown brighter
            order = np.argsort(pixels[0][valid])
            assert (np.diff(image[..., 0][valid][order]) >= 0).all()
        if kind != "multilabel":
            np.testing.assert_array_equal(labels, colorize(targets, recipe.task))
        else:
            grey = np.isclose(labels, 0.62).all(axis=2)
            assert grey[(targets == IGNORE).all(axis=0)].all()
    assert unseen
    said = drawn[0].subfigs[1].get_suptitle().replace("\n", " ")
    assert "12 crops of 32 x 32 pixels after augmentation (none)" in said
    assert "Magenta: masked pixels" in said


@pytest.mark.parametrize("bands", [1, 2, 224])
def test_any_number_of_bands(tmp_path, drawn, bands):
    random = np.random.default_rng(0)
    write_raster(tmp_path / "images" / "a.tif", random.normal(500, 30, (bands, 64, 64)).astype(np.float32))
    write_raster(tmp_path / "labels" / "a.tif", (7 * random.integers(0, 2, (64, 64))).astype(np.uint8))
    recipe = recipe_for(tmp_path, "binary", train={"tile_size": 16})
    draw_data(recipe, check(recipe), tmp_path / "p.png")
    assert imread(tmp_path / "p.png").ndim == 3
    assert len(drawn[0].axes) > 20


def test_with_problems_the_picture_has_shares_and_the_reason(data, tmp_path, drawn):
    recipe = recipe_for(data["binary"], "binary").to_dict()
    recipe["task"]["classes"][0]["value"] = 8
    recipe = Recipe.from_dict(recipe)
    report = check(recipe)
    assert len(report.problems) == 2
    draw_data(recipe, report, tmp_path / "p.png")
    assert len(drawn[0].axes) == 1
    assert "code 7 (5696 pixels) is not defined" in drawn[0].subfigs[1].get_suptitle().replace("\n", " ")


def test_a_picture_without_readable_data(tmp_path):
    write_pair(tmp_path, "binary", "a")
    recipe = recipe_for(tmp_path, "binary")
    (tmp_path / "images" / "a.tif").write_text("no raster")
    draw_data(recipe, check(recipe), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
