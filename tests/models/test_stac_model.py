"""STAC items of model files, checked against the schemas of the core and of MLM."""

import json
from dataclasses import replace

import jsonschema
import pytest
from stac_check import check_item, read_item
from synthetic import TASKS, segmenter, write_pair

from segkit import info
from segkit.errors import MissingFileError, ModelFileError, OutputExistsError, UsageError
from segkit.models.initial_weights import InitialWeights
from segkit.models.model_file import read_header
from segkit.models.stac_model import describe_model_item, find_model_item, model_name, write_model_item
from segkit.recipe.schema import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stac")
    for kind in TASKS:
        write_pair(folder, kind, "a")
        model = segmenter(folder, kind, mean=[500.0, 501.0, 502.0])
        model.metrics = {"mean_iou": 0.5, "ece": None, "per_class": {}}
        model.save(folder / f"{kind}.safetensors")
    return folder


@pytest.mark.parametrize("kind", TASKS)
def test_it_says_what_the_model_takes_and_gives(folder, tmp_path, kind):
    file = folder / f"{kind}.safetensors"
    item = read_item(write_model_item(file, folder / f"{kind}.json", overwrite=True))
    network = segmenter(folder, kind, mean=[500.0, 501.0, 502.0])
    properties, [given], [result] = item["properties"], *(item["properties"][f"mlm:{io}put"] for io in ("in", "out"))
    assert properties["mlm:total_parameters"] == sum(each.numel() for each in network.parameters())
    assert given["bands"] == [band["name"] for band in properties["bands"]] == ["b1", "b2", "b3"]
    assert given["input"]["shape"] == [-1, 3, -1, -1]
    assert [(one["mean"], one["stddev"]) for one in given["value_scaling"]] == [(500, 50), (501, 50), (502, 50)]
    assert result["result"]["shape"] == [-1, network.task.channels, -1, -1]
    legend = [(row["value"], row["name"], row["color"].upper()) for row in network.task.legend]
    classes = result["classification:classes"]
    assert [(one["value"], one["title"], f"#{one['color_hint']}") for one in classes] == legend
    assert item["assets"]["model"]["href"] == file.name
    assert "mlm:model" in item["assets"]["model"]["roles"]
    assert item["id"] == kind
    assert item["geometry"] is None
    assert properties["segkit:scores"] == {"mean_iou": 0.5}
    assert properties["datetime"] == read_header(file).created.replace("+00:00", "Z")
    assert find_model_item(file) == folder / f"{kind}.json"


def changed(folder, monkeypatch, **changes):
    """Return the item of a model whose header is changed."""
    file = folder / "multiclass.safetensors"
    header = replace(read_header(file), **changes)
    monkeypatch.setattr("segkit.models.stac_model.read_header", lambda _: header)
    item = describe_model_item(file, folder / "other.json")
    check_item(item)
    return item["properties"]


def test_networks_with_a_global_receptive_field_take_windows_of_their_training(folder, monkeypatch):
    found = changed(folder, monkeypatch, receptive_field="global")
    assert found["mlm:input"][0]["input"]["shape"] == [-1, 3, 32, 32]
    assert found["mlm:output"][0]["result"]["shape"] == [-1, 3, 32, 32]


@pytest.mark.parametrize(("source", "shown"), [("/home/me/weights/first.pt", "first.pt"), ("imagenet", "imagenet")])
def test_weights_of_a_start_are_named_without_their_folder(folder, monkeypatch, source, shown):
    found = changed(folder, monkeypatch, initial_weights=InitialWeights(source, None, ()))
    assert (found["mlm:pretrained"], found["mlm:pretrained_source"]) == (True, shown)
    assert "/home" not in json.dumps(found)


def test_indices_are_bands_with_their_formula(folder, monkeypatch):
    recipe = Recipe.from_dict(read_header(folder / "multiclass.safetensors").recipe).to_dict()
    recipe["data"]["indices"] = [{"formula": "(a - b) / (a + b)", "name": "ratio", "bands": {"a": 1, "b": "b2"}}]
    names = ("b1", "b2", "ratio")
    band = changed(folder, monkeypatch, recipe=recipe, band_names=names)["mlm:input"][0]["bands"][2]
    assert band["name"] == "ratio"
    assert band["expression"] == {"formula": "(a - b) / (a + b)", "bands": {"a": 1, "b": "b2"}, "constants": {}}


def test_classical_learners_have_a_valid_item(folder, monkeypatch):
    recipe = Recipe.from_dict(read_header(folder / "multiclass.safetensors").recipe).to_dict()
    recipe["model"] = {"architecture": "lda"}
    found = changed(folder, monkeypatch, recipe=recipe, versions={"segkit": "1", "torch": "2.5"})
    assert found["mlm:hyperparameters"] == {"learner": "lda"}
    assert "mlm:framework_version" not in found, "not in the form of the extension"


def test_a_damaged_date_is_named(folder, monkeypatch):
    with pytest.raises(ModelFileError, match="has the date 'soon'"):
        changed(folder, monkeypatch, created="soon")


def test_the_schemas_find_what_is_wrong(folder):
    item = json.loads(write_model_item(folder / "binary.safetensors", folder / "w.json").read_text())
    for part, key in (("properties", "mlm:input"), ("properties", "datetime"), (None, "id"), ("assets", "model")):
        wrong = json.loads(json.dumps(item))
        del (wrong if part is None else wrong[part])[key]
        with pytest.raises(jsonschema.ValidationError):
            check_item(wrong)


@pytest.mark.parametrize("name", ["forest", "1st model", "für Wälder!", "x", "森林", "_a_", "model v1.2"])
def test_names_have_the_form_of_the_extension(folder, monkeypatch, name):
    recipe = read_header(folder / "multiclass.safetensors").recipe | {"name": name}
    found = changed(folder, monkeypatch, recipe=recipe)
    assert found["title"] == name
    assert model_name("forest 2") == "forest 2"


def test_info_writes_it(folder, tmp_path):
    file = folder / "binary.safetensors"
    assert info(file, stac=tmp_path / "m.json").kind == "model"
    item = read_item(tmp_path / "m.json")
    assert (tmp_path / item["assets"]["model"]["href"]).resolve() == file
    with pytest.raises(OutputExistsError, match="is there already"):
        info(file, stac=tmp_path / "m.json")
    info(file, stac=tmp_path / "m.json", overwrite=True)
    with pytest.raises(UsageError, match="is no model file"):
        info(folder / "images" / "a.tif", stac=tmp_path / "i.json")
    with pytest.raises(UsageError, match=r"ends in \.json"):
        info(file, stac=tmp_path / "m.yaml")
    with pytest.raises(UsageError, match=r"ends in \.json"):
        info(file, stac=file, overwrite=True)
    with pytest.raises(MissingFileError):
        write_model_item(tmp_path / "none.safetensors", tmp_path / "n.json")
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_an_item_beside_its_model_can_be_replaced(folder):
    file, path = folder / "multilabel.safetensors", folder / "multilabel.json"
    for _ in range(2):
        assert write_model_item(file, path, overwrite=True) == path
    with pytest.raises(OutputExistsError, match="is there already"):
        write_model_item(file, path)
    assert find_model_item(file) == path


def test_other_json_files_are_no_items_of_models(tmp_path):
    model = tmp_path / "m.safetensors"
    assert find_model_item(model) is None
    for text in ("{", "[]", "{}", '{"stac_extensions": 1}', '{"stac_extensions": []}'):
        (tmp_path / "m.json").write_text(text)
        assert find_model_item(model) is None
