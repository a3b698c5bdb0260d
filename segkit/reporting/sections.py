"""The sections of a report: a training run, a map, scores and estimated areas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from segkit.data.area import LabelledArea, full_areas, iter_windows
from segkit.data.areas import open_areas, open_labelled_samples
from segkit.data.leakage import describe_training_labels, label_files, recipes_of_map
from segkit.data.pairing import paths_as_text
from segkit.errors import DataError, GridError, SegkitError
from segkit.evaluation.decisions import MapReader, ModelPredictor, map_task
from segkit.evaluation.evaluate import evaluate_areas, refuse_ambiguous_labels
from segkit.evaluation.scene_scores import correlate_with_distance, find_worst_scenes, measure_distances
from segkit.evaluation.worst_windows import RankedWindow, WindowRanking, draw_windows
from segkit.inference.settings import PredictOptions
from segkit.io.files import atomic_write
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.quantities import Quantity
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import as_path
from segkit.io.scene import Scene
from segkit.models.run_folder import LOG, METRICS, MODEL, baseline_scores, read_log
from segkit.models.segmenter import Segmenter, load
from segkit.plots import area_bars, charts, distance_chart, training_curves
from segkit.plots.images import colorize, display_name, plot_panels
from segkit.plots.text import format_estimate, format_score
from segkit.recipe.features import full_name
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource
from segkit.reporting.decision_maps import DecisionMapWriter
from segkit.reporting.html import Chart, Section
from segkit.reporting.label_loop import (
    OWN_SCORES,
    audit_section,
    read_rounds,
    rounds_section,
    score_rounds,
    windows_section,
)
from segkit.reporting.map_views import (
    Overview,
    PixelStates,
    ReportMap,
    read_overview,
    scene_layers,
    select_display_bands,
)
from segkit.reporting.viewer import SceneLayers
from segkit.task import IGNORE, Task

_MAX_SCENES = 12  # in the map
_MAX_PIXELS = 2_500_000  # of a map, and of all scenes of a run together
_N_TILES, _MAX_TILE_PX = 4, 256  # number of worst and of best tiles, and their maximum size
_LABEL_WINDOW_PX = 1024  # side of the windows in which labels are counted
_N_WORST_SCENES = 5  # in a table
_VALIDATION_NOTE = "Only validation areas are predicted; they were not used for training."
_BIAS_NOTE = "Area by pixel count, a biased estimate: omission and commission errors do not cancel out."


class ReportBuilder:
    """Collects the sections and the map of a report.

    Parameters
    ----------
    folder
        For temporary files.
    boundary, size
        Boundary width and minimum object size.
    options
        Options to predict with a run's model.
    """

    def __init__(
        self, folder: Path, boundary: Quantity, size: Quantity, options: PredictOptions, *, show_progress: bool
    ) -> None:
        self.sections: list[Section] = []
        self.scenes: list[SceneLayers] = []
        self.states = PixelStates()
        self._folder, self._options, self._show = folder, options, show_progress
        self._shapes = boundary, size
        self._titles: list[str] = []
        self._kinds: list[str] = []
        self._maps: list[tuple[ReportMap, Overview]] = []
        self._trained: Recipe | None = None  # of the run

    @property
    def title(self) -> str:
        """Name of the first input."""
        return self._titles[0]

    @property
    def contents(self) -> str:
        """The kinds of inputs, for example "Training run, map and scores"."""
        *first, last = dict.fromkeys(self._kinds)
        text = f"{', '.join(first)} and {last}" if first else last
        return text[0].upper() + text[1:]

    def add_run(self, folder: Path) -> None:
        """Add scores and maps of a run's validation areas, and a section on the training."""
        model = load(folder / MODEL)
        recipe, task = model.recipe, model.task
        self._start("training run", recipe.name)
        self._trained = recipe
        try:
            training, validation = open_areas(recipe)
        except SegkitError as error:
            raise DataError(
                f"{folder}: its training data cannot be read ({error}); "
                f"for a report of its scores only, give {folder / METRICS}"
            ) from error
        if validation:
            ranking = WindowRanking(_MAX_TILE_PX)
            with DecisionMapWriter(self._folder, model) as writer:

                def on_block(area: LabelledArea, part: Any) -> None:
                    writer.add(area, part)
                    ranking.add(area, part)

                predictor = ModelPredictor(model, self._options)
                evaluation = evaluate_areas(
                    predictor,
                    validation,
                    *self._shapes,
                    distances=_validation_distances(model, training, validation),
                    on_block=on_block,
                    show_progress=self._show,
                )
            self._add_scores_section("Validation", evaluation, f"{recipe.name} on its validation areas.")
            self._add_tiles_section(ranking, writer.maps, task)
            selected = _select_maps(writer.maps, validation, evaluation["scenes"])
            for report_map in selected:
                overview = read_overview(report_map, _MAX_PIXELS // len(selected), show_progress=self._show)
                self._add_scene(report_map, overview, _VALIDATION_NOTE)
        self.sections.append(_training_section(folder, model, training, validation))

    def add_rounds(
        self,
        folders: Sequence[Path],
        images: PathLike | Sequence[PathLike] | None,
        labels: PathLike | LabelSource | None,
    ) -> None:
        """Add the scores of runs that are rounds of the label loop: on labels, or those of their validation areas."""
        self._kinds.append("rounds of labelling")
        if images is None or labels is None:
            rounds, intro = read_rounds(folders), OWN_SCORES
        else:
            rounds = score_rounds(folders, images, labels, self._options, show_progress=self._show)
            intro = f"Each model scored on {', '.join(map(str, paths_as_text(labels)))}."
        self.sections.append(rounds_section(rounds, intro))

    def add_windows(self, path: Path, scenes: Sequence[Scene] | None) -> None:
        """Add windows to label."""
        self._start("windows to label", path.stem)
        self.sections.append(windows_section(path, scenes or (), f"windows-{len(self.sections)}"))

    def add_audit(self, folder: Path) -> None:
        """Add the results of an audit."""
        self._start("suspicious labels", folder.name)
        self.sections.append(audit_section(folder, f"audit-{len(self.sections)}"))

    def add_map(
        self,
        path: Path,
        images: PathLike | Sequence[PathLike] | None,
        labels: PathLike | LabelSource | None,
        probabilities: PathLike | None,
        class_names: PathLike | None,
        ignore: Sequence[int],
    ) -> None:
        """Add a map and its areas, and its scores if there are labels."""
        self._start("map", path.stem)
        task = map_task(path, class_names=class_names)
        with open_raster(path) as dataset:
            grid, tags = read_grid(dataset), dataset.tags()
        scene = None if images is None else Scene.from_files(images, vrt=None)
        probability_file = None if probabilities is None else as_path(probabilities)
        for file, other in _grids_of_files(scene, probability_file):
            if difference := grid.describe_difference(other):
                raise GridError(
                    f"{path} and {file} lie on different grids ({difference}); give files on the grid of the map"
                )
        report_map = ReportMap(path.stem, path, task, grid.full_window, probabilities=probability_file)
        if scene is not None:
            report_map = replace(report_map, scene=select_display_bands(scene)[0])
        area = None if labels is None else _labelled_area(path, labels, task, ignore)
        overview = read_overview(replace(report_map, area=area), _MAX_PIXELS, show_progress=self._show)
        report_map = replace(report_map, area=area, rendering=overview.rendering)
        self._add_scene(report_map, overview)
        self.scenes.insert(0, self.scenes.pop())  # before the validation areas
        self._add_areas_section(path, task, overview.counts, tags)
        if area is not None:
            ranking = WindowRanking(_MAX_TILE_PX)
            evaluation = evaluate_areas(
                MapReader(task), [area], *self._shapes, on_block=ranking.add, show_progress=self._show
            )
            files = label_files([area.sample])
            recipes = [self._trained] if self._trained is not None else recipes_of_map(tags)
            trained = next(filter(None, (describe_training_labels(one, files) for one in recipes)), None)
            title = f"Scores of {path.stem}" + (" (training labels)" if trained else "")
            note = "" if trained is None else f" {trained[0].upper()}{trained[1:]}."
            self._add_scores_section(title, evaluation, f"The map compared with its labels.{note}")
            self._add_tiles_section(ranking, [report_map], task, f" of {path.stem}")

    def add_scores(self, title: str, evaluation: Mapping[str, Any]) -> None:
        """Add a result of `segkit.evaluate`."""
        self._start("scores", title)
        self._add_scores_section(f"Scores: {title}", evaluation, "")

    def add_estimate(self, title: str, estimate_summary: Mapping[str, Any]) -> None:
        """Add a result of ``segkit assess estimate``."""
        self._start("estimated areas", title)
        accuracy = format_estimate(format_score, estimate_summary, "overall_accuracy")
        caption = "Mapped and estimated areas, and accuracies, with 95 % confidence intervals."
        self.sections.append(
            Section(
                f"Estimated areas: {title}",
                "Estimated from a random reference sample; the 95 % confidence intervals are in brackets.",
                facts={"overall accuracy": accuracy, "samples": f"{estimate_summary['samples']:,}"},
                areas=estimate_summary,
                charts=[Chart(f"{_slug(title)}-areas", area_bars.estimated_areas(estimate_summary), caption)],
            )
        )

    def write_pngs(self, folder: Path) -> tuple[Path, ...]:
        """Write all charts, tiles and maps as PNG."""
        folder.mkdir(exist_ok=True)
        written: list[Path] = []
        for section in self.sections:
            for chart in (*section.charts, *section.pictures):
                written.append(folder / f"{chart.name}.png")
                with atomic_write(written[-1]) as temporary:
                    chart.write_png(temporary)
        for report_map, overview in self._maps:
            written.append(folder / f"map-{_slug(report_map.title)}.png")
            with atomic_write(written[-1]) as temporary:
                plot_panels(temporary, _images(report_map, overview), report_map.task)
        return tuple(written)

    def _start(self, kind: str, title: str) -> None:
        self._kinds.append(kind)
        self._titles.append(title)

    def _add_scores_section(self, title: str, evaluation: Mapping[str, Any], intro: str) -> None:
        """Add the scores of an evaluation; those that it does not have are left out."""
        intervals, name = evaluation.get("intervals"), _slug(title)
        if intervals:
            intro += f" 95 % intervals by bootstrap over {intervals['units']} {intervals['unit']}s."
        classes, matrix = charts.class_scores(evaluation), charts.confusion_matrix(evaluation["confusion"])
        section_charts = [
            Chart(f"{name}-classes", classes, "IoU, F1, precision and recall of each class."),
            Chart(f"{name}-confusion", matrix, "Predicted classes of the pixels of each true class."),
        ]
        reliability = charts.reliability_diagram(evaluation)
        if reliability is not None:
            caption = "Reliability diagram: confidence of the predictions and observed frequency."
            section_charts.append(Chart(f"{name}-reliability", reliability, caption))
        scenes = evaluation.get("scenes", ())
        by_distance = distance_chart.scores_by_distance(scenes)
        if by_distance is not None:
            section_charts.append(Chart(f"{name}-distance", by_distance, _describe_distances(scenes)))
        worst = find_worst_scenes(scenes, _N_WORST_SCENES)
        self.sections.append(
            Section(title, intro.strip(), scores=evaluation, charts=section_charts, worst_scenes=worst)
        )

    def _add_areas_section(self, path: Path, task: Task, counts: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Add the areas of the classes on a map."""
        facts = {"map": str(path), "predicted pixels": f"{counts['valid']:,}"}
        facts |= {"model": tags["segkit_model"]} if "segkit_model" in tags else {}
        section_charts = []
        if counts["hectares"] is None:
            facts |= {display_name(name): f"{number:,} pixels" for name, number in counts["pixels"].items()}
        else:
            colors = {row["name"]: row["color"] for row in task.legend}
            chart = area_bars.mapped_areas(counts["hectares"], colors)
            section_charts.append(Chart(f"{_slug(path.stem)}-mapped", chart, _BIAS_NOTE))
        self.sections.append(Section("Areas on the map", "", facts=facts, charts=section_charts))

    def _add_tiles_section(
        self, ranking: WindowRanking, maps: Sequence[ReportMap], task: Task, suffix: str = ""
    ) -> None:
        """Add the tiles with the largest and the smallest share of errors."""
        worst, best = ranking.worst(_N_TILES), ranking.best(_N_TILES)
        if not worst:
            return
        map_of = {id(one.area): one for one in maps}
        captions = [one.rendering.caption for one in maps if one.rendering is not None]
        image_caption = captions[0] if captions else "not available"

        def draw_tiles(name: str, ranked_windows: Sequence[RankedWindow], caption: str) -> Chart:
            views = [map_of[id(ranked_window.area)].read_window_view(ranked_window) for ranked_window in ranked_windows]
            return Chart(name, draw_windows(views, task, image_caption), caption)

        number = len(self.sections)
        self.sections.append(
            Section(
                f"Tiles with most and fewest errors{suffix}",
                "Only tiles with enough labelled pixels.",
                pictures=[
                    draw_tiles(f"worst-{number}", worst, "Tiles with the largest share of errors."),
                    draw_tiles(f"best-{number}", best, "Tiles with the smallest share of errors."),
                ],
            )
        )

    def _add_scene(self, report_map: ReportMap, overview: Overview, note: str = "") -> None:
        self._maps.append((report_map, overview))
        self.scenes.append(scene_layers(report_map, overview, self.states, note))


def _validation_distances(
    model: Segmenter, training: Sequence[LabelledArea], validation: Sequence[LabelledArea]
) -> list[float | None]:
    """Return the distance of each validation area's scene from the training scenes; None if the scene also trains."""
    trains = {area.sample.scene.paths for area in training}
    scenes = [area.sample.scene for area in validation]
    measured = iter(measure_distances(model, [scene for scene in scenes if scene.paths not in trains]))
    return [None if scene.paths in trains else next(measured) for scene in scenes]


def _describe_distances(scenes: Sequence[Mapping[str, Any]]) -> str:
    """Return the caption of the chart of scores by distance."""
    number = sum(one.get("distance") is not None and one["overall_accuracy"] is not None for one in scenes)
    text = (
        f"Scores of {number} scenes by their distance from the training scenes in appearance; at 1 a scene is as near "
        "as training scenes are to each other."
    )
    correlations = [
        (name, correlate_with_distance(scenes, key))
        for key, name in (("overall_accuracy", "accuracy"), ("mean_iou", "mean IoU"))
    ]
    found = [f"{one.value:.2f} for {name} (n = {one.scenes})" for name, one in correlations if one is not None]
    return text + (f" Spearman's rank correlation with the distance: {', '.join(found)}." if found else "")


def _select_maps(
    maps: Sequence[ReportMap], validation: Sequence[LabelledArea], scene_scores: Sequence[Mapping[str, Any]]
) -> list[ReportMap]:
    """Return the maps to show, those with the lowest accuracy first; of many, the worst and the best."""
    accuracy = {id(area): row["overall_accuracy"] for area, row in zip(validation, scene_scores, strict=True)}
    labelled = [one for one in maps if accuracy[id(one.area)] is not None]
    ranked = sorted(labelled, key=lambda one: accuracy[id(one.area)])
    if len(ranked) > _MAX_SCENES:
        ranked = ranked[: _MAX_SCENES // 2] + ranked[-_MAX_SCENES // 2 :]
    return [replace(one, title=f"{one.title} (accuracy {format_score(accuracy[id(one.area)])})") for one in ranked]


def _training_section(
    folder: Path, model: Segmenter, training: Sequence[LabelledArea], validation: Sequence[LabelledArea]
) -> Section:
    """Return the section on training data, network and settings."""
    recipe, task = model.recipe, model.task
    facts = {
        "task": f"{task.type}, {task.head}: {', '.join(display_name(one.name) for one in task.classes)}",
        **_describe_model(model),
        "bands": ", ".join(model.band_names),
        "training data": _describe_areas(training),
        "validation data": _describe_areas(validation),
        "training": _describe_training(model),
    }
    before = model.metrics.get("ece_uncalibrated")
    if before is not None and model.metrics.get("ece") is not None:
        facts["calibration error"] = (
            f"{before:.4f} before and {model.metrics['ece']:.4f} after calibration, on the areas used to fit it"
        )
    for learner, scores in baseline_scores(model.metrics).items():
        values = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in scores.items() if value is not None)
        facts[f"{full_name(learner)} of single pixels"] = f"{values} on the validation data, for comparison"
    section_charts = []
    if not recipe.model.is_classical and (rows := read_log(folder / LOG)):
        curves = training_curves.curves(rows, _saved_epoch(rows, recipe))
        section_charts.append(Chart("training-curves", curves, "Loss and validation scores by epoch."))
    code = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    return Section("Training", f"Run folder: {folder}", facts=facts, charts=section_charts, code=code)


def _describe_model(model: Segmenter) -> dict[str, str]:
    """Return the network and its size, or the classical learner and its features."""
    settings = model.recipe.model
    if not model.is_classical:
        weights = sum(weight.numel() for weight in model.network.parameters())
        text = f"{settings.architecture} with {settings.encoder}, {weights / 1e6:.1f} million weights"
        branch = ", averaged with a linear discriminant of single pixels" * settings.pixel_branch
        return {"network": text + branch}
    facts = {"learner": settings.architecture}
    if settings.features is not None:
        sides = [f"mean and standard deviation in {side} x {side} pixels" for side in settings.features.texture]
        pairs = [f"({a} - {b}) / ({a} + {b})" for a, b in settings.features.indices]
        facts["features"] = ", ".join(["bands", *sides, *pairs])
    return facts


def _describe_training(model: Segmenter) -> str:
    """Return the settings of a network's training, or how many pixels a learner was fitted to."""
    setup = model.recipe.train
    if model.is_classical:
        used, labelled = (model.metrics.get(key, 0) for key in ("fitted_pixels", "labelled_pixels"))
        return f"fitted to {used:,} of {labelled:,} labelled pixels"
    found = model.metrics.get("epochs", {"finished": setup.epochs, "planned": setup.epochs})
    ended = "" if found["finished"] == found["planned"] else f" of {found['planned']} planned"
    epochs = f"{found['finished']} epochs{ended}"
    steps = "" if setup.steps_per_epoch is None else f" of {setup.steps_per_epoch} steps"
    return (
        f"{epochs}{steps}, batches of {setup.batch_size} tiles of {setup.tile_size} x "
        f"{setup.tile_size} pixels; learning rate {setup.learning_rate:g}; loss "
        f"{' + '.join(f'{weight:g} {name}' for name, weight in setup.loss.items())}"
    )


def _describe_areas(areas: Sequence[LabelledArea]) -> str:
    """Return the number of scenes, and of labelled pixels, whether or not these have data."""
    labelled = 0
    for area in areas:
        for window in iter_windows(area.windows, _LABEL_WINDOW_PX):
            targets = area.read_truth(window, ~area.exclude.mask(window))
            labelled += int((targets != IGNORE).any(axis=0).sum())
    scenes = "1 scene" if len(areas) == 1 else f"{len(areas)} scenes"
    return f"{scenes}, {labelled:,} labelled pixels" if areas else "none"


def _saved_epoch(rows: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    """Return the epoch whose weights are in the model file."""
    scored = [row for row in rows if row.get("val_iou", float("nan")) == row.get("val_iou")]
    if recipe.train.checkpoint == "best" and scored:
        return int(max(scored, key=lambda row: row["val_iou"])["epoch"])
    return int(rows[-1]["epoch"])


def _grids_of_files(scene: Scene | None, probabilities: Path | None) -> list[tuple[Path, Grid]]:
    """Return (file, grid) of imagery and probabilities."""
    grids = [] if scene is None else [(scene.paths[0], scene.grid)]
    if probabilities is not None:
        with open_raster(probabilities) as dataset:
            grids.append((probabilities, read_grid(dataset)))
    return grids


def _labelled_area(path: Path, labels: PathLike | LabelSource, task: Task, ignore: Sequence[int]) -> LabelledArea:
    source = DatasetSource.model_validate({"images": paths_as_text(path), "labels": paths_as_text(labels)})
    samples = open_labelled_samples(source, Data(train=source, ignore=tuple(ignore)), task, "report")
    refuse_ambiguous_labels(samples)
    (area,) = full_areas(samples)
    return area


def _images(report_map: ReportMap, overview: Overview) -> dict[str, Any]:
    """Return {title: image (H, W, 3)} of a map, with imagery and truth if there are any."""
    images = {}
    if overview.pixels is not None and overview.rendering is not None:
        images["image"] = overview.rendering.render(overview.pixels, overview.valid)
    if overview.truth is not None:
        images["truth"] = colorize(overview.truth, report_map.task)
    return images | {"map": colorize(overview.decided, report_map.task)}


def _slug(title: str) -> str:
    """Return a title as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", title).strip("-.").lower() or "unnamed"
