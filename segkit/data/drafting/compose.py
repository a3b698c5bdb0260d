"""Put a recipe together: its sections, with what was found and assumed as comments."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkit.data.drafting.label_draft import LabelDraft
from segkit.data.drafting.plan import Plan
from segkit.data.drafting.recipe_text import comment, write_section, write_value
from segkit.data.examination import class_counts
from segkit.io.remote import is_remote
from segkit.plots.text import format_percent

LABELS_TO_DRAW = "polygons.gpkg"
_MAX_PARENTS = 2  # a path that goes up further is written in full


def compose_recipe(
    raw: dict[str, Any], plan: Plan, draft: LabelDraft, images: str, labels: str, notes: Sequence[str], target: Path
) -> str:
    """Return the text of a recipe.

    Parameters
    ----------
    raw
        Its name, task and data.
    images, labels, notes
        What was found and assumed, for the comments.
    target
        The file; paths are relative to its folder.
    """
    statistics = plan.examination.statistics
    assert statistics is not None
    task = plan.examination.recipe.task
    trains = {one.name: one for one in class_counts(statistics.counts, task)}
    counts = plan.examination.validation_counts
    validates = {} if counts is None or plan.val is None else {one.name: one for one in class_counts(counts, task)}
    why = dict(plan.why)
    lines = _head(images, f"Labels: {labels}", notes)
    lines += [f"name: {write_value(raw['name'])}", "task:", *comment(draft.reason, "  ")]
    lines += [f"  {key}: {write_value(value)}" for key, value in draft.task.items() if key != "classes"]
    lines.append("  classes:")
    rows = [f"    - {write_value(row)}" for row in draft.task["classes"]]
    for row, line in zip(draft.task["classes"], rows, strict=True):
        one, other = trains[row["name"]], validates.get(row["name"])
        note = f"{one.pixels:,} pixels train" + (f" ({format_percent(one.share)})" if one.share is not None else "")
        note += "" if other is None else f", {other.pixels:,} validate"
        lines.append(f"{line:{max(map(len, rows))}}  # {note}")
    lines += ["data:", *_data_lines(raw["data"], target)]
    if plan.val is None:
        lines += [*comment(why["val"], "  "), "  val: null"]
    else:
        why.setdefault("val", _describe_split(plan.val))
        lines += write_section("val", _relative(plan.val, target), why, "  ")
    lines += write_section("model", plan.model, why)
    lines += write_section("train", plan.train, why)
    return "\n".join(lines) + "\n"


def _head(images: str, labels: str, notes: Sequence[str]) -> list[str]:
    lines = ["# Recipe of segkit, written by segkit init: docs/recipe.md explains every key.", "#"]
    lines += [*comment(f"Images: {images}."), *comment(f"{labels}.")]
    if notes:
        lines += ["#", "# Assumed, so look at it:"]
        for note in notes:
            first, *others = comment(note)
            lines += [f"# - {first[2:]}", *(f"#   {each[2:]}" for each in others)]
    return [*lines, ""]


def _data_lines(data: dict[str, Any], target: Path) -> list[str]:
    why = {
        "data.bands": "bands to use, counted from 1",
        "data.ignore": "label codes of unlabelled pixels",
        "data.nodata": "value of pixels without data",
    }
    lines = write_section("train", _relative(data["train"], target), {}, "  ")
    rest = {key: value for key, value in data.items() if key != "train" and value not in ((), None)}
    return lines + write_section("data", rest, why)[1:]


def _describe_split(val: dict[str, Any]) -> str:
    units = {
        "block": f"blocks of {val.get('block')} pixels",
        "scene": "whole scenes",
        "polygon": "some of the label polygons",
        "point": f"groups of points within {val.get('distance', 0):g} m of each other",
    }
    return (
        f"Validate on {units[val['by']]}, {100 * val['fraction']:.0f} % of the labels; the gap in pixels around them "
        "is not used for training"
    )


def _relative(value: Any, target: Path, key: str = "") -> Any:
    """Return keys with paths relative to the folder of the recipe, or absolute if they lie elsewhere."""
    if isinstance(value, dict):
        return {name: _relative(each, target, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_relative(each, target, key) for each in value]
    if key not in ("images", "path", "mosaic", "polygons") or not isinstance(value, str) or is_remote(value):
        return value
    absolute = os.path.abspath(value)  # noqa: PTH100 - keeps globs and links
    relative = Path(os.path.relpath(absolute, target.absolute().parent))
    return relative.as_posix() if relative.parts.count(os.pardir) <= _MAX_PARENTS else absolute


def what_to_draw(images: str, crs: str, labels: str, target: Path) -> tuple[str, str]:
    """Return what to draw if there are no labels, and what to do then."""
    draw = (
        f"There are no labels yet. Draw polygons in a GIS: the layer {labels} in {crs}, with a text field `class`. "
        "Draw 10 or more polygons of each class, each of 20 pixels or more and of one class only, spread over all "
        "scenes; also of what is easily confused with a class."
    )
    command = shlex.join(["segkit", "init", images, labels, "-o", str(target), "--overwrite"])
    then = (
        f"Then `{command}` writes the classes and all other keys that depend on labels. Those in the recipe are "
        "placeholders."
    )
    return draw, then


def compose_placeholder(
    raw: dict[str, Any], images: str, notes: Sequence[str], to_do: Sequence[str], target: Path
) -> str:
    """Return the text of a recipe whose labels are still to be drawn; parameters as of `compose_recipe`."""
    lines = _head(images, "Labels: none", notes)
    lines = [*lines[:-1], "#", *(line for text in to_do for line in comment(text)), ""]
    lines += [f"name: {write_value(raw['name'])}", "task:"]
    lines += [f"  {key}: {write_value(value)}" for key, value in raw["task"].items() if key != "classes"]
    lines += ["  classes:", *(f"    - {write_value(row)}" for row in raw["task"]["classes"])]
    lines += ["data:", *_data_lines(raw["data"], target)]
    val = {"by": "polygon", "polygons": raw["data"]["train"]["labels"]["path"], "fraction": 0.25}
    lines += write_section("val", _relative(val, target), {"val": _describe_split(val)}, "  ")
    return "\n".join(lines) + "\n"
