"""`segkit.reclassify`: classes of a map or a model merged, renamed and recoloured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segkit.errors import TaskError, UsageError
from segkit.io.class_table import MapClass
from segkit.io.files import check_distinct, check_output
from segkit.io.paths import PathLike
from segkit.io.remote import as_path
from segkit.maps.class_changes import ClassChanges, NewClass
from segkit.maps.reclassification import Reclassified, reclassify_map
from segkit.maps.rules import Rule
from segkit.task import LandCoverClass, Task

MODEL_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ReclassifiedModel:
    """A reclassified model.

    Parameters
    ----------
    path
        The model file.
    classes
        Its classes, with background.
    has_scores
        Whether it has the scores of the old model; not if classes were merged, since the decisions differ.
    """

    path: Path
    classes: tuple[MapClass, ...]
    has_scores: bool


def reclassify(
    path: PathLike,
    output: PathLike,
    *,
    merge: Mapping[str, Sequence[str]] | None = None,
    rename: Mapping[str, str] | None = None,
    colors: Mapping[str, str] | None = None,
    values: Mapping[str, int] | None = None,
    rules: Sequence[Rule | str] = (),
    class_names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Reclassified | ReclassifiedModel:
    """Merge, rename and recolour the classes of a map or a model.

    Rules come first, then classes are merged, then renamed. Classes are named by their name or value.

    Parameters
    ----------
    path
        A map, or a model file (.safetensors).
    output
        The new map (.tif) or model file.
    merge
        {new class: classes that become it}. A class that has the name already is part of it, and keeps its value and
        colour; otherwise they are those of the first class in the list. A pixel of overlapping classes (multilabel map)
        has the new class where it has one of its classes. A model sums the probabilities, and decides by the sums,
        so its map may differ from a merged map. That needs classes that exclude each other, and softmax: the
        probability of either of two classes does not follow from theirs if they overlap, and those of a one-vs-rest
        sigmoid do not add up.
    rename
        {class: new name}.
    colors, values
        {class of the result: "#rrggbb"}, and {class: code}. A rule may lead to a class that only `values` has.
    rules
        For maps: changes of a class inside or outside of polygons, or of classes of another map on the same grid, as
        `Rule` or as text, "clearing to forest outside before.tif:forest". Pixels at which the other map has no data do
        not change. "nodata" is the class of no data.
    class_names
        For maps: a file of class names, as for `segkit.vectorize`.

    Raises
    ------
    MissingFileError, DataError, RasterError
        A file is missing, unreadable, or no map or model.
    UsageError, OutputExistsError
        Nothing would change, a class does not exist, classes would have the same name or value, the classes of the
        model cannot be merged, or the output cannot be written.
    GridError
        The map of a rule lies on another grid.
    """
    changes = ClassChanges(merge or {}, rename or {}, colors or {}, values or {})
    parsed = [Rule.from_text(rule) if isinstance(rule, str) else rule for rule in rules]
    if changes == ClassChanges() and not parsed:
        raise UsageError("no change is given; name classes to merge, rename, recolour, or a rule")
    source = as_path(path)
    if source.suffix.lower() == MODEL_SUFFIX:
        if parsed or class_names is not None:
            what = "rules" if parsed else "a file of class names"
            raise UsageError(f"{source}: is a model, which takes no {what}; reclassify its map")
        return _reclassify_model(source, output, changes, overwrite=overwrite)
    if Path(output).suffix.lower() == MODEL_SUFFIX:
        raise UsageError(f"{output}: {source} is no model file ({MODEL_SUFFIX}), so the result is a map; name a .tif")
    return reclassify_map(
        source,
        output,
        changes,
        rules=parsed,
        class_names=class_names,
        overwrite=overwrite,
        show_progress=show_progress,
    )


def _reclassify_model(source: Path, output: PathLike, changes: ClassChanges, *, overwrite: bool) -> ReclassifiedModel:
    from segkit.models.output_classes import OutputClasses
    from segkit.models.segmenter import load

    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() != MODEL_SUFFIX:
        raise UsageError(f"{target}: {source} is a model, so the result is one, too; name it .safetensors")
    check_distinct([target], [source])
    model = load(source)
    old = model.task
    if changes.merge and not _can_merge(old):
        why = "overlap" if old.type == "multilabel" else "have a one-vs-rest sigmoid, whose probabilities do not add up"
        raise UsageError(f"{source}: its classes {why}, so they cannot be merged; merge those of its map")
    found = changes.apply(_classes_of(old), str(source))
    task, channels = _new_task(old, found, str(source))
    before = model.output_classes
    if before is not None:
        channels = tuple(tuple(part for at in parts for part in before.channels[at]) for parts in channels)
    model.set_output_classes(OutputClasses(task, channels))
    model.metrics = {} if changes.is_merging else _rename_scores(model.metrics, _names(old, found))
    model.save(target)
    return ReclassifiedModel(target, tuple(new.one for new in found), has_scores=bool(model.metrics))


def _can_merge(task: Task) -> bool:
    return task.type != "multilabel" and task.is_softmax


def _classes_of(task: Task) -> tuple[MapClass, ...]:
    return tuple(MapClass(row["name"], row["value"], bool(row.get("background")), row["color"]) for row in task.legend)


def _new_task(old: Task, found: Sequence[NewClass], owner: str) -> tuple[Task, tuple[tuple[int, ...], ...]]:
    """Return the task with the new classes, and for each of its channels the old ones."""
    background = [new for new in found if new.one.background]
    old_rows = _classes_of(old)
    for new in background:
        before = next(one for one in old_rows if one.background)
        if (new.one.name, new.one.color) != (before.name, before.color):
            raise UsageError(f"{owner}: the background of a model keeps its name and colour; change those of its map")
    thresholds = {one.name: one.threshold for one in old.classes}
    classes = tuple(
        LandCoverClass(new.one.name, new.one.value, new.one.color, thresholds.get(old_rows[new.members[0]].name))
        for new in found
        if not new.one.background
    )
    try:
        task = replace(
            old,
            classes=classes,
            background=None if old.type == "multilabel" else bool(background),
            background_value=background[0].one.value if background else old.background_value,
        )
    except TaskError as error:
        raise UsageError(f"{owner}: after these changes {error}") from error
    # Without a channel of background, channels are classes; background is the first row.
    shift = len(old.categories) - old.channels if old.type != "multilabel" else 0
    rows = found if task.channels == len(found) else [new for new in found if not new.one.background]
    return task, tuple(tuple(member - shift for member in new.members) for new in rows)


def _names(old: Task, found: Sequence[NewClass]) -> dict[str, str]:
    rows = _classes_of(old)
    return {rows[new.members[0]].name: new.one.name for new in found}


def _rename_scores(metrics: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return scores with the new names of their classes."""
    renamed = dict(metrics)
    if "per_class" in metrics:
        renamed["per_class"] = {names.get(name, name): scores for name, scores in metrics["per_class"].items()}
    if "confusion" in metrics:
        labels = [names.get(name, name) for name in metrics["confusion"]["labels"]]
        renamed["confusion"] = metrics["confusion"] | {"labels": labels}
    return renamed
