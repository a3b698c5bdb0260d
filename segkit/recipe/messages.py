"""Errors of a recipe: one line that names the key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from segkit.recipe.renamed import Location, old_keys


def require_class_names(names: Iterable[str], found: Iterable[str], where: str) -> None:
    """Check that all names found at a place of the recipe are classes of the task.

    Raises
    ------
    ValueError
        One is not; pydantic turns it into an error of the recipe.
    """
    known = list(names)
    for name in found:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is not a class of the task{suggest_name(name, known)}")


def suggest_name(name: object, known: Iterable[str], old_names: Mapping[str, str] | None = None) -> str:
    """Suggest the closest known name, or list all of them; old names suggest their new ones."""
    names, new_names = list(known), old_names or {}
    close = difflib.get_close_matches(str(name), [*names, *new_names], n=1, cutoff=0.6)
    return f"; did you mean {new_names.get(close[0], close[0])}?" if close else f"; known: {', '.join(names)}"


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# Words of pydantic's messages (about JSON), and words for the author of a YAML file.
_WORDS = {
    "Input should be": "must be",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "keys with values",
    "a valid dictionary": "keys with values",
}


def describe_errors(
    errors: Sequence[ErrorDetails], source: str, origins: Mapping[Location, str], schema: Mapping[str, Any]
) -> str:
    """Return the first of pydantic's errors as one line, and how many others there are.

    Parameters
    ----------
    source
        Where the recipe comes from; in front of the line.
    origins
        {place: where its value comes from}, in place of `source`.
    schema
        The recipe's JSON schema.
    """
    # A list of wrong items is also reported as too short, and a misspelt key also as a missing one, so unknown keys
    # come first.
    places = [each["loc"] for each in errors]
    found = [each for each in errors if each["type"] != "too_short" or not _has_error_inside(each["loc"], places)]
    first, *others = sorted(found, key=lambda each: each["type"] not in UNKNOWN)
    place = _without_tags(first)
    origin = next((text for at, text in origins.items() if place[: len(at)] == at), source)
    more = f" (and {len(others)} more)" if others else ""
    text = f"{origin}: {readable_error(first, place, schema)}{more}"
    return " ".join(text.splitlines())  # a key may hold a line break


def _without_tags(error: ErrorDetails) -> Location:
    """Return the place of an error without the tags of union members; the end of an unknown key's place is the key."""
    key = len(error["loc"]) - 1 if error["type"] in UNKNOWN else None
    return tuple(part for at, part in enumerate(error["loc"]) if at == key or not str(part).startswith("<"))


def _has_error_inside(place: Location, others: Iterable[Location]) -> bool:
    return any(len(other) > len(place) and other[: len(place)] == place for other in others)


def readable_error(error: ErrorDetails, place: Location, schema: Mapping[str, Any]) -> str:
    """Translate an error of pydantic at a place of the recipe; `schema` is the recipe's JSON schema."""
    where = ".".join(map(str, place))
    if error["type"] in UNKNOWN:
        return f"{where}: unknown key{suggest_name(place[-1], _keys(place[:-1], schema), old_keys(place[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "too_short" and not error["input"]:
        return f"{where}: is empty; give at least one"
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
        # Checks across sections name their keys themselves; the others are about the section they are in.
        return problem if not place else f"{where}: {problem}"
    rule = error["msg"]
    for theirs, ours in _WORDS.items():
        rule = rule.replace(theirs, ours)
    if error["type"] == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        rule += suggest_name(error["input"], choices) if isinstance(error["input"], str) else ""
        rule = rule.partition("; known")[0]
    return f"{where}: found {shorten(error['input'])}; {rule}"


def shorten(value: object) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(place: Location, schema: Mapping[str, Any]) -> list[str]:
    """Return the keys that are allowed at a place of the recipe."""
    nodes = list(_alternatives(schema, schema))
    for part in place:
        children = (
            node.get("items")
            if isinstance(part, int)
            else node.get("properties", {}).get(part) or node.get("additionalProperties")
            for node in nodes
        )
        nodes = [one for node in children if isinstance(node, dict) for one in _alternatives(node, schema)]
    return list(dict.fromkeys(key for node in nodes for key in node.get("properties", {})))


def _alternatives(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives of a node of the schema, with references resolved."""
    if "$ref" in node:
        yield from _alternatives(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    members = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    for member in members:
        yield from _alternatives(member, schema)
    if not members and "$ref" not in node:
        yield node
