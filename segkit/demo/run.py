"""The demo: train, predict, vectorize, evaluate and report on the sample landscape."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rasterio.windows import Window

from segkit.data.area import LabelledArea, full_areas
from segkit.data.areas import open_areas
from segkit.data.pairing import open_samples
from segkit.data.statistics import Statistics
from segkit.demo.landscape.canvas import LandCover
from segkit.demo.landscape.files import OVERLAPPING, SceneFiles
from segkit.demo.landscape.scene import make_landscape
from segkit.errors import UsageError
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.evaluate import evaluate, score_areas
from segkit.inference.predict import predict
from segkit.io.files import check_folder
from segkit.io.paths import PathLike
from segkit.io.vector import layer_names, read_layer
from segkit.models.segmenter import load
from segkit.plots.images import colorize, plot_panels, read_map, rgb_composite
from segkit.plots.text import format_score
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Recipe
from segkit.recipe.sources import DatasetSource
from segkit.reporting.report import report
from segkit.training.baselines import fit_baseline
from segkit.training.train import train
from segkit.vector import vectorize

_RGB_BANDS = {"deforestation": (9, 8, 7), "landcover": (3, 2, 1), "overlapping": (3, 2, 1)}  # red, green, blue of 2024
_COLORS = {
    "deforestation": "#d7301f",
    "water": "#4682b4",
    "forest": "#1b7837",
    "agriculture": "#e6c35c",
    "urban": "#c0392b",
    "wetland": "#8c6bb1",
    "tree_canopy": "#1b9e77",
    "built_up": "#d95f02",
    "flooded": "#386cb0",
}


@dataclass(frozen=True)
class Demo:
    """The results of the demo; scores are those of the held-out part.

    Parameters
    ----------
    folder
        Contains all files.
    metrics
        Scores of the network, as in `metrics.json`.
    baseline
        Scores of a per-pixel linear discriminant fitted to the same training pixels.
    model, map, layer, shapefile, picture, report
        Output files.
    minutes
        Total run time.
    """

    folder: Path
    metrics: dict[str, Any]
    baseline: dict[str, Any]
    model: Path
    map: Path
    layer: Path
    shapefile: Path
    picture: Path
    report: Path
    minutes: float

    def render(self) -> str:
        """Return scores and files as plain text."""
        rows = [f"{'held-out IoU':<14}  {'network':>8}  {'per-pixel linear discriminant':>30}"]
        of_baseline = self.baseline["per_class"]
        ious = [(name, row["iou"], of_baseline[name]["iou"]) for name, row in self.metrics["per_class"].items()]
        for name, network, baseline in [*ious, ("mean", self.metrics["mean_iou"], self.baseline["mean_iou"])]:
            rows.append(f"{name:<14}  {format_score(network):>8}  {format_score(baseline):>30}")
        names = ("report", "picture", "map", "layer", "shapefile", "model")
        files = [f"{name:<10} {getattr(self, name)}" for name in names]
        return "\n".join([*rows, "", *files, f"{self.minutes:.1f} minutes"])


def demo(
    folder: PathLike,
    *,
    task: str = "deforestation",
    width: int = 1536,
    height: int = 1152,
    overrides: Sequence[str] = (),
    show_progress: bool = False,
) -> Demo:
    """Write the sample landscape, train on its western part, map its eastern part, and evaluate the map.

    Parameters
    ----------
    folder
        For all files; it is created if its parent exists. A second demo of the same task replaces the first.
    task
        "deforestation" (binary, from two dates), "landcover" (multiclass) or "overlapping" (multilabel, from polygons).
    width, height
        Size of the landscape in pixels.
    overrides
        Changes of the demo's recipe, for example "train.epochs=1".
    show_progress
        Show the progress of each step on stderr.

    Raises
    ------
    UsageError
        The task is unknown, or the folder cannot be created.
    """
    if task not in _RECIPES:
        raise UsageError(f"unknown task {task!r}; use {', '.join(_RECIPES)}")
    started = time.monotonic()
    root = check_folder(folder, "demo")
    root.mkdir(exist_ok=True)
    landscape = make_landscape(root / "landscape", width=width, height=height)
    recipe_file = root / f"{task}.yaml"
    recipe_file.write_text(yaml.safe_dump(_RECIPES[task](), sort_keys=False), encoding="utf-8")
    recipe = Recipe.load(recipe_file, overrides)
    run = train(recipe, root / task, overwrite=True, show_progress=show_progress)

    images, labels = _heldout_files(task, landscape.heldout)
    map_, probabilities = root / task / "map.tif", root / task / "probabilities.tif"
    predict(run.model, images, map_, probabilities=probabilities, overwrite=True, show_progress=show_progress)
    layer, shapefile = root / task / "polygons.gpkg", root / task / "polygons.shp"
    for output in (layer, shapefile):
        vectorize(map_, output, probabilities=probabilities, overwrite=True)
    metrics = evaluate(run.model, images, labels, root / task / "heldout.json", overwrite=True)

    training, _ = open_areas(recipe)
    discriminant = fit_baseline(load(run.model), training, Statistics.from_areas(training, recipe.task).counts)
    heldout = full_areas(open_samples(DatasetSource(images=images, labels=labels), recipe.data, recipe.task).samples)
    baseline = score_areas(ModelPredictor(discriminant), heldout)
    (root / task / "baseline.json").write_text(json.dumps(baseline, indent=2), encoding="utf-8")
    picture = root / f"{task}.png"
    _draw(picture, recipe, heldout[0], map_, layer, _RGB_BANDS[task])
    page = root / f"{task}.html"
    (scene,) = images
    report(
        [run.folder, map_],
        page,
        images=scene,
        labels=labels,
        probabilities=probabilities,
        overwrite=True,
        show_progress=show_progress,
    )
    minutes = (time.monotonic() - started) / 60
    return Demo(root, metrics, baseline, run.model, map_, layer, shapefile, picture, page, minutes)


def _deforestation() -> dict[str, Any]:
    dates = [["landscape/train/scene_2019.tif", "landscape/train/scene_2024.tif"]]
    return {
        "name": "demo-deforestation",
        "task": {"type": "binary", "classes": [_class_entry("deforestation", 1)]},
        "data": _data_entry(dates, "landscape/train/deforestation.tif"),
        **_SETUP,
        "train": _SETUP["train"] | {"epochs": 3},
    }


def _landcover() -> dict[str, Any]:
    classes = [_class_entry(cover.name.lower(), int(cover)) for cover in LandCover if cover is not LandCover.OTHER]
    return {
        "name": "demo-landcover",
        "task": {"type": "multiclass", "classes": classes},
        "data": _data_entry("landscape/train/scene_2024.tif", "landscape/train/landcover.tif"),
        **_SETUP,
    }


def _overlapping() -> dict[str, Any]:
    labels = {"path": "landscape/train/overlapping.gpkg", "field": "class"}
    return {
        "name": "demo-overlapping",
        "task": {
            "type": "multilabel",
            "classes": [_class_entry(name, value) for value, name in enumerate(OVERLAPPING, start=1)],
        },
        "data": _data_entry("landscape/train/scene_2024.tif", labels),
        **_SETUP,
    }


_RECIPES = {"deforestation": _deforestation, "landcover": _landcover, "overlapping": _overlapping}
# A small network: about a minute of training on two cores; a third of it does for deforestation, which is easier.
_SETUP: dict[str, Any] = {
    "model": {
        "architecture": "unet",
        "encoder": "tu-resnet10t",
        "options": {"decoder_channels": [64, 48, 32, 24, 16]},
    },
    "train": {"tile_size": 128, "batch_size": 8, "epochs": 10, "steps_per_epoch": 30, "learning_rate": 0.002},
}


def _class_entry(name: str, value: int) -> dict[str, Any]:
    return {"name": name, "value": value, "color": _COLORS[name]}


def _data_entry(images: Any, labels: Any) -> dict[str, Any]:
    return {
        "train": {"images": images, "labels": labels},
        "val": {"fraction": 0.15, "block": 128, "gap": 16, "seed": 0},
        "ignore": [255],
    }


def _heldout_files(task: str, files: SceneFiles) -> tuple[Any, Any]:
    """Return images and labels of the held-out part, in the form of a recipe."""
    if task == "deforestation":
        return [[str(files.scene_2019), str(files.scene_2024)]], str(files.deforestation)
    if task == "landcover":
        return [str(files.scene_2024)], str(files.landcover)
    return [str(files.scene_2024)], LabelSource(path=str(files.overlapping), field="class")


def _draw(
    picture: Path, recipe: Recipe, area: LabelledArea, map_: Path, layer: Path, bands: tuple[int, int, int]
) -> None:
    """Draw image, truth, map and polygons of the southern half of the held-out part, which has most land use."""
    import pandas

    scene, task = area.sample.scene, recipe.task
    top = scene.grid.height * 35 // 100
    window = Window(0, top, scene.grid.width, min(scene.grid.width, scene.grid.height - top))
    image = rgb_composite(scene, bands, window)
    polygons = [read_layer(layer, name).frame() for name, has_geometry in layer_names(layer).items() if has_geometry]
    left, bottom, right, top_ = scene.grid.subgrid(window).bounds
    plot_panels(
        picture,
        {
            "image 2024": image,
            "truth": colorize(area.labels.read(window), task),
            "map": colorize(read_map(map_, task, window), task),
            "polygons": image,
        },
        task,
        extent=(left, right, bottom, top_),
        outlines=pandas.concat(polygons),
    )
