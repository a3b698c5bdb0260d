"""Readers of text files, given any bytes: each gives what it read or raises a `SegkitError`; all else is a finding."""

import json
import shutil
import struct
import warnings

from segkit.errors import SegkitError
from segkit.inference.journal import Journal
from segkit.models.model_file import HEADER_KEY, read_header
from segkit.recipe.schema import Recipe

REQUEST, PLAN, DATA = {"model": "m", "scene": ["a.tif"]}, {"tile": 32}, {"valid": 3}


def check_recipe(content, folder):
    """Read a recipe; what is accepted is the same recipe when it is stored and read again."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of keys with old names
        try:
            recipe = Recipe.load(path)
        except SegkitError:
            return
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def check_model(content, folder):
    """Read a model file with this text as its header."""
    path = folder / "model.safetensors"
    table = {"__metadata__": {HEADER_KEY: content.decode("utf-8", "surrogateescape")}}
    head = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    try:
        read_header(path).to_recipe()
    except SegkitError:
        return


def check_journal(content, folder):
    """Continue a prediction whose request, and then the record of a band, is this; only the true ones are used."""
    target = folder / "map.tif"
    _continue(target, "request.json", content)
    _continue(target, "band-00000/record.json", content)


def _continue(target, name, content):
    journal = target.with_name("map.tif.bands")
    shutil.rmtree(journal, ignore_errors=True)
    with Journal.open(target, REQUEST, overwrite=False) as opened:
        opened.record_plan(PLAN)
        with opened.write_band(0) as entry:
            (entry.folder / "map.tif").write_bytes(b"pixels")
            entry.data = DATA
    (journal / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a band is damaged
        try:
            with Journal.open(target, REQUEST, overwrite=False) as opened:
                assert opened.plan in (None, PLAN)
                assert opened.load_band(0) in (None, DATA)
        except SegkitError:
            return


READERS = {"recipe": check_recipe, "model": check_model, "journal": check_journal}
