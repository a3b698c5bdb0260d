"""Every wrong recipe is refused with one line that names its source."""

import copy
import datetime

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import recipe_for

from segkit.data.pairing import pair_files
from segkit.errors import MissingFileError, RecipeError
from segkit.recipe.messages import describe_errors
from segkit.recipe.schema import Recipe

_WORDS = st.sampled_from(
    [
        "",
        "unet",
        "lda",
        "balanced",
        "block",
        "water",
        "background",
        "0/5",
        "1/0",
        "#ff0000",
        "-",
        "a\nb",
        "\ud800",
        "~\0",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([10**30, 1e400, -0.0, 0.5, float("nan"), datetime.date(2020, 1, 1)])
    | _WORDS
)
KEYS = (
    st.sampled_from(["", "path", "labels", "steps", "whole", "classes", "a\nb", "nme", "0"])
    | st.none()
    | st.integers(0, 2)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Recipes with all keys, as plain values."""
    folder = tmp_path_factory.mktemp("recipes")
    network = recipe_for(folder, "multiclass", train={"class_weights": {"water": 2.0}}).to_dict()
    network["data"]["train"]["labels"] = [
        {"path": ["a.gpkg", "b.gpkg"], "values": {"x": "water"}, "priority": ["water"]}
    ]
    network["data"]["train"]["images"] = [["a.tif", "b.tif"], ["c.tif", "d.tif"]]
    learner = copy.deepcopy(network)
    learner["model"] = {"architecture": "forest", "options": {}, "features": {"texture": [3], "indices": [[1, "nir"]]}}
    learner["data"]["val"] = {"column": "part", "val": ["val"], "train": None}
    learner["data"]["train"] |= {"images": None, "table": "scenes.csv"}
    for one in (network, learner):
        Recipe.from_dict(one)
    return [network, learner]


def places(value, place=()):
    """Yield the places of all values in nested lists and dicts."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


def change(raw, place, key, value, how):
    """Replace the value at a place, remove it, or add a key to it."""
    if not place:
        return value if how == "replace" else raw | {key: value} if how == "add" else raw
    *above, last = place
    target = raw
    for part in above:
        target = target[part]
    if how == "remove":
        del target[last]
    elif how == "add" and isinstance(target[last], dict):
        target[last][key] = value
    elif how == "add" and isinstance(target[last], list):
        target[last].append(value)
    else:
        target[last] = value
    return raw


def refusal(read):
    """Return the message of a RecipeError; None if what is read is accepted."""
    try:
        read()
    except RecipeError as error:
        return str(error)
    return None


def assert_one_line(message):
    assert message is None or (len(message.splitlines()) == 1 and not message.endswith(": "))


@pytest.mark.filterwarnings("ignore:.* is now called:UserWarning")  # old keys, which KEYS has on purpose
@settings(max_examples=400)
@given(data=st.data())
def test_a_wrong_recipe_is_refused_in_one_line(valid, data):
    raw = copy.deepcopy(data.draw(st.sampled_from(valid)))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(raw))))
        raw = change(
            raw, place, data.draw(KEYS), data.draw(VALUES), data.draw(st.sampled_from(["replace", "remove", "add"]))
        )
        if not isinstance(raw, dict):
            return
    assert_one_line(refusal(lambda: Recipe.from_dict(raw)))


@pytest.mark.filterwarnings("ignore:.* is now called:UserWarning")  # old keys, which KEYS has on purpose
@settings(max_examples=100)
@given(data=st.data())
def test_a_wrong_file_is_refused_in_one_line(valid, data, tmp_path_factory):
    raw = copy.deepcopy(data.draw(st.sampled_from(valid)))
    place = data.draw(st.sampled_from(list(places(raw))))
    raw = change(raw, place, data.draw(KEYS), data.draw(VALUES), data.draw(st.sampled_from(["replace", "add"])))
    file = tmp_path_factory.getbasetemp() / "wrong.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8", errors="surrogatepass")
    assert_one_line(refusal(lambda: Recipe.load(file)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("? !!timestamp 2020-01-01\n: 3", "tags (!!timestamp) are not supported"),
        ('"a\\nb": 3', "a b: unknown key"),
        ("<^: 3", "odd.yaml: <^: unknown key; known: "),
        ("train: {loss: {}}", "odd.yaml: train.loss: is empty; give at least one"),
        ("model: {encoder_weights: x, encoder_bands: [[]]}", "odd.yaml: model.encoder_bands.0: found []; must be"),
    ],
)
def test_odd_keys_and_empty_values_are_named(valid, tmp_path, change, said):
    (tmp_path / "odd.yaml").write_text(
        yaml.safe_dump({key: valid[0][key] for key in ("name", "task", "data")}) + change
    )
    assert said in refusal(lambda: Recipe.load(tmp_path / "odd.yaml"))


def test_a_list_that_is_only_too_short_is_named():
    error = {"type": "too_short", "loc": ("data", "bands"), "input": [1], "msg": "List should have at least 2 items"}
    found = describe_errors([error], "r.yaml", {}, {})
    assert found == "r.yaml: data.bands: found [1]; List should have at least 2 items"


def test_a_path_with_a_null_byte_is_that_of_no_file(valid, tmp_path):
    raw = copy.deepcopy(valid[0])
    raw["data"]["train"] = {"images": "~\0", "labels": "labels"}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(raw))
    recipe = Recipe.load(tmp_path / "odd.yaml")
    with pytest.raises(MissingFileError, match="no such file"):
        pair_files(recipe.data.train)
