"""Strict YAML, paths relative to the recipe, and overrides of single keys."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

import yaml

from segkit.errors import RecipeError
from segkit.io.csv_table import describe_wrong_encoding
from segkit.io.remote import is_remote
from segkit.recipe.messages import shorten
from segkit.recipe.renamed import Location, new_place, warn_about

# Keys that hold paths. They are relative to the recipe's folder; in --set, to the current directory.
_PATHS = re.compile(
    r"data\.(train|val)\.(images(\.mosaic)?|table|labels(\.path)?(\.mosaic)?|polygons)|data\.layers\.[^.]+(\.path)?(\.mosaic)?"
    r"|model\.(encoder_weights|start_from)"
)
_MAX_BYTES = 10**7  # takes minutes to read


class Yaml(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: 1e-3 is a number, no is a word, dates are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, and tags, which turn texts into objects."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported; repeat the value", problem_mark=mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if (tag := getattr(event, "tag", None)) not in (None, "!"):
            problem = f"tags ({tag.replace('tag:yaml.org,2002:', '!!')}) are not supported; write the value alone"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+.0123456789")),
):
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Read the YAML of a recipe; `source` is named in errors.

    Raises
    ------
    RecipeError
        It is not YAML in UTF-8 (or UTF-16), is too long, a key is given twice, or there is an alias or a tag.
    """
    if len(text) > _MAX_BYTES:
        raise RecipeError(
            f"{source}: has {len(text) / 1e6:.0f} MB, at most {_MAX_BYTES // 10**6} are read; is it a recipe? List "
            "many scenes in a table (data.train.table)"
        )
    if isinstance(text, bytes) and not text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = text
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecipeError(describe_wrong_encoding(content, source, error)) from error
    try:
        return yaml.load(text, Yaml)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(f"{source}: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: not YAML ({' '.join(str(error).split())})") from error


def resolve_paths(value: Any, folder: Path, place: Location = ()) -> Any:
    """Make the paths in a part of a recipe absolute; `place` is the place of that part."""
    if isinstance(value, dict):
        return {key: resolve_paths(each, folder, (*place, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [resolve_paths(each, folder, place) for each in value]
    where = ".".join(str(part) for part in place if not isinstance(part, int))
    if not isinstance(value, str) or not _PATHS.fullmatch(where):
        return value
    if is_remote(value):
        return value
    if where == "model.encoder_weights" and not re.search(r"[\\/.]", value):
        return value  # a name of published weights, for example imagenet
    # No file has a null byte in its name, which later is reported as any missing file; expanduser would raise an error.
    path = value if "\0" in value else os.path.expanduser(value)  # noqa: PTH111 - keeps links and globs
    return os.path.abspath(folder.resolve() / path)  # noqa: PTH100


def split_override(override: str, option: str = "--set") -> tuple[Location, Any]:
    """Return the place and the value of KEY=VALUE, which was given by an option.

    Raises
    ------
    RecipeError
        It does not have this form, or the value is not YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        example = "train.epochs=3" if option == "--set" else "radius=20"
        raise RecipeError(f"{option} {override}: write it as key=value, for example {example}")
    place = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
    if value.startswith("{}") and value != "{}":
        raise RecipeError(
            f"{option} {override}: YAML reads {{}} as a list of keys; quote the text: {key}='\"{value}\"'"
        )
    return place, parse_yaml(value, f"{option} {override}")


def set_at(raw: Any, place: Location, value: Any, source: str) -> None:
    """Set one value in a raw recipe; missing keys on the way are added, an old key is replaced with its new name.

    Raises
    ------
    RecipeError
        The recipe has no such place; `source` is named.
    """
    warn_about(place)
    place = new_place(place)
    for depth, part in enumerate(place):
        above = ".".join(map(str, place[:depth])) or "the recipe"
        if isinstance(raw, dict):
            key = next((known for known in raw if str(known) == str(part)), str(part))
            if depth < len(place) - 1 and raw.get(key) is None:
                raw[key] = {}
        elif isinstance(raw, list):
            if not isinstance(part, int) or part >= len(raw):
                raise RecipeError(f"{source}: {above} is a list of {len(raw)}, numbered from 0; found {part}")
            key = part
        else:
            raise RecipeError(f"{source}: {above} is {shorten(raw)} and has no keys")
        if depth == len(place) - 1:
            raw[key] = value
        raw = raw[key]
