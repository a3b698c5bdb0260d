"""Check a STAC item against the schemas of the core and of its extensions, and its geometry with shapely."""

import functools
import json
import re
from pathlib import Path

import shapely
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

_FOLDER = Path(__file__).parent / "stac_schemas"
_CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/"
_EXTENSIONS = "https://stac-extensions.github.io/"
_ABSOLUTE = re.compile(r"""(^|["' ])(/|[A-Za-z]:[\\/]|file:)""")


@functools.cache
def _registry():
    found = {}
    for path in _FOLDER.glob("*.json"):
        name, version, *part = re.fullmatch(r"(\w+)-(v[\d.]+?)(?:-([\w-]+))?", path.stem).groups()
        uri = f"{_CORE}{part[0]}.json" if name == "core" else f"{_EXTENSIONS}{name}/{version}/schema.json"
        found[uri] = json.loads(path.read_text()) | {"$id": uri}
    # mlm names version 1.1.0, whose classes have no more rules than those of 2.0.0.
    found[f"{_EXTENSIONS}classification/v1.1.0/schema.json"] = found[f"{_EXTENSIONS}classification/v2.0.0/schema.json"]
    # Of another licence; `check_item` looks at geometries with shapely.
    found |= {f"https://geojson.org/schema/{name}.json": {} for name in ("Feature", "Geometry")}
    resources = [(uri, Resource.from_contents(schema, default_specification=DRAFT7)) for uri, schema in found.items()]
    return found, Registry().with_resources(resources)


def check_item(item):
    """Raise a jsonschema.ValidationError, or an AssertionError, if an item is not valid."""
    schemas, registry = _registry()
    for uri in (f"{_CORE}item.json", *item["stac_extensions"]):
        Draft7Validator(schemas[uri], registry=registry).validate(item)
    assert item["type"] == "Feature"
    if item["geometry"] is not None:
        geometry = shapely.geometry.shape(item["geometry"])
        assert geometry.is_valid
        assert not geometry.is_empty
        west, south, east, north = geometry.bounds
        assert west >= -180
        assert east <= 180
        assert (item["bbox"][1], item["bbox"][3]) == (south, north)
    for one in (*item["assets"].values(), *item["links"]):
        assert not _ABSOLUTE.search(one["href"]), one["href"]


def read_item(path):
    """Read a STAC item and check it."""
    item = json.loads(path.read_text())
    check_item(item)
    assert str(path.parent) not in path.read_text(), "a path of this machine"
    return item
