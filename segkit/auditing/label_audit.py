"""Audit the labels of a recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segkit.auditing.contact_sheet import draw_findings
from segkit.auditing.findings import (
    ConfidentCounts,
    SceneDoubts,
    Swap,
    collect_segments,
    count_confident,
    find_doubts,
)
from segkit.auditing.folds import LEARNERS, Folds, open_folds
from segkit.auditing.layer import check_crs, write_layer
from segkit.auditing.outlines import Outline, trace_doubts
from segkit.auditing.registration import LabelShift, ShiftEstimator
from segkit.auditing.results import (
    FILES,
    Audit,
    Finding,
    SceneAudit,
    category_name,
    describe_shift,
    estimate_errors,
)
from segkit.auditing.scenes import AuditedScene, open_scenes
from segkit.data.cache import Cache
from segkit.data.pairing import recipe_files
from segkit.errors import GridError, UsageError
from segkit.io.cover import PixelRegion
from segkit.io.files import (
    as_output_error,
    atomic_write,
    check_distinct,
    check_folder,
    check_output,
    temporary_folder,
)
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.polygons import apply_affine
from segkit.io.quantities import Quantity, parse_area
from segkit.plots.images import BandRendering
from segkit.recipe.schema import Recipe
from segkit.runtime.json_values import to_json
from segkit.runtime.progress import progress
from segkit.task import Task

_TRUST_IN_UNCONFIDENT = 0.25  # of their expected wrong area; from 0.1 to 0.5 the list hardly differs


def audit(
    recipe: Recipe | PathLike,
    output: PathLike,
    *,
    folds: int = 5,
    learner: str = "forest",
    run: PathLike | None = None,
    min_area: str = "9px",
    max_shift: int = 4,
    pictures: int = 12,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    show_progress: bool = False,
) -> Audit:
    """Find the labels of a recipe that are probably wrong.

    Each label is predicted by a model that did not see it, nor labels within the gap around it. Labels and predictions
    are compared by segments of labels, by confident learning (see `segkit.auditing.confident_learning`).

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        Folder of the results: audit.gpkg, audit.png and audit.json; its parent must exist.
    folds
        Number of folds, at least 2.
    learner
        "forest" or "lda" (quick learners of pixels and their texture), or "network": that of the recipe.
    run
        Folder of a finished cross-validation of the recipe, whose models are used.
    min_area
        Smallest segment or region that is listed: "0.1ha" on the ground, "9px" in pixels.
    max_shift
        Largest offset of the labels that is looked for, in pixels.
    pictures
        Number of suspicious labels in the picture.
    overrides
        For a recipe file: ``"data.val.by=scene"`` and so on.
    overwrite
        Replace existing results.
    show_progress
        Show progress on stderr.

    Raises
    ------
    UsageError, DataError
        The recipe, its data or the folder cannot be used, or a fold cannot be trained.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    smallest = parse_area(min_area, "minimum area")
    _check_numbers(folds, learner, max_shift, pictures)
    folder = check_folder(output, "audit")
    layer, picture, summary = (folder / name for name in FILES)
    if folder.exists():
        for file in (layer, picture, summary):
            check_output(file, overwrite=overwrite)
    check_distinct([layer, picture, summary], [None if isinstance(recipe, Recipe) else recipe, *recipe_files(base)])
    with as_output_error(folder), ExitStack() as stack:
        folder.mkdir(exist_ok=True)
        cache = stack.enter_context(Cache.open(base.data.cache, show_progress=show_progress))
        temporary = stack.enter_context(temporary_folder(folder, "audit"))
        planned = open_folds(
            base, folder / "folds", folds=folds, learner=learner, run=None if run is None else Path(run), cache=cache,
            overwrite=overwrite, show_progress=show_progress,
        )  # fmt: skip
        samples = [*planned.samples, *planned.others]
        check_crs([sample.scene.grid for sample in samples])
        min_pixels = [_min_pixels(smallest, sample.scene.grid) for sample in samples]
        scenes = open_scenes(samples, base.task, temporary, stack)
        rendering = _predict(planned, scenes, show_progress=show_progress)
        doubts, shifts, counts = _inspect(scenes, base.task, min_pixels, max_shift, show_progress=show_progress)
        outlines, parts = [], []
        for scene, found in zip(scenes, doubts, strict=True):
            traced, part = trace_doubts(scene, found, temporary)
            outlines.append(traced)
            parts.append(part)
        findings = _rank([*_list_findings(scenes, doubts, outlines, shifts, base.task)])
        errors, unit, units = estimate_errors(base.task, parts)
        result = Audit(
            tuple(findings), tuple(_describe_scenes(scenes, doubts, shifts, parts, base.task)), errors, unit, units,
            _name_thresholds(base.task, counts), counts.joint, learner if run is None else f"models of {run}",
            planned.describe(), layer, picture, summary,
        )  # fmt: skip
        write_layer(layer, findings, [scene.grid for scene in scenes])
        draw_findings(picture, findings[:pictures], scenes, base.task, rendering)
        with atomic_write(summary) as part_file:
            part_file.write_text(json.dumps(to_json(result.summary()), indent=2), encoding="utf-8")
    return result


def _check_numbers(folds: int, learner: str, max_shift: int, pictures: int) -> None:
    if learner not in LEARNERS:
        raise UsageError(f"learner {learner!r} does not exist; use {', '.join(LEARNERS)}")
    for name, value, lowest in (("folds", folds, 2), ("max_shift", max_shift, 2), ("pictures", pictures, 0)):
        if value < lowest:
            raise UsageError(f"{name} is {value}; it must be {lowest} or more")


def _predict(folds: Folds, scenes: Sequence[AuditedScene], *, show_progress: bool) -> BandRendering:
    """Predict all scenes out of fold; returns how their images are drawn."""
    rendering = None
    total = sum(scene.grid.height * scene.grid.width for scene in scenes) / 1e6
    with progress("predict out of fold", total, "Mpx", show=show_progress) as advance:
        for prediction in folds.predictions(show_progress=show_progress):
            for scene in scenes:
                scene.store(prediction, advance)
            statistics = prediction.examination.statistics
            assert statistics is not None
            if rendering is None:
                names = scenes[0].sample.scene.band_names
                rendering = BandRendering.from_statistics(names, statistics.mean, statistics.std)
    assert rendering is not None
    return rendering


def _inspect(
    scenes: Sequence[AuditedScene], task: Task, min_pixels: Sequence[float], max_shift: int, *, show_progress: bool
) -> tuple[list[SceneDoubts], list[LabelShift | None], ConfidentCounts]:
    """Find doubtful labels and offsets."""
    with progress("compare", 3 * len(scenes), "scenes", show=show_progress) as advance:
        decided = []
        for scene in scenes:
            decided.append(collect_segments(scene))
            advance(1)
        counts = count_confident(scenes, task)
        doubts = []
        for scene, matrix, smallest in zip(scenes, decided, min_pixels, strict=True):
            doubts.append(find_doubts(scene, matrix, counts, smallest))
            advance(1)
        shifts: list[LabelShift | None] = []
        for scene, found in zip(scenes, doubts, strict=True):
            # Under swapped classes the likelihood says how labels lie worst.
            shifts.append(None if found.swaps else _estimate_shift(scene, max_shift))
            advance(1)
    return doubts, shifts, counts


def _estimate_shift(scene: AuditedScene, reach: int) -> LabelShift | None:
    estimator = ShiftEstimator(scene.grid.shape, reach)
    for strip in scene.strips(around=reach):
        for labels, probabilities in zip(strip.labels, strip.probabilities, strict=True):
            estimator.add(labels, probabilities, strip.top, strip.rows)
    return estimator.estimate()


def _min_pixels(smallest: Quantity, grid: Grid) -> float:
    """Return the minimum size in pixels; an area on the ground by the pixels in the middle of the scene."""
    if smallest.pixels:
        return smallest.number
    return smallest.number / math.prod(grid.pixel_metres())


def _list_findings(
    scenes: Sequence[AuditedScene],
    doubts: Sequence[SceneDoubts],
    outlines: Sequence[Sequence[Outline]],
    shifts: Sequence[LabelShift | None],
    task: Task,
) -> Iterator[Finding]:
    """Yield all findings, unranked."""
    for number, (scene, found, traced, shift) in enumerate(zip(scenes, doubts, outlines, shifts, strict=True)):
        for swap in found.swaps:
            yield _swap_finding(number, scene, swap, task)
        if shift is not None and shift.significant:
            yield _scene_finding(
                number, scene, "shifted", "", "", min(1.0, shift.length), scene.grid.height * scene.grid.width,
                describe_shift(shift),
            )  # fmt: skip
        for outline in traced:
            yield _outline_finding(number, scene, found, outline, task)


def _swap_finding(number: int, scene: AuditedScene, swap: Swap, task: Task) -> Finding:
    one, other = (category_name(task, swap.target, category) for category in (swap.one, swap.other))
    return _scene_finding(number, scene, "swapped", one, other, 1.0, swap.pixels, f"{one} and {other} are swapped")


def _scene_finding(
    number: int, scene: AuditedScene, kind: str, label: str, proposed: str, score: float, pixels: int, note: str
) -> Finding:
    """Return a finding about a whole scene, whose polygon is the outline of the scene."""
    (polygon,) = apply_affine(PixelRegion((scene.grid.full_window,)).shapes, scene.grid.transform)
    area = pixels * _pixel_hectares(scene.grid)
    return Finding(0, kind, scene.name, label, proposed, score, True, pixels, area, note, polygon, number)


def _pixel_hectares(grid: Grid) -> float:
    try:
        return math.prod(grid.pixel_metres()) / 10_000
    except GridError:
        return math.nan


def _outline_finding(number: int, scene: AuditedScene, found: SceneDoubts, outline: Outline, task: Task) -> Finding:
    doubts = (found.segments if outline.whole else found.regions)[outline.target]
    at = outline.index
    label, proposed = (category_name(task, outline.target, int(each[at])) for each in (doubts.label, doubts.proposed))
    in_background = task.allows_no_class and doubts.label[at] == 0
    kind = "missing" if in_background else "class" if outline.whole else "part"
    return Finding(
        0, kind, scene.name, label, proposed, float(np.clip(doubts.margin[at], 0, 1)), bool(doubts.confident[at]),
        int(doubts.segments.pixels[at]), outline.hectares, "", outline.polygon, number,
    )  # fmt: skip


def _rank(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings about whole scenes, then all others by their expected wrong area, largest first.

    The margin of a region is positive because its pixels were chosen so. That of many regions is an error of the model,
    so those that do not reach the threshold of the proposed class count less.
    """

    def weight(one: Finding) -> tuple[bool, float]:
        area = one.area_ha if math.isfinite(one.area_ha) else one.pixels
        trust = 1.0 if one.confident else _TRUST_IN_UNCONFIDENT
        return one.kind in ("swapped", "shifted"), one.score * area * trust

    ordered = sorted(findings, key=weight, reverse=True)
    return [replace(one, rank=rank) for rank, one in enumerate(ordered, 1)]


def _describe_scenes(
    scenes: Sequence[AuditedScene],
    doubts: Sequence[SceneDoubts],
    shifts: Sequence[LabelShift | None],
    parts: Sequence[NDArray[np.int64]],
    task: Task,
) -> Iterator[SceneAudit]:
    for scene, found, shift, part in zip(scenes, doubts, shifts, parts, strict=True):
        swapped = tuple(
            (category_name(task, swap.target, swap.one), category_name(task, swap.target, swap.other))
            for swap in found.swaps
        )
        yield SceneAudit(scene.name, int(part.sum()), scene.unseen, shift, swapped)


def _name_thresholds(task: Task, counts: ConfidentCounts) -> dict[str, float | None]:
    return {
        category_name(task, target, category): float(value) if math.isfinite(value) else None
        for target, row in enumerate(counts.thresholds)
        for category, value in enumerate(row)
    }
