"""Choose the windows of scenes that are worth labelling next, and write them with pre-labels for QGIS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas
from rasterio.windows import Window

from segkit.data.pairing import pair_files
from segkit.errors import UsageError
from segkit.inference.scene_files import find_scenes
from segkit.inference.uncertainty import DISAGREEMENT, check_measures
from segkit.io.files import check_distinct
from segkit.io.geopackage import check_target
from segkit.io.paths import PathLike, list_files
from segkit.io.scene import Scene
from segkit.io.vector import layer_names
from segkit.labelling.candidates import Candidates, choose_candidates, describe_candidates
from segkit.labelling.known_ground import KnownGround, read_labelled, recipe_ground
from segkit.labelling.lattice import BAND_STATISTICS
from segkit.labelling.outlines import common_crs, outline_windows, reproject
from segkit.labelling.work_file import LAYERS, TODO, class_choices, read_work_file, write_work_file
from segkit.recipe.imagery import open_scene
from segkit.recipe.schema import Recipe

if TYPE_CHECKING:
    from segkit.labelling.measurer import Measurer
    from segkit.models.ensemble import AnyModel
    from segkit.task import Task

_RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class SuggestedWindow:
    """A window to label.

    Parameters
    ----------
    id
        From 1, the most useful first.
    scene
        Name of the scene.
    row, col, rows, cols
        The first pixel in the scene, and the size in pixels.
    uncertain
        Mean uncertainty of the pixels, 0 to 1; None without a model.
    """

    id: int
    scene: str
    row: int
    col: int
    rows: int
    cols: int
    uncertain: float | None


@dataclass(frozen=True)
class Suggestion:
    """Windows that were chosen.

    Parameters
    ----------
    path
        The GeoPackage to label in.
    windows
        The most useful first.
    candidates, labelled, invalid
        Windows that could have been chosen, that have labelled ground, and that have too few valid pixels.
    measure, features
        Measure of uncertainty (None without a model), and what says how alike windows are.
    polygons
        Number of pre-labels.
    missing
        Label files of the recipe that do not exist yet, so nothing in them counts as labelled.
    """

    path: Path
    windows: tuple[SuggestedWindow, ...]
    candidates: int
    labelled: int
    invalid: int
    measure: str | None
    features: str
    polygons: int
    missing: tuple[Path, ...]


def suggest(
    model: AnyModel | Recipe | PathLike | Sequence[AnyModel | PathLike],
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]] | None,
    output: PathLike,
    *,
    number: int = 30,
    size: str = "128px",
    recipe: Recipe | PathLike | None = None,
    labelled: Sequence[PathLike] = (),
    uncertainty: str | None = None,
    min_valid: float = 1.0,
    min_area: str | None = None,
    simplify: str | None = None,
    seed: int = 0,
    tile: int | None = None,
    overlap: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> Suggestion:
    """Choose windows worth labelling next, and write them with pre-labels as a GeoPackage with forms for QGIS.

    With a model: windows about which it is uncertain, unlike one another and unlike what is labelled. With a recipe in
    the place of the model (a cold start): windows that cover the variety of the scenes. Scenes are read in windows, and
    memory holds a few numbers for each.

    Parameters
    ----------
    model
        A model or its file, or several, see `segkit.predict`. Or a recipe, if there is no model yet: it names the
        classes and says how scenes are read.
    scenes
        As for `segkit.predict`; None: the training images of the recipe.
    output
        The GeoPackage to write: layers ``windows`` and ``polygons``.
    number
        How many windows to choose.
    size
        Side of a window: "128px" or "500m". A scene that is smaller is one window.
    recipe
        Ground that its labels cover is not suggested. Label files that do not exist yet are allowed. With a model: the
        classes to label are those of the recipe, which may have more than the model.
    labelled
        Vector files whose polygons are labelled ground; of an earlier suggestion, all its windows.
    uncertainty
        "entropy", "margin" or "disagreement". By default the entropy, or of several models their disagreement.
    min_valid
        Share of the pixels of a window that must have data.
    min_area, simplify
        Of the pre-labels, see `segkit.polygons`; "10px" and "1px" by default.
    seed
        The same seed chooses the same windows.
    tile, overlap, precision, device
        As for `segkit.predict`.

    Raises
    ------
    UsageError
        An option is not possible, no scene is given, or the output cannot be written.
    DataError
        No window can be chosen.
    SegkitError
        A scene, a label or the model cannot be read.
    """
    target = _check_target(output, overwrite=overwrite)
    if number < 1 or not 0 < min_valid <= 1:
        raise UsageError("give at least one window, and a share of valid pixels above 0 and up to 1")
    cold = _as_recipe(model)
    if cold is not None:
        _refuse_model_options(
            recipe=recipe, uncertainty=uncertainty, min_area=min_area, simplify=simplify, tile=tile, overlap=overlap,
            precision=None if precision == "auto" else precision, device=None if device == "auto" else device,
        )  # fmt: skip
    rule = cold if cold is not None or recipe is None else _as_recipe(recipe) or Recipe.load(os.fspath(recipe))  # type: ignore[arg-type]
    of_recipe, missing = ([], []) if rule is None else recipe_ground(rule)
    known: list[KnownGround] = [*(read_labelled(path) for path in labelled), *of_recipe]
    measurer = None
    if cold is None:
        measurer = _load_measurer(model, uncertainty, (tile, overlap, precision, device), show_progress=show_progress)
    task = _task(rule, measurer)
    opened = _open_scenes(scenes, measurer, rule)
    read = [model, recipe, *labelled] if isinstance(model, (str, os.PathLike)) else [*labelled]
    files = [file for scene in opened for path in scene.all_paths for file in list_files(path)]
    check_distinct([target], [one for one in (*read, *files) if isinstance(one, (str, os.PathLike))])
    found = describe_candidates(opened, size, known, measurer, min_valid=min_valid, show_progress=show_progress)
    chosen = choose_candidates(found, number, seed)
    windows = tuple(
        SuggestedWindow(rank, one.scene.name, *_place(one.lattice.window(index)), one.uncertain(index))
        for rank, (one, index) in enumerate(chosen, 1)
    )
    polygons = _write(target, task, windows, chosen, measurer, min_area or "10px", simplify or "1px")
    return Suggestion(
        target,
        windows,
        sum(int(one.free.sum()) for one in found),
        sum(int(one.labelled.sum()) for one in found),
        sum(int((~one.free & ~one.labelled).sum()) for one in found),
        None if measurer is None else measurer.measure,
        BAND_STATISTICS if measurer is None else measurer.features,
        polygons,
        tuple(missing),
    )


def _check_target(output: PathLike, *, overwrite: bool) -> Path:
    """Return the path of the output if it can be written without the loss of labels.

    Raises
    ------
    UsageError
        It is no GeoPackage, or somebody has labelled in it.
    """
    target = Path(output)
    replaced = overwrite and target.suffix.lower() == ".gpkg" and target.exists()
    if replaced and {*LAYERS} <= {*layer_names(target)}:
        started = sum(read_work_file(target).windows["status"] != TODO)
        if started:
            raise UsageError(
                f"{target}: {started} of its windows are done or skipped, and would be lost; name another file, and "
                "give this one as labelled"
            )
    return check_target(output, LAYERS, "windows are", overwrite=overwrite)


def _refuse_model_options(**given: Any) -> None:
    """Raise a UsageError about options that only a model has."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(
            f"{', '.join(names)}: only with a model, and a recipe is given in its place; leave "
            f"{'it' if len(names) == 1 else 'them'} out"
        )


def _as_recipe(given: Any) -> Recipe | None:
    """Return a recipe, or None for a model."""
    if isinstance(given, (str, os.PathLike)) and os.fspath(given).lower().endswith(_RECIPE_SUFFIXES):
        return Recipe.load(os.fspath(given))
    return given if isinstance(given, Recipe) else None


def _load_measurer(
    model: Any, uncertainty: str | None, options: tuple[int | None, int | None, str, str], *, show_progress: bool
) -> Measurer:
    """Load a model, and choose the measure of its uncertainty.

    Raises
    ------
    UsageError
        An option is not possible with it.
    """
    from segkit.inference.settings import PredictOptions
    from segkit.inference.tasks import WorkerContext
    from segkit.labelling.measurer import Measurer
    from segkit.models.ensemble import load_model, members

    network = load_model(model)
    tile, overlap, precision, device = options
    given = PredictOptions(tile=tile, overlap=overlap, precision=precision, device=device)
    given.check(network)
    several = len(members(network)) > 1
    (measure,) = check_measures(uncertainty or (DISAGREEMENT if several else "entropy"))
    if measure == DISAGREEMENT and not several:
        raise UsageError("disagreement is that of several models, and one is given; give more, or use entropy")
    return Measurer(WorkerContext(network, show_progress=show_progress), given, measure)


def _task(rule: Recipe | None, measurer: Measurer | None) -> Task:
    """Return the task of what is labelled.

    Raises
    ------
    UsageError
        The recipe has not all classes of the model, or another type.
    """
    if rule is None or measurer is None:
        found = rule.task if rule is not None else measurer.task if measurer is not None else None
        assert found is not None
        class_choices(found)  # an error about names
        return found
    choices = class_choices(rule.task)
    missing = [one.name for one in measurer.task.classes if one.name not in choices]
    if missing or (rule.task.type == "multilabel") != (measurer.task.type == "multilabel"):
        what = f"no class {missing[0]!r}" if missing else f"type {rule.task.type}, not {measurer.task.type}"
        raise UsageError(
            f"the recipe has {what} as the model; pre-labels need the classes of the model: give its recipe"
        )
    return rule.task


def _open_scenes(scenes: Any, measurer: Measurer | None, rule: Recipe | None) -> list[Scene]:
    """Open scenes as the model or the recipe reads them; by default the training images of the recipe.

    Raises
    ------
    UsageError
        There are none, or several without a georeference.
    """
    if scenes is None and rule is None:
        raise UsageError("no scene is given; name one, or give a recipe, whose training images are used")
    if scenes is None:
        assert rule is not None
        source = rule.data.train.model_copy(update={"labels": None})
        rows = [(each.images, each.row) for each in pair_files(source).pairs]
    else:
        rows = [(files, {}) for files in find_scenes(scenes, vrt=False)]
    if measurer is not None:
        opened = [measurer.open_scene(files) for files, _ in rows]
    else:
        assert rule is not None
        opened = [open_scene(files, rule.data, row=row) for files, row in rows]
    nowhere = next((one for one in opened if not one.grid.has_location), None)
    if nowhere is not None and len(opened) > 1:
        raise UsageError(
            f"{nowhere.paths[0]}: has no georeference, so its windows cannot be told from those of other scenes; give "
            "it alone"
        )
    return opened


def _place(window: Window) -> tuple[int, int, int, int]:
    return int(window.row_off), int(window.col_off), int(window.height), int(window.width)


def _write(
    target: Path,
    task: Task,
    windows: Sequence[SuggestedWindow],
    chosen: Sequence[tuple[Candidates, int]],
    measurer: Measurer | None,
    min_area: str,
    simplify: str,
) -> int:
    """Draw the chosen windows and their pre-labels, and write them; returns the number of pre-labels."""
    crs = common_crs([one.scene.grid for one, _ in chosen])
    outlines = [outline_windows(one.scene.grid, [one.lattice.window(index)], crs)[0] for one, index in chosen]
    names: list[str] = []
    shapes: list[Any] = []
    for scene in [] if measurer is None else dict.fromkeys(one.scene for one, _ in chosen):
        inside = [one.lattice.window(index) for one, index in chosen if one.scene is scene]
        for frame in measurer.draw(scene, inside, min_area=min_area, simplify=simplify):  # type: ignore[union-attr]
            names += frame["class"].tolist()
            shapes += reproject(frame.geometry.to_numpy(), scene.grid.crs, crs).tolist()
    rows = pandas.DataFrame([asdict(one) for one in windows])
    write_work_file(
        target,
        task,
        crs,
        rows.astype({"uncertain": "float64"}),
        outlines,
        pandas.DataFrame({"class": names}, dtype=object),
        shapes,
    )
    return len(shapes)
