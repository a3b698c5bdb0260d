"""Advice can be followed: what a message names exists in every command that can show it.

A walk over the syntax trees finds which functions each command reaches: names are followed through imports, and of a
class whose name is reached, all methods whose names are used anywhere in what is reached. That is more than what runs,
never less, as long as nothing is looked up by a string.
"""

import ast
import dataclasses
import re
import sys
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import typer
from house import modules
from synthetic import segmenter, write_raster

from segkit.cli import app
from segkit.cli.root import RENAMED_OPTIONS
from segkit.cli.root import app as command_line
from segkit.errors import KEY_PATTERN, OPTION_PATTERN, RECIPE_OPTION, is_applicable, limit_suggestions, suggest
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Data, Model, Train
from segkit.task import Task

COMMAND = re.compile(r"\bsegkit (?!reads|cannot|does)([a-z]+)\b")
# These name an option because it was given, so the command has it; the last is what `suggest` itself looks for.
GIVEN = {
    ("segkit.reporting.report", "report"),
    ("segkit.io.region", "read_aoi"),
    ("segkit.recipe.schema", "Recipe.load"),
    ("segkit.recipe.yaml", "split_override"),
    ("segkit.errors", "RECIPE_OPTION"),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def commands():
    """{name of the function in cli.py: options}."""

    def leaves(command):
        for one in getattr(command, "commands", {}).values():
            yield from leaves(one)
        if not hasattr(command, "commands"):
            yield command

    found = leaves(typer.main.get_command(command_line))
    return {
        (one.callback.__module__, one.callback.__name__): {option for each in one.params for option in each.opts}
        for one in found
    }


def nodes(tree):
    """Return all nodes of a syntax tree, from the root on, as `ast.walk` yields them."""
    found = [tree]
    for node in found:  # which grows
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [one for one in value if isinstance(one, ast.AST)]
    return found


class Module:
    """What the names of a module mean: a module, a definition, or another module's name."""

    def __init__(self, name, tree):
        self.name, self.tree, self.names, self.definitions = name, tree, {}, {}
        every = nodes(tree)
        inner = {id(node) for each in every if isinstance(each, FUNCTIONS) for node in nodes(each)}
        for node in every:
            if id(node) not in inner:
                self.names |= imported(node)
        for node in tree.body:
            for one in nodes(node) if isinstance(node, (ast.If, ast.Try)) else [node]:
                if isinstance(one, (*FUNCTIONS, ast.ClassDef)):
                    self.definitions[one.name] = one
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                for one in nodes(target) if target is not None else ():
                    if isinstance(one, ast.Name):
                        self.definitions.setdefault(one.id, node)


def imported(node):
    """{name: (module, name in it)}; of a whole module the second is None."""
    if isinstance(node, ast.Import):
        return {(one.asname or one.name.split(".")[0]): (one.name, None) for one in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(one.asname or one.name): (node.module, one.name) for one in node.names}
    return {}


@cache
def house():
    parsed = {
        f"segkit.{name}".removesuffix(".__init__"): ast.parse(file.read_text()) for name, file in modules().items()
    }
    return {name: Module(name, tree) for name, tree in parsed.items()}


def meaning(module, name, own=None):
    """Follow a name through imports to ("module", None) or (module, definition), or None where it is not segkit's."""
    if own and name in own:
        module, name = own[name]
    while module in house():
        if name is None:
            return module, None
        if name in house()[module].definitions:
            return module, name
        if f"{module}.{name}" in house():
            return f"{module}.{name}", None
        if name not in house()[module].names:
            return None
        module, name = house()[module].names[name]
    return None


@cache
def uses(module, tree):
    """The definitions that a syntax tree names, and the attributes that it asks things for."""
    own, mine, definitions, attributes, every = {}, set(), set(), set(), nodes(tree)
    for node in every:
        own |= imported(node)
        if isinstance(node, ast.arg):
            mine.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            mine.add(node.id)
    mine = mine - own.keys() if isinstance(tree, FUNCTIONS) else set()
    for node in every:
        if isinstance(node, ast.Name) and node.id not in mine:
            definitions.add(meaning(module, node.id, own))
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
            within = meaning(module, node.value.id, own) if isinstance(node.value, ast.Name) else None
            if within and within[1] is None:
                definitions.add(meaning(within[0], node.attr))
    return {one for one in definitions if one and one[1] is not None}, attributes


def reached(*start):
    """{place: syntax tree} of all that a function of cli.py reaches."""
    trees, methods, used, classes, todo = {}, defaultdict(list), set(), set(), []

    def reach(module, name):
        node = house()[module].definitions[name]
        if (module, name) in classes or (module, name) in trees:
            return
        if not isinstance(node, ast.ClassDef):
            trees[module, name] = node
            todo.append((module, node))
            return
        classes.add((module, name))
        foreign = any(meaning(module, base.id) is None for base in node.bases if isinstance(base, ast.Name))
        foreign |= any(isinstance(base, ast.Attribute) for base in node.bases)
        todo.extend((module, one) for one in (*node.bases, *node.decorator_list, *node.keywords))
        for one in node.body:
            if isinstance(one, FUNCTIONS):
                # Libraries call what is decorated, and all methods of what is derived from their classes.
                always = (
                    one.name.startswith("__") or foreign or any(isinstance(d, ast.Call) for d in one.decorator_list)
                )
                place = (module, f"{name}.{one.name}", one)
                take(place) if always or one.name in used else methods[one.name].append(place)
            else:
                trees[module, f"{name}:{one.lineno}"] = one
                todo.append((module, one))

    def take(place):
        module, name, node = place
        if (module, name) not in trees:
            trees[module, name] = node
            todo.append((module, node))

    reach(*start)
    while todo:
        definitions, attributes = uses(*todo.pop())
        for one in attributes - used:
            used.add(one)
            for place in methods.pop(one, ()):
                take(place)
        for module, name in definitions:
            reach(module, name)
    return trees


@cache
def literals(tree):
    """Return (text, whether it is an argument of `suggest`) of what a program says; not of what describes it."""
    every = nodes(tree)
    hidden = {id(node.body[0].value) for node in every if described(node)}
    filtered = {
        id(one)
        for node in every
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "suggest"
        for one in nodes(node)
    }
    texts = [node for node in every if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.value, id(node) in filtered) for node in texts if id(node) not in hidden]


def described(node):
    body = getattr(node, "body", None)
    return isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def test_options_that_a_message_names_are_those_of_each_command_that_can_show_it():
    faults, seen = set(), set()
    for command, options in commands().items():
        for (module, name), tree in reached(*command).items():
            if (module, name) in GIVEN or (module.startswith("segkit.cli.") and (module, name) != command):
                continue
            for text, filtered in literals(tree):
                seen |= set(OPTION_PATTERN.findall(text))
                if not filtered:
                    faults |= {
                        (option, f"{module}.{name}", command) for option in set(OPTION_PATTERN.findall(text)) - options
                    }
    assert not sorted(faults)
    assert {"--vrt", "--overwrite", "--tile", "--class-names", "--to-crs", "--resume", "--insecure"} <= seen


def test_all_options_keys_and_commands_that_are_named_exist():
    options = {option for each in commands().values() for option in each} | {"--help"}
    options |= {option for one in typer.main.get_command(command_line).params for option in one.opts}
    options |= set(RENAMED_OPTIONS)  # which are named with the new ones
    names = {one.replace("_", " ").split()[0] for _, one in commands()}
    parts = {"data": Data, "labels": LabelSource, "model": Model, "train": Train}
    keys = {f"{part}.{name}" for part, kind in parts.items() for name in kind.model_fields}
    keys |= {f"task.{field.name}" for field in dataclasses.fields(Task)}
    files = {"model.safetensors", "labels.gpkg"}
    assert keys == app._keys()
    for name, module in house().items():
        for text, _ in literals(module.tree):
            assert set(OPTION_PATTERN.findall(text)) <= options, (name, text)
            assert set(KEY_PATTERN.findall(text)) <= keys | files | {"task.description", "task.speed"}, (name, text)
            assert set(COMMAND.findall(text)) <= names, (name, text)


def test_each_advice_leaves_something_to_do_or_belongs_to_the_command():
    assert suggest("add --vrt", "convert it") == "; add --vrt, or convert it"
    with limit_suggestions({"--vrt"}):
        assert suggest("add --vrt", "set data.resample: true") == "; add --vrt"
    with limit_suggestions({RECIPE_OPTION}):
        assert suggest("add --vrt", "set data.resample: true") == "; set data.resample: true"
        assert suggest("add --vrt") == ""
    assert is_applicable("convert it", set())


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command that fails, and return its last line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["segkit", *map(str, arguments)])
        with pytest.raises(SystemExit):
            app.main()
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def place(tmp_path):
    """A folder with a model, a scene, a map on another grid, one without a CRS, and a virtual raster."""
    segmenter(tmp_path, "multiclass").save(tmp_path / "m.safetensors")
    pixels = np.ones((3, 32, 32), np.uint16)
    write_raster(tmp_path / "scene.tif", pixels)
    write_raster(tmp_path / "moved.tif", pixels, left=500_005)
    write_raster(tmp_path / "map.tif", pixels[0].astype(np.uint8))
    write_raster(tmp_path / "labels.tif", pixels[0].astype(np.uint8), left=500_005)
    write_raster(tmp_path / "nowhere.tif", pixels[0].astype(np.uint8), crs=None)
    (tmp_path / "names.csv").write_text("value,name\n1,forest\n2,water\n")
    (tmp_path / "v.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    return tmp_path


VIRTUAL = {
    "predict": "predict {0}/m.safetensors {0}/v.vrt -o {0}/o.tif",
    "vectorize": "vectorize {0}/v.vrt {0}/o.gpkg",
    "evaluate": "evaluate {0}/v.vrt --labels {0}/labels.tif",
    "labels": "evaluate {0}/map.tif --labels {0}/v.vrt --class-names {0}/names.csv",
    "change": "change {0}/v.vrt {0}/map.tif -o {0}/o.tif",
    "design": "assess design {0}/v.vrt -n 9 -o {0}/o.gpkg",
    "report": "report {0}/map.tif --images {0}/v.vrt --class-names {0}/names.csv -o {0}/o.html",
}


@pytest.mark.parametrize("command", VIRTUAL)
def test_a_virtual_raster_is_refused_with_advice_of_the_command(place, say, command):
    line = say(*VIRTUAL[command].format(place).split())
    assert "convert it to GeoTIFF" in line
    assert ("--vrt" in line) == (command == "predict")


RESAMPLED = {
    "stack": "predict {0}/m.safetensors {0}/scene.tif {0}/moved.tif --stack -o {0}/o.tif",
    "map": "evaluate {0}/map.tif --labels {0}/labels.tif --class-names {0}/names.csv",
    "without a CRS": "evaluate {0}/map.tif --labels {0}/nowhere.tif --class-names {0}/names.csv",
}


@pytest.mark.parametrize("case", RESAMPLED)
def test_resampling_is_advised_only_where_a_recipe_is_given_and_it_works(place, say, case):
    if case == "without a CRS":
        write_raster(place / "nowhere.tif", np.ones((1, 31, 32), np.uint8), crs=None)
    line = say(*RESAMPLED[case].format(place).split())
    assert "on another grid" in line or "on different grids" in line
    assert "resample:" not in line


def test_check_advises_resampling_where_it_works(place, say, tmp_path, capsys):
    task = "{type: multiclass, classes: [{name: forest, value: 1}]}"
    for label, advised in (("labels", True), ("nowhere", False)):
        if not advised:
            write_raster(place / "nowhere.tif", np.ones((1, 31, 32), np.uint8), crs=None)
        data = f"{{train: {{images: {place}/scene.tif, labels: {place}/{label}.tif}}, val: null}}"
        (tmp_path / "r.yaml").write_text(f"name: r\ntask: {task}\ndata: {data}\ntrain: {{checkpoint: last}}\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["segkit", "check", str(tmp_path / "r.yaml")])
            with pytest.raises(SystemExit):
                app.main()
        messages = capsys.readouterr().out
        assert "on another grid than its image" in messages
        assert ("set data.resample: true" in messages) == advised


def test_a_map_that_is_not_there_is_no_model_without_scenes(place, say):
    line = say("evaluate", place / "lost.tif", "--labels", place / "labels.tif")
    assert "lost.tif: no such model file or map" in line
    assert "scenes" not in line


def test_a_key_of_a_recipe_is_explained_where_none_is_given(place, say):
    write_raster(place / "odd.tif", np.full((1, 32, 32), 77, np.uint8))
    line = say("evaluate", place / "m.safetensors", "--images", place / "scene.tif", "--labels", place / "odd.tif")
    assert (
        "keys of the recipe, which this command does not take: change the files, or change the recipe and train again; "
        "of a map, --ignore CODE does what data.ignore does)"
    ) in line
