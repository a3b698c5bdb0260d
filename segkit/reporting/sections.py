"""Story: what a report tells of a run, a map, scores and areas, section by section."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from segkit.data.area import Area, whole
from segkit.data.areas import areas, labelled_samples
from segkit.errors import DataError, GridError, SegkitError
from segkit.evaluation.decisions import Decider, MapDecider, map_task
from segkit.evaluation.evaluate import refuse_doubts, scores
from segkit.evaluation.worst_windows import Piece, Ranking, draw
from segkit.inference.settings import Options
from segkit.io.files import staged
from segkit.io.quantities import Quantity
from segkit.io.raster import PathLike, grid_of, open_raster
from segkit.io.scene import Scene
from segkit.models.run_folder import LOG, METRICS, MODEL, read_log
from segkit.models.segmenter import Segmenter, load
from segkit.plots import area_bars, charts, style, training_curves
from segkit.plots.images import colored, panels, spoken
from segkit.recipe.schema import Data, LabelSource, Recipe, Source
from segkit.reporting.decision_maps import Kept
from segkit.reporting.html import Chart, Section
from segkit.reporting.map_views import Overview, ShownMap, States, narrowed, overview, scenery
from segkit.reporting.viewer import Scenery
from segkit.task.task import Task

_MOST_SCENES = 12  # to choose from in the map
_PIXELS = 2_500_000  # of all scenes of a run together, and of a map
_TILES, _TILE = 4, 256  # worst and best windows, and their side in pixels at most
_VALIDATED = "Predicted is what validates; no training has seen it."
_BIASED = "Pixels counted on the map, a biased estimate of area: what a map misses and invents does not cancel out."


class Story:
    """Collects sections, scenes and their pictures.

    Parameters
    ----------
    folder
        For files that are not kept.
    boundary, size
        Width of boundaries, and smallest object that counts.
    options
        Of a run's model.
    """

    def __init__(
        self, folder: Path, boundary: Quantity, size: Quantity, options: Options, *, show_progress: bool
    ) -> None:
        self.sections: list[Section] = []
        self.scenes: list[Scenery] = []
        self.states = States()
        self._folder, self._options, self._show = folder, options, show_progress
        self._shapes = boundary, size
        self._titles: list[str] = []
        self._seen: list[tuple[ShownMap, Overview]] = []

    @property
    def title(self) -> str:
        """What the report is about first."""
        return self._titles[0]

    @property
    def subtitle(self) -> str:
        """What else it is about."""
        others = dict.fromkeys(self._titles[1:])
        return f"With {', '.join(others)}. " if others else ""

    def tell_run(self, folder: Path) -> None:
        """Tell what a model was trained on and how, and how it does on its validation areas."""
        model = load(folder / MODEL)
        recipe, task = model.recipe, model.task
        self._titles.append(recipe.name)
        try:
            training, validation = areas(recipe)
        except SegkitError as error:
            raise DataError(
                f"{folder}: what it was trained on cannot be read ({error}); "
                f"name {folder / METRICS} instead for its scores alone"
            ) from error
        if validation:
            ranking = Ranking(_TILE)
            with Kept(self._folder, model) as kept:

                def watch(area: Area, part: Any) -> None:
                    kept.add(area, part)
                    ranking.add(area, part)

                decider = Decider(model, self._options)
                found = scores(decider, validation, *self._shapes, watch=watch, show_progress=self._show)
            self._scored("Validation", found, f"{recipe.name} on the areas that it was validated on.")
            self._tiles(ranking, kept.maps, task)
            chosen = _chosen(kept.maps, validation, found["scenes"])
            for shown in chosen:
                self._add(shown, overview(shown, _PIXELS // len(chosen), show_progress=self._show), _VALIDATED)
        self.sections.append(_training(folder, model, training, validation))

    def tell_map(
        self,
        path: Path,
        images: PathLike | Sequence[PathLike] | None,
        labels: PathLike | LabelSource | None,
        probabilities: PathLike | None,
        names: PathLike | None,
        ignore: Sequence[int],
    ) -> None:
        """Tell what a map shows, and how good it is where labels are given."""
        self._titles.append(path.stem)
        task = map_task(path, names=names)
        with open_raster(path) as dataset:
            grid, tags = grid_of(dataset), dataset.tags()
        scene = None if images is None else Scene.of(images)
        chances = None if probabilities is None else Path(probabilities)
        for file, other in _beside(scene, chances):
            if difference := grid.difference(other):
                raise GridError(f"{path} and {file} lie on different grids ({difference}); name what lies on the map's")
        shown = ShownMap(path.stem, path, task, grid.whole, probabilities=chances)
        if scene is not None:
            shown = replace(shown, scene=narrowed(scene)[0])
        area = None if labels is None else _area(path, labels, task, ignore)
        seen = overview(replace(shown, area=area), _PIXELS, show_progress=self._show)
        shown = replace(shown, area=area, view=seen.view)
        self._add(shown, seen)
        self.scenes.insert(0, self.scenes.pop())  # before those that only validate
        self._mapped(path, task, seen.counts, tags)
        if area is not None:
            ranking = Ranking(_TILE)
            found = scores(MapDecider(task), [area], *self._shapes, watch=ranking.add, show_progress=self._show)
            self._scored(f"Scores of {path.stem}", found, "The map against its labels.")
            self._tiles(ranking, [shown], task, f" of {path.stem}")

    def tell_scores(self, title: str, found: Mapping[str, Any]) -> None:
        """Tell what `segkit.evaluate` wrote."""
        self._titles.append(title)
        self._scored(f"Scores: {title}", found, "")

    def tell_estimate(self, title: str, found: Mapping[str, Any]) -> None:
        """Tell what ``segkit assess estimate`` wrote."""
        self._titles.append(title)
        accuracy, half = found["overall_accuracy"], found["overall_accuracy_ci95"]
        told = "not known" if accuracy is None else f"{accuracy:.3f} ± {'?' if half is None else f'{half:.3f}'}"
        self.sections.append(
            Section(
                f"Areas: {title}",
                "Estimated from a random sample that somebody looked at; ± is half of a 95 % interval.",
                facts={"overall accuracy": told, "samples": f"{found['samples']:,}"},
                areas=found,
                charts=[
                    Chart(f"{_slug(title)}-areas", area_bars.areas(found), "What is mapped, and what is estimated.")
                ],
            )
        )

    def draw(self, folder: Path) -> tuple[Path, ...]:
        """Write all pictures as PNG."""
        folder.mkdir(exist_ok=True)
        written: list[Path] = []
        for section in self.sections:
            for chart in (*section.charts, *section.pictures):
                written.append(folder / f"{chart.name}.png")
                with staged(written[-1]) as part:
                    style.png(chart.figure, part)
        for shown, seen in self._seen:
            written.append(folder / f"map-{_slug(shown.title)}.png")
            with staged(written[-1]) as part:
                panels(part, _images(shown, seen), shown.task)
        return tuple(written)

    def _scored(self, title: str, found: Mapping[str, Any], intro: str) -> None:
        """Tell scores as they come from an evaluation; what it does not hold is left out."""
        intervals, name = found.get("intervals"), _slug(title)
        if intervals:
            intro += f" Intervals of 95 % by drawing {intervals['units']} {intervals['unit']}s again and again."
        classes, matrix = charts.classes(found), charts.confusion(found["confusion"])
        drawn = [
            Chart(f"{name}-classes", classes, "IoU, F1, precision and recall of each class."),
            Chart(f"{name}-confusion", matrix, "What became of the true pixels of each class."),
        ]
        curve = charts.reliability(found)
        if curve is not None:
            drawn.append(Chart(f"{name}-reliability", curve, "How sure the model is, and how often it is right."))
        self.sections.append(Section(title, intro.strip(), scores=found, charts=drawn))

    def _mapped(self, path: Path, task: Task, counts: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Tell what a map shows."""
        facts = {"map": str(path), "decided pixels": f"{counts['valid']:,}"}
        facts |= {"made by": tags["segkit_model"]} if "segkit_model" in tags else {}
        drawn = []
        if counts["hectares"] is None:
            facts |= {spoken(name): f"{number:,} pixels" for name, number in counts["pixels"].items()}
        else:
            colors = {row["name"]: row["color"] for row in task.legend}
            drawn.append(Chart(f"{_slug(path.stem)}-mapped", area_bars.mapped(counts["hectares"], colors), _BIASED))
        self.sections.append(Section(f"Mapped: {path.stem}", "", facts=facts, charts=drawn))

    def _tiles(self, ranking: Ranking, maps: Sequence[ShownMap], task: Task, of: str = "") -> None:
        """Show the windows in which most is wrong, and least."""
        by_area = {id(one.area): one for one in maps}

        def drawn(name: str, pieces: Sequence[Piece], caption: str) -> Chart:
            looks = [by_area[id(piece.area)].look(piece) for piece in pieces]
            views = [one.view.caption for one in maps if one.view is not None]
            return Chart(name, draw(looks, task, views[0] if views else "none was given"), caption)

        found = ranking.worst(_TILES), ranking.best(_TILES)
        if not found[0]:
            return
        number = len(self.sections)
        self.sections.append(
            Section(
                f"Worst and best windows{of}",
                "Of those with enough pixels that are known.",
                pictures=[
                    drawn(f"worst-{number}", found[0], "The windows with the largest share of wrong pixels."),
                    drawn(f"best-{number}", found[1], "The windows with the smallest share of wrong pixels."),
                ],
            )
        )

    def _add(self, shown: ShownMap, seen: Overview, note: str = "") -> None:
        self._seen.append((shown, seen))
        self.scenes.append(scenery(shown, seen, self.states, note))


def _chosen(maps: Sequence[ShownMap], validation: Sequence[Area], told: Sequence[Mapping[str, Any]]) -> list[ShownMap]:
    """Return the maps to show, the worst first; of many the worst and the best."""
    accuracy = {id(area): row["overall_accuracy"] for area, row in zip(validation, told, strict=True)}
    known = [one for one in maps if accuracy[id(one.area)] is not None]
    ranked = sorted(known, key=lambda one: accuracy[id(one.area)])
    if len(ranked) > _MOST_SCENES:
        ranked = ranked[: _MOST_SCENES // 2] + ranked[-_MOST_SCENES // 2 :]
    return [replace(one, title=f"{one.title} (accuracy {accuracy[id(one.area)]:.3f})") for one in ranked]


def _training(folder: Path, model: Segmenter, training: Sequence[Area], validation: Sequence[Area]) -> Section:
    """Tell what was trained, on what and how."""
    recipe, task, setup = model.recipe, model.task, model.recipe.train
    weights = sum(weight.numel() for weight in model.network.parameters())
    scenes = {"trained on": training, "validated on": validation}
    steps = "" if setup.steps is None else f" of {setup.steps} steps"
    facts = {
        "task": f"{task.type}, {task.head}: {', '.join(spoken(one.name) for one in task.classes)}",
        "network": f"{recipe.model.architecture} with {recipe.model.encoder}, {weights / 1e6:.1f} million weights",
        "bands": ", ".join(model.band_names),
        **{what: _ground(part) for what, part in scenes.items()},
        "training": f"{setup.epochs} epochs{steps}, {setup.batch_size} tiles of {setup.tile_size} pixels each; "
        f"learning rate {setup.learning_rate:g}; loss {' + '.join(f'{w:g} {n}' for n, w in setup.loss.items())}",
    }
    before = model.metrics.get("ece_uncalibrated")
    if before is not None and model.metrics.get("ece") is not None:
        facts["calibration error"] = (
            f"{before:.4f} before calibration, {model.metrics['ece']:.4f} after it, on the areas that it was fitted on"
        )
    rows = read_log(folder / LOG)
    caption = "Loss and validation scores, epoch by epoch."
    drawn = [Chart("training-curves", training_curves.curves(rows, _kept(rows, recipe)), caption)] if rows else []
    code = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    return Section("Training", f"The run {folder}.", facts=facts, charts=drawn, code=code)


def _ground(part: Sequence[Area]) -> str:
    pixels = sum(int(window.width * window.height) for area in part for window in area.windows)
    scenes = "1 scene" if len(part) == 1 else f"{len(part)} scenes"
    return f"{scenes}, {pixels / 1e6:,.2f} million pixels" if part else "nothing"


def _kept(rows: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    """Return the epoch whose weights a run kept."""
    scored = [row for row in rows if row.get("val_iou", float("nan")) == row.get("val_iou")]
    if recipe.train.keep == "best" and scored:
        return int(max(scored, key=lambda row: row["val_iou"])["epoch"])
    return int(rows[-1]["epoch"])


def _beside(scene: Scene | None, chances: Path | None) -> list[tuple[Path, Any]]:
    """Return the files beside a map with their grids."""
    found = [] if scene is None else [(scene.paths[0], scene.grid)]
    if chances is not None:
        with open_raster(chances) as dataset:
            found.append((chances, grid_of(dataset)))
    return found


def _area(path: Path, labels: PathLike | LabelSource, task: Task, ignore: Sequence[int]) -> Area:
    named = labels if isinstance(labels, LabelSource) else os.fspath(labels)
    source = Source.model_validate({"images": str(path), "labels": named})
    samples = labelled_samples(source, Data(train=source, ignore=tuple(ignore)), task, "report")
    refuse_doubts(samples)
    (area,) = whole(samples)
    return area


def _images(shown: ShownMap, seen: Overview) -> dict[str, Any]:
    """Return what a picture of a scene shows side by side."""
    found = {}
    if seen.pixels is not None and seen.view is not None:
        found["image"] = seen.view.image(seen.pixels, seen.valid)
    if seen.truth is not None:
        found["truth"] = colored(seen.truth, shown.task)
    return found | {"map": colored(seen.planes, shown.task)}


def _slug(title: str) -> str:
    """Return a title as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", title).strip("-.").lower() or "unnamed"
