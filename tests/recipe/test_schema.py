import json
import warnings

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from pydantic import ValidationError

from segkit.errors import MissingFileError, RecipeError
from segkit.recipe.derived import IndexKeys, LayerKeys
from segkit.recipe.imagery import MaskKeys
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import (
    Data,
    DatasetSource,
    Model,
    Recipe,
    Train,
    schema,
)
from segkit.recipe.splits import SpatialSplit, TableSplit
from segkit.recipe.yaml import parse_yaml

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MINIMAL = """
name: small
task: {type: binary, classes: [{name: cleared, value: 1}]}
data: {train: {images: images, labels: labels}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def refused(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipes_load_fit_the_schema_and_survive_json(path):
    loaded = Recipe.load(path)
    assert Recipe.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())
    jsonschema.validate(loaded.to_dict(), schema())


def test_the_schema_is_valid_and_refuses_what_the_recipe_refuses(recipe):
    jsonschema.Draft202012Validator.check_schema(schema())
    raw = yaml.safe_load(MINIMAL)
    for key, value in (("epoch", 3), ("epochs", "3"), ("epochs", 0), ("precision", "fp8")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(raw | {"train": {key: value}}, schema())


def test_every_key_is_described_in_the_schema():
    parts = {part["title"]: part for part in schema()["$defs"].values()}
    assert {"Train", "Model", "Data"} <= parts.keys()
    for part in parts.values():
        for key, node in part.get("properties", {}).items():
            if part["title"] not in ("Task", "LandCoverClass"):
                assert node.get("description"), f"{part['title']}.{key}"


def test_defaults(recipe):
    loaded = Recipe.load(recipe)
    assert (loaded.model, loaded.train, loaded.data.val) == (Model(), Train(), SpatialSplit())
    assert loaded.train.loss == {"pixel": 1.0, "dice": 1.0}


@pytest.mark.parametrize(
    ("part", "place"), [(Train, "train"), (Model, "model"), (SpatialSplit, "data.val"), (Data, "data")], ids=str
)
def test_a_misspelt_key_suggests_the_right_one(recipe, part, place):
    for key in part.model_fields:
        for wrong in (key + "s", key[:-1] + key[-1] * 2):
            if wrong not in part.model_fields:
                message = refused(recipe, f"{place}.{wrong}=1")
                assert f"--set {place}.{wrong}=1: {place}.{wrong}: unknown key; did you mean " in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "did you mean epochs?"),
        ("task.colour=1", "task.colour: unknown key; known: type, classes"),
        ("task.classes.0.nam=x", "task.classes.0.nam: unknown key; did you mean name?"),
        ("train.epochs=3.5", "train.epochs: found 3.5; must be a whole number"),
        ("train.epochs='3'", 'train.epochs: found "3"; must be a whole number'),
        ("train.epochs=true", "train.epochs: found true; must be a whole number"),
        ("task.classes.0.value=true", "must be a whole number"),
        ("train.epochs=0", "must be greater than or equal to 1"),
        ("train.learning_rate=.inf", "must be a number"),
        ("train.learning_rate=1e999", "must be a finite number"),
        ("train.precision=bf61", "did you mean bf16?"),
        ("train.devices=all", "train.devices: found"),
        ("train.devices=[1]", "must be a whole number or 'auto'"),
        ("train.loss={}", "train.loss: is empty"),
        ("train.loss={pixel: 0}", "all weights in loss are 0"),
        ("train.freeze=[encoder, decoder, head]", "freeze lists all parts of the network"),
        ("train.freeze=[encodr]", "did you mean encoder?"),
        ("train.encoder_learning_rate_factor=0", "must be greater than 0"),
        ("model={start_from: a, encoder_weights: imagenet}", "start_from and encoder_weights both give weights"),
        ("model.encoder_bands=[B2]", "encoder_bands needs encoder_weights"),
        ("model={encoder_weights: a.pth, encoder_bands: [B2, 3, B2]}", "encoder_bands names a band twice (B2, 3, B2)"),
        ("model={encoder_weights: a.pth, encoder_bands: [[B2]]}", "must be the name or the number of a band"),
        ("train.loss.pixel=-1", "train.loss.pixel: found -1"),
        ("train.class_weights={clear: 2}", "'clear' is not a class of the task; did you mean cleared?"),
        ("data.val.fraction=1", "must be less than 1"),
        ("data.val={images: a}", "val has no labels"),
        ("data.val=null", "data.val is null, so there is no best epoch; set train.checkpoint: last"),
        ("data.val=3", "must be a split"),
        ("data.val.by=polygon", "by: polygon needs polygons, the file that holds them"),
        ("data.val.polygons=zones.gpkg", "by: polygon needs polygons"),
        ("data.val={by: polygon, polygons: a, values: [x]}", "field needs values"),
        ("data.val={by: scene, field: use, values: [x]}", "field is only for by: polygon"),
        ("data.val={by: scene, layer: zones}", "layer is only for by: polygon"),
        ("data.val={by: polygon, polygons: a, field: use, values: [x], fold: 0/2}", "fold and values both choose"),
        ("data.val.fold=3/3", "fold 3/3 does not exist; with n folds (2 or more), the first is 0/n, the last n-1/n"),
        ("data.val.fold=0/1", "fold 0/1 does not exist"),
        ("data.val.fold=first", "data.val.fold: found"),
        ("data.val={column: use}", "data.val.column needs data.train.table, which is not given"),
        ("data.train.labels=[a, {path: b}]", "data.train.labels.1: found"),
        ("train.class_weights=[1, 2, 3]", "has 3 numbers, the task has 2 channels: background, cleared"),
        ("train.class_weights=even", "must be 'balanced' or 'effective'"),
        ("train.label_smoothing=1", "must be less than 1"),
        ("train.class_balanced_sampling=1.5", "must be less than or equal to 1"),
        ("data.bands=[0]", "data.bands.0: found 0"),
        ("data.ignore=[1]", "data.ignore lists 1, which is the value of 'cleared'"),
        ("data.ignore=[0]", "data.ignore lists 0, which is the value of 'background'"),
        ("data.train.images=3", "data.train.images: found 3; must be a path"),
        ("data.train.images=[]", "data.train.images: is empty"),
        ("data.train.table=x.csv", "give either images or table"),
        ("data.train={images: a}", "train has no labels"),
        ("data.train.labels={field: x}", "data.train: labels have no path; give one"),
        ("data.train.labels={path: a, values: {2: forest}}", "'forest' is not a class"),
        ("data.train.labels={path: a, priority: [forest]}", "'forest' is not a class"),
        ("task.classes=[]", "the task has no classes"),
        ("task.head=softmx", "did you mean softmax?"),
        ("task.classes.1.name=x", "task.classes is a list of 1, numbered from 0; found 1"),
        ("name.first=x", 'name is "small" and has no keys'),
        ("train.seed", "write it as key=value"),
        ("train.seed=[", "line 1"),
        ("train.seed=4294967296", "less than 4294967296"),  # as numpy requires
        ("train=3", "train: found 3; must be keys with values"),
    ],
)
def test_errors_are_one_line_that_names_the_key(recipe, override, expected):
    message = refused(recipe, override)
    assert expected in message
    assert override in message


def test_multilabel_rules(recipe):
    many = "task={type: multilabel, classes: [{name: a, value: 1}, {name: b, value: 2}]}"
    assert "classes of a multilabel task may overlap" in refused(
        recipe, many, "data.train.labels={path: p, priority: [a]}"
    )
    loaded = Recipe.load(recipe, [many, "data.train.labels={path: p, values: {x: background, y: null, 3: b}}"])
    (source,) = loaded.data.train.label_sources
    assert source.values == {"x": "background", "y": None, "3": "b"}


def test_without_background_no_label_may_be_background(recipe):
    full = "task={type: multiclass, background: false, classes: [{name: a, value: 1}, {name: b, value: 2}]}"
    assert "outside_polygons is background" in refused(
        recipe, full, "data.train.labels={path: p, outside_polygons: background}"
    )
    assert "'background' is not a class" in refused(
        recipe, full, "data.train.labels={path: p, values: {x: background}}"
    )
    assert Recipe.load(recipe, [full, "data.ignore=[0]"]).data.ignore == (0,)


def test_an_error_of_the_file_names_the_file(recipe):
    recipe.write_text(MINIMAL + "train: {epoch: 3}\n")
    assert refused(recipe, "name=other").startswith(f"{recipe} --set name=other: train.epoch: unknown key")


def test_duplicate_keys_aliases_and_broken_yaml_are_refused(recipe):
    recipe.write_text(MINIMAL + "train: {seed: 1,\n  seed: 2}\n")
    assert "line 6: the key 'seed' is given twice" in refused(recipe)
    recipe.write_text(MINIMAL.replace("small", "&n small") + "train: {strategy: *n}\n")
    assert "aliases" in refused(recipe)
    for broken in ("[1, 2]", "", "a: [", "!!python/object/apply:os.getcwd []", "\x00", "[" * 5000):
        recipe.write_text(broken)
        assert refused(recipe).startswith(str(recipe))
    with pytest.raises(MissingFileError, match="no such recipe"):
        Recipe.load(recipe.with_name("none.yaml"))


def test_scalars_are_those_of_yaml_1_2():
    assert parse_yaml("[no, on, 2026-01-01, 1:30, 010, 0x1, <<]", "") == [
        "no",
        "on",
        "2026-01-01",
        "1:30",
        "010",
        "0x1",
        "<<",
    ]
    assert parse_yaml("[1e-3, .5, -2, +3, 2., true, null, ~]", "") == [1e-3, 0.5, -2, 3, 2.0, True, None, None]


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_yaml_reads_what_json_writes(value):
    found = parse_yaml(json.dumps(value), "")
    assert (found, type(found)) == (value, type(value))


def test_paths_are_relative_to_the_recipe_or_the_current_directory(recipe, tmp_path, monkeypatch):
    shell = tmp_path / "shell"
    shell.mkdir()
    monkeypatch.chdir(shell)
    recipe.write_text(
        MINIMAL.replace("images: images", "images: [[a/1.tif, a/*.tif], ../b.tif]").replace(
            "labels: labels", "labels: {path: [p.gpkg], field: labels}"
        )
        + "model: {encoder_weights: w/resnet.pth}\n"
    )
    loaded = Recipe.load(recipe)
    here = str(tmp_path)
    assert loaded.data.train.images == ((f"{here}/a/1.tif", f"{here}/a/*.tif"), f"{tmp_path.parent}/b.tif")
    assert loaded.data.train.labels == LabelSource(path=(f"{here}/p.gpkg",), field="labels")
    assert loaded.model.encoder_weights == f"{here}/w/resnet.pth"
    changed = Recipe.load(
        recipe, ["data.train.images.1=c.tif", "data.train.labels.path=q.shp", "model.encoder_weights=imagenet"]
    )
    assert changed.data.train.images[1] == f"{shell}/c.tif"
    assert changed.data.train.labels.path == f"{shell}/q.shp"
    assert changed.model.encoder_weights == "imagenet"
    started = Recipe.load(recipe, ["model.encoder_weights=null", "model.start_from=run"])
    assert started.model.start_from == f"{shell}/run"
    assert changed.data.train.images[0] == loaded.data.train.images[0]
    whole = Recipe.load(recipe, ["data.val={images: v, labels: /abs/l}"])
    assert whole.data.val == DatasetSource(images=f"{shell}/v", labels="/abs/l")


def test_overrides_reach_lists_and_keys_that_are_not_there_yet(recipe):
    loaded = Recipe.load(
        recipe,
        ["task.classes.0.name=field", "train.loss={pixel: 1}", "train.steps_per_epoch=7", "train.steps_per_epoch="],
    )
    assert loaded.task.classes[0].name == "field"
    assert loaded.train.loss == {"pixel": 1.0}
    assert loaded.train.steps_per_epoch is None


def test_a_recipe_is_frozen(recipe):
    loaded = Recipe.load(recipe)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.train.epochs = 3


def test_short_labels_are_a_label_source():
    assert DatasetSource(images="a", labels=("b", "c")).label_sources == (LabelSource(path=("b", "c")),)
    assert DatasetSource(images="a", labels="b").label_sources == (LabelSource(path="b"),)
    assert DatasetSource(images="a").label_sources == ()
    several = LabelSource(path="b"), LabelSource(path="c", classes=("cleared",))
    assert DatasetSource(images="a", labels=several).label_sources == several
    assert DatasetSource(images="a", labels=several[0]).label_sources == several[:1]


def test_only_a_table_names_labels_that_have_no_path():
    without = LabelSource(values={"1": "cleared"})
    assert DatasetSource(table="a", labels=(without, LabelSource(path="b"))).label_sources[0].paths == ()
    for source, expected in (
        ({"images": "a", "labels": without}, "labels have no path; give one, or a table"),
        (
            {"table": "a", "labels": (without, without)},
            "2 label sources have no path, but the table names the files of only one",
        ),
    ):
        with pytest.raises(ValidationError, match=expected):
            DatasetSource(**source)


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("data.val={by: scene, fold: 1/3}", SpatialSplit),
        ("data.val={images: a, labels: b}", DatasetSource),
        ("data.val={column: use, val: [dev]}", TableSplit),
    ],
)
def test_validation_is_one_of_several_kinds(recipe, override, kind):
    loaded = Recipe.load(recipe, ["data.train={table: scenes.csv}", override])
    assert isinstance(loaded.data.val, kind)
    assert Recipe.from_dict(loaded.to_dict()) == loaded


@pytest.mark.parametrize(
    "part", [SpatialSplit, TableSplit, DatasetSource, LabelSource, Data, MaskKeys, IndexKeys, LayerKeys, Model, Train]
)
def test_the_pages_have_every_key_with_its_default(part):
    docs = ROOT / "docs"
    lines = [line for page in ("recipe.md", "labels.md") for line in (docs / page).read_text().splitlines()]
    for key, field in part.model_fields.items():
        default = field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        expected = "required" if field.is_required() else "a split" if (part, key) == (Data, "val") else default
        rows = [line.split(" | ")[1].strip("`") for line in lines if line.startswith(f"| `{key}` |")]
        assert expected in [yaml.safe_load(row) for row in rows], key


OLD_TRAIN = "train: {steps: 7, oversample: 0.5, keep: last}\n"
OLD = (
    MINIMAL.replace(
        "labels: labels", "labels: [{path: a, outside: ignore}, {path: b, fractions: true, whole: 100}]"
    ).replace("data: {", "data: {scaled: true, ")
    + OLD_TRAIN
)


def test_old_keys_of_a_file_work_with_a_warning(recipe):
    recipe.write_text(OLD)
    with pytest.warns(UserWarning, match="is now called") as caught:
        loaded = Recipe.load(recipe)
    assert {str(one.message) for one in caught} == {
        "data.scaled is now called data.apply_scale_offset",
        "labels.outside is now called labels.outside_polygons",
        "labels.whole is now called labels.full_value",
        "train.steps is now called train.steps_per_epoch",
        "train.oversample is now called train.class_balanced_sampling",
        "train.keep is now called train.checkpoint",
    }
    train = loaded.train
    assert (train.steps_per_epoch, train.class_balanced_sampling, train.checkpoint) == (7, 0.5, "last")
    assert loaded.data.apply_scale_offset
    first, second = loaded.data.train.label_sources
    assert (first.outside_polygons, second.full_value) == ("ignore", 100)


def test_overrides_take_old_and_new_keys(recipe):
    for key in ("train.checkpoint", "train.keep"):
        recipe.write_text(MINIMAL + "train: {checkpoint: best}\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert Recipe.load(recipe, [f"{key}=last"]).train.checkpoint == "last"
            assert Recipe.load(recipe, [f"train={{{key[6:]}: last}}"]).train.checkpoint == "last"
        assert len(caught) == (2 if key == "train.keep" else 0)


@pytest.mark.filterwarnings("ignore:.* is now called")
def test_a_key_under_both_names_is_an_error(recipe):
    recipe.write_text(MINIMAL + "train: {checkpoint: best, keep: last}\n")
    assert "train.keep is the old name of train.checkpoint; remove one of them" in refused(recipe)
    recipe.write_text(MINIMAL)
    found = refused(recipe, "train.checkpoint=last", "train.keep=last")
    assert found == "--set train.keep=last: train.keep is the old name of train.checkpoint; remove one of them"
    assert "data.train.labels.outside is the old name" in refused(
        recipe, "data.train.labels={path: a, outside: ignore, outside_polygons: ignore}"
    )


def test_a_misspelt_old_key_suggests_the_new_one(recipe):
    assert "train.keeps: unknown key; did you mean checkpoint?" in refused(recipe, "train.keeps=last")
    assert "did you mean outside_polygons?" in refused(recipe, "data.train.labels={path: a, outsde: ignore}")


def test_recipes_that_segkit_0_2_stored_load_without_a_warning(recipe):
    raw = Recipe.load(recipe).to_dict()
    names = {"steps_per_epoch": "steps", "class_balanced_sampling": "oversample", "checkpoint": "keep"}
    raw["train"] = {names.get(key, key): value for key, value in raw["train"].items()}
    raw["data"]["scaled"] = raw["data"].pop("apply_scale_offset")
    recipe.write_text(yaml.safe_dump(raw, sort_keys=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recipe.load(recipe) == Recipe.from_dict(raw)


def test_the_schema_lists_new_keys_only():
    text = json.dumps(schema())
    assert '"checkpoint"' in text
    for key in ("keep", "oversample", "scaled", "whole", "outside", "steps"):
        assert f'"{key}"' not in text


def test_a_recipe_that_is_not_utf8_says_where(recipe):
    recipe.write_bytes((MINIMAL + "license: für alle\n").encode("cp1252"))
    assert f"{recipe}: line 5 is not UTF-8 (byte 0xfc; in Windows-1252 it reads 'license: für alle')" in refused(recipe)
    recipe.write_bytes(MINIMAL.encode("utf-8-sig"))
    assert Recipe.load(recipe).name == "small"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"dates": "{}_2021"}, "the pattern '{}_2021' has no date"),
        ({"dates": "{date:%Y}", "pair": "{}"}, "dates is for images, without table and pair"),
        ({"dates": "{date:%Y}", "images": [["a", "b"]]}, "images lists them"),
        ({"dates": "{date:%Q}"}, "%Q is not a part of a date"),
        ({"dates": {"pattern": "{date:%Y}", "missing": "guess"}}, "missing: found"),
        ({"pair": "x"}, "it needs {} once"),
    ],
)
def test_patterns_of_names_that_are_refused(recipe, source, said):
    raw = Recipe.load(recipe).to_dict()
    raw["data"]["train"] |= source
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(raw)
    assert said in str(caught.value)
