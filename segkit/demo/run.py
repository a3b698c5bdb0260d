"""The whole job on the sample landscape: what a user does with own data, step by step and with pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rasterio.windows import Window

from segkit.data.area import Area, whole
from segkit.data.areas import areas
from segkit.data.pairing import resolve
from segkit.demo.landscape.canvas import Cover
from segkit.demo.landscape.files import OVERLAPPING, Part
from segkit.demo.landscape.scene import make_landscape
from segkit.errors import UsageError
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.io.files import check_folder
from segkit.io.raster import PathLike
from segkit.io.vector import layer_names, read_layer
from segkit.plots.images import colored, composite, panels, read_map
from segkit.recipe.schema import LabelSource, Recipe, Source
from segkit.reporting.report import report
from segkit.training.baselines import LinearDiscriminant
from segkit.training.train import train
from segkit.vector import vectorize

_NATURAL = {"deforestation": (9, 8, 7), "landcover": (3, 2, 1), "overlapping": (3, 2, 1)}  # red, green, blue of 2024
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
    """What the demo made, and how good it is on the part that no training saw.

    Parameters
    ----------
    folder
        Holds everything.
    metrics
        Of the network, as in `metrics.json`.
    baseline
        Of a per-pixel linear discriminant fitted on the same training pixels.
    model, map, layer, shapefile, picture, report
        Files to look at.
    minutes
        All of it took.
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
        """Say it in plain text."""
        rows = [f"{'held-out IoU':<14}  {'network':>8}  {'per-pixel linear discriminant':>30}"]
        for name, scores in self.metrics["per_class"].items():
            rows.append(
                f"{name:<14}  {_number(scores['iou']):>8}  {_number(self.baseline['per_class'][name]['iou']):>30}"
            )
        rows.append(f"{'mean':<14}  {_number(self.metrics['mean_iou']):>8}  {_number(self.baseline['mean_iou']):>30}")
        shown = ("report", "picture", "map", "layer", "shapefile", "model")
        files = [f"{what:<10} {getattr(self, what)}" for what in shown]
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
    """Make the sample landscape, train on its west, map its east, and compare with the truth.

    Parameters
    ----------
    folder
        Where everything goes; made where its parent exists. A second demo of the same task replaces the first.
    task
        "deforestation" (binary, from two dates), "landcover" (multiclass) or "overlapping" (multilabel, from polygons).
    width, height
        Of the landscape in pixels.
    overrides
        Changes to the demo's recipe: "train.epochs=1".
    show_progress
        Tell about each step on stderr.

    Raises
    ------
    UsageError
        The task is not known, or the folder cannot be made.
    """
    if task not in _RECIPES:
        raise UsageError(f"task {task!r} is not known; use {', '.join(_RECIPES)}")
    started = time.monotonic()
    root = check_folder(folder, "demo")
    root.mkdir(exist_ok=True)
    landscape = make_landscape(root / "landscape", width=width, height=height)
    written = root / f"{task}.yaml"
    written.write_text(yaml.safe_dump(_RECIPES[task](), sort_keys=False))
    recipe = Recipe.load(written, overrides)
    run = train(recipe, root / task, overwrite=True, show_progress=show_progress)

    images, labels = _heldout(task, landscape.heldout)
    map_, chances = root / task / "map.tif", root / task / "probabilities.tif"
    predict(run.model, images, map_, probabilities=chances, overwrite=True, show_progress=show_progress)
    layer, shapefile = root / task / "polygons.gpkg", root / task / "polygons.shp"
    for output in (layer, shapefile):
        vectorize(map_, output, probabilities=chances, overwrite=True)
    metrics = evaluate(run.model, images, labels, root / task / "heldout.json", overwrite=True)

    discriminant = LinearDiscriminant.fit(areas(recipe)[0], recipe.task)
    heldout = whole(resolve(Source(images=images, labels=labels), recipe.data, recipe.task).samples)
    baseline = discriminant.score(heldout, recipe.task).summary()
    (root / task / "baseline.json").write_text(json.dumps(baseline, indent=2))
    picture = root / f"{task}.png"
    _draw(picture, recipe, heldout[0], map_, layer, _NATURAL[task])
    page = root / f"{task}.html"
    (scene,) = images
    report(
        [run.folder, map_],
        page,
        images=scene,
        labels=labels,
        probabilities=chances,
        overwrite=True,
        show_progress=show_progress,
    )
    minutes = (time.monotonic() - started) / 60
    return Demo(root, metrics, baseline, run.model, map_, layer, shapefile, picture, page, minutes)


def _deforestation() -> dict[str, Any]:
    dates = [["landscape/train/scene_2019.tif", "landscape/train/scene_2024.tif"]]
    return {
        "name": "demo-deforestation",
        "task": {"type": "binary", "classes": [_class("deforestation", 1)]},
        "data": _data(dates, "landscape/train/deforestation.tif"),
        **_SETUP,
    }


def _landcover() -> dict[str, Any]:
    classes = [_class(cover.name.lower(), int(cover)) for cover in Cover if cover is not Cover.OTHER]
    return {
        "name": "demo-landcover",
        "task": {"type": "multiclass", "classes": classes},
        "data": _data("landscape/train/scene_2024.tif", "landscape/train/landcover.tif"),
        **_SETUP,
    }


def _overlapping() -> dict[str, Any]:
    labels = {"path": "landscape/train/overlapping.gpkg", "field": "class"}
    return {
        "name": "demo-overlapping",
        "task": {
            "type": "multilabel",
            "classes": [_class(name, value) for value, name in enumerate(OVERLAPPING, start=1)],
        },
        "data": _data("landscape/train/scene_2024.tif", labels),
        **_SETUP,
    }


_RECIPES = {"deforestation": _deforestation, "landcover": _landcover, "overlapping": _overlapping}
# Small and quick: about two minutes of training on two cores.
_SETUP: dict[str, Any] = {
    "model": {
        "architecture": "unet",
        "encoder": "tu-resnet10t",
        "options": {"decoder_channels": [64, 48, 32, 24, 16]},
    },
    "train": {"tile_size": 128, "batch_size": 8, "epochs": 10, "steps": 30, "learning_rate": 0.002},
}


def _class(name: str, value: int) -> dict[str, Any]:
    return {"name": name, "value": value, "color": _COLORS[name]}


def _data(images: Any, labels: Any) -> dict[str, Any]:
    return {
        "train": {"images": images, "labels": labels},
        "val": {"fraction": 0.15, "block": 128, "gap": 16, "seed": 0},
        "ignore": [255],
    }


def _heldout(task: str, part: Part) -> tuple[Any, Any]:
    """Return images and labels of the part to map, as a recipe would name them."""
    if task == "deforestation":
        return [[str(part.scene_2019), str(part.scene_2024)]], str(part.deforestation)
    if task == "landcover":
        return [str(part.scene_2024)], str(part.landcover)
    return [str(part.scene_2024)], LabelSource(path=str(part.overlapping), field="class")


def _draw(picture: Path, recipe: Recipe, area: Area, map_: Path, layer: Path, bands: tuple[int, int, int]) -> None:
    """Draw image, truth, map and polygons of the lower half of the held-out part, where most happens."""
    import pandas

    scene, task = area.sample.scene, recipe.task
    top = scene.grid.height * 35 // 100
    window = Window(0, top, scene.grid.width, min(scene.grid.width, scene.grid.height - top))
    image = composite(scene, bands, window)
    parts = [read_layer(layer, name).frame() for name, has in layer_names(layer).items() if has]
    left, bottom, right, top_ = scene.grid.part(window).bounds
    panels(
        picture,
        {
            "image 2024": image,
            "truth": colored(area.labels.read(window), task),
            "map": colored(read_map(map_, task, window), task),
            "polygons": image,
        },
        task,
        extent=(left, right, bottom, top_),
        outlines=pandas.concat(parts),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
