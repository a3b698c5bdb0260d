"""What is wrong with a recipe, in one line that names the key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]


def require_known(names: Iterable[str], found: Iterable[str], where: str) -> None:
    """Check that all names found at a place of the recipe are classes of the task.

    Raises
    ------
    ValueError
        One is not; pydantic makes an error of the recipe of it.
    """
    known = list(names)
    for name in found:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is no class of the task{_nearest(name, known)}")


def _nearest(name: object, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# What pydantic says (after JSON), and what the author of a YAML file understands.
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


def readable_error(error: ErrorDetails, place: Location, schema: Mapping[str, Any]) -> str:
    """Say what pydantic found at a place of the recipe, in words of YAML; `schema` is the recipe's JSON schema."""
    where = ".".join(map(str, place))
    if error["type"] in UNKNOWN:
        return f"{where}: unknown key{_nearest(place[-1], _keys(place[:-1], schema))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "too_short":
        return f"{where}: is empty; give at least one"
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
        # Cross checks name their own places; the others are about the part they stand in.
        return problem if not place else f"{where}: {problem}"
    rule = error["msg"]
    for theirs, ours in _WORDS.items():
        rule = rule.replace(theirs, ours)
    if error["type"] == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        rule += _nearest(error["input"], choices) if isinstance(error["input"], str) else ""
        rule = rule.partition("; known")[0]
    return f"{where}: found {shorten(error['input'])}; {rule}"


def shorten(value: object) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(place: Location, schema: Mapping[str, Any]) -> list[str]:
    """Keys that may stand at a place of the recipe."""
    nodes = list(_options(schema, schema))
    for part in place:
        inside = (
            node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part) for node in nodes
        )
        nodes = [option for node in inside if node for option in _options(node, schema)]
    return list(dict.fromkeys(key for node in nodes for key in node.get("properties", {})))


def _options(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what a node of the schema may be: itself, or what it refers to."""
    if "$ref" in node:
        yield from _options(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    members = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    for member in members:
        yield from _options(member, schema)
    if not members and "$ref" not in node:
        yield node
