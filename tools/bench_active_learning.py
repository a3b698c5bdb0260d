"""How many labels does each choice of windows need? A labeller who knows the truth labels windows, round by round.

    .venv/bin/python tools/bench_active_learning.py --data ../shared/data/amazon                    # a few minutes
    .venv/bin/python tools/bench_active_learning.py --data ../shared/data/amazon --learner network  # hours on a CPU
    .venv/bin/python tools/bench_active_learning.py --data landscape --size 64 --learner lda        # a few minutes

A third of the scenes, another one for each seed, is held out for the scores; windows are chosen in the others alone.
Of the sample landscape, another one for each seed, the held-out part is. Strategies:

    random        windows drawn at random
    uncertainty   the first windows at random, then those with the highest mean entropy
    segkit        as `segkit suggest`: windows that cover the variety of the scenes, then uncertain and unlike ones

The table has the mean over seeds of the overall accuracy, in points below that of a model of all labels (negative:
above), by share of the area that is labelled; and the share from which each strategy stays within half a point.

Results are kept in the file --out, one line per training; a second call skips strategies and seeds that it finds there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from segkit.data.area import full_areas
from segkit.data.areas import open_areas
from segkit.data.pairing import open_samples
from segkit.demo.landscape.canvas import LandCover
from segkit.demo.landscape.scene import make_landscape
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.evaluate import score_areas
from segkit.inference.settings import PredictOptions
from segkit.inference.tasks import WorkerContext
from segkit.labelling.candidates import Candidates, choose_candidates
from segkit.labelling.lattice import Lattice, describe_windows
from segkit.labelling.measurer import Measurer
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe
from segkit.recipe.sources import DatasetSource
from segkit.training.train import train

STRATEGIES = ("random", "uncertainty", "segkit")
LEARNERS: dict[str, dict[str, Any]] = {
    "lda": {"architecture": "lda", "features": {"texture": [3, 7]}},
    "forest": {
        "architecture": "forest",
        "features": {"texture": [3, 7]},
        "options": {"max_pixels": 30_000, "n_estimators": 60, "min_samples_leaf": 5},
    },
    "network": {
        "architecture": "unet",
        "encoder": "resnet18",
        "encoder_weights": None,
        "options": {"encoder_depth": 3, "decoder_channels": [48, 32, 24]},
    },
}
NETWORK_STEPS = {"tile_size": 128, "batch_size": 8, "epochs": 4, "steps_per_epoch": 100, "learning_rate": 0.001}
UNLABELLED = 255
WITHIN = 0.5  # points of accuracy


LANDSCAPE = Path("landscape")
Pairs = list[tuple[Path, Path]]  # image and labels


def split_scenes(data: Path, seed: int) -> tuple[Pairs, Pairs]:
    """Return the scenes of a folder in which windows are chosen, and those that are held out."""
    images = sorted((data / "images").glob("*.tif"))
    shuffled = np.random.default_rng(1000 + seed).permutation(len(images))
    pairs = [(images[number], data / "labels" / images[number].name) for number in range(len(images))]
    held_out = {int(each) for each in shuffled[: len(images) // 3]}
    pool = [pair for number, pair in enumerate(pairs) if number not in held_out]
    return pool, [pairs[number] for number in sorted(held_out)]


def landscape_sides(folder: Path, seed: int) -> tuple[dict[str, Any], Pairs, Pairs]:
    """Make a sample landscape; returns the task, the part in which windows are chosen, and the held-out part."""
    files = make_landscape(folder, seed=seed)
    classes = [{"name": cover.name.lower(), "value": int(cover)} for cover in LandCover if cover is not LandCover.OTHER]
    pool, test = ([(side.scene_2024, side.landcover)] for side in (files.train, files.heldout))
    return {"type": "multiclass", "classes": classes}, pool, test


def as_source(pairs: Pairs) -> dict[str, Any]:
    """Return images and labels as `data.train` of a recipe has them."""
    return {"images": [[str(image)] for image, _ in pairs], "labels": [str(labels) for _, labels in pairs]}


class Field:
    """Scenes, of which some are held out, and a labeller who knows the truth."""

    def __init__(self, data: Path, learner: str, size: int, seed: int, folder: Path) -> None:
        self._folder, self._seed, self._learner = folder, seed, learner
        if data == LANDSCAPE:
            self._task, pool, test = landscape_sides(folder / "landscape", seed)
        else:
            self._task = {"type": "binary", "classes": [{"name": "deforestation", "value": 1}]}
            pool, test = split_scenes(data, seed)
        self._labels = {image.name: labels for image, labels in pool}
        self.everything = self._recipe(as_source(pool))
        source = DatasetSource.model_validate(as_source(test))
        self._test = full_areas(open_samples(source, self.everything.data, self.everything.task).samples)
        scenes = [area.sample.scene for area in open_areas(self.everything)[0]]
        self.windows = [
            self._describe(scene, Lattice.from_size(scene.grid, f"{size}px", scene.name)) for scene in scenes
        ]

    def _recipe(self, source: dict[str, Any]) -> Recipe:
        return Recipe.from_dict(
            {
                "name": "active",
                "task": self._task,
                "data": {"train": source, "val": None, "ignore": [UNLABELLED]},
                "model": LEARNERS[self._learner],
                "train": {"seed": self._seed} | (NETWORK_STEPS if self._learner == "network" else {}),
            }
        )

    @staticmethod
    def _describe(scene: Any, lattice: Lattice) -> Candidates:
        _, features = describe_windows(scene, lattice, lambda step: None)
        return Candidates(
            scene, lattice, np.ones(len(lattice), dtype=bool), np.zeros(len(lattice), dtype=bool), features, None
        )

    @property
    def total(self) -> int:
        """Number of windows."""
        return sum(len(one.lattice) for one in self.windows)

    def label(self, chosen: set[tuple[int, int]]) -> Recipe:
        """Write labels of the chosen windows, (scene, window), and return a recipe that trains on them."""
        out = self._folder / "labels"
        out.mkdir(exist_ok=True)
        images: Pairs = []
        for old in out.iterdir():
            old.unlink()
        for number, one in enumerate(self.windows):
            mine = [window for scene, window in chosen if scene == number]
            if not mine:
                continue
            image = one.scene.paths[0]
            with rasterio.open(self._labels[image.name]) as dataset:
                truth, profile = dataset.read(), dataset.profile
            labels = np.full_like(truth, UNLABELLED)
            for window in mine:
                part = (slice(None), *one.lattice.window(window).toslices())
                labels[part] = truth[part]
            with rasterio.open(out / image.name, "w", **profile) as dataset:
                dataset.write(labels)
            images.append((image, out / image.name))
        return self._recipe(as_source(images))

    def score(self, recipe: Recipe) -> tuple[float, Path]:
        """Train, and return the accuracy on the scenes that are held out, in percent, and the model file."""
        run = train(recipe, self._folder / "run", overwrite=True, force=True)
        found = score_areas(ModelPredictor(load(run.model)), self._test)
        return 100 * found["overall_accuracy"], run.model


def choose(field: Field, chosen: set[tuple[int, int]], model: Path | None, strategy: str, step: int, seed: int) -> None:
    """Add the windows of a round to the chosen ones."""
    places = [(scene, window) for scene, one in enumerate(field.windows) for window in range(len(one.lattice))]
    left = [place for place in places if place not in chosen]
    if strategy == "random" or (strategy == "uncertainty" and model is None):
        random = np.random.default_rng([seed, len(chosen)])
        chosen.update(left[index] for index in random.permutation(len(left))[:step])
        return
    measurer = None if model is None else Measurer(WorkerContext(load(model)), PredictOptions(), "entropy")
    described = []
    for number, one in enumerate(field.windows):
        labelled = np.array([(number, window) in chosen for window in range(len(one.lattice))])
        measured = None if measurer is None else measurer.measure_windows(one.scene, one.lattice)
        described.append(Candidates(one.scene, one.lattice, ~labelled, labelled, one.features, measured))
    if strategy == "uncertainty":
        ranked = sorted(left, key=lambda place: -(described[place[0]].uncertain(place[1]) or 0))
        chosen.update(ranked[:step])
        return
    numbers = {id(one): number for number, one in enumerate(described)}
    chosen.update((numbers[id(one)], index) for one, index in choose_candidates(described, step, seed))


def measure(options: argparse.Namespace) -> None:
    """Append what is missing to the file of results."""
    done = {tuple(line[key] for key in ("learner", "strategy", "seed", "windows")): line for line in read(options.out)}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            field = Field(options.data, options.learner, options.size, seed, Path(folder))

            def keep(strategy: str, windows: int, accuracy: float, seed: int = seed, total: int = field.total) -> None:
                line = {"learner": options.learner, "strategy": strategy, "seed": seed, "windows": windows}
                line |= {"share": windows / total, "accuracy": accuracy}
                with options.out.open("a") as file:
                    print(json.dumps(line), file=file)
                print(line, flush=True)

            if (options.learner, "all", seed, field.total) not in done:
                keep("all", field.total, field.score(field.everything)[0])
            for strategy in options.strategies:
                if (options.learner, strategy, seed, options.step * options.rounds) in done:
                    continue
                chosen: set[tuple[int, int]] = set()
                model = None
                for _ in range(options.rounds):
                    choose(field, chosen, model, strategy, options.step, seed)
                    accuracy, model = field.score(field.label(chosen))
                    keep(strategy, len(chosen), accuracy)


def read(out: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def render(lines: list[dict[str, Any]], learner: str) -> str:
    """Return the table as Markdown."""
    lines = [line for line in lines if line["learner"] == learner]
    best = {line["seed"]: line["accuracy"] for line in lines if line["strategy"] == "all"}
    below: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    shares = {}
    for line in lines:
        if line["strategy"] != "all":
            below[line["strategy"], line["windows"]][line["seed"]] = best[line["seed"]] - line["accuracy"]
            shares[line["windows"]] = line["share"]
    counts = sorted(shares)
    rows = [["strategy", *(f"{shares[count]:.1%}" for count in counts), f"within {WITHIN} from"]]
    rows.append(["---"] * len(rows[0]))
    for strategy in STRATEGIES:
        measured = [count for count in counts if below[strategy, count]]
        means = {count: float(np.mean([*below[strategy, count].values()])) for count in measured}
        enough = [count for count in measured if all(means[more] <= WITHIN for more in measured if more >= count)]
        first = f"{shares[enough[0]]:.1%}" if enough else "-"
        rows.append([strategy, *(f"{means[count]:.2f}" if count in means else "" for count in counts), first])
    average = f"all labels: {np.mean([*best.values()]):.2f} % overall accuracy, mean over {len(best)} seeds"
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", average])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images and labels, or: landscape")
    parser.add_argument("--learner", choices=LEARNERS, default="forest")
    parser.add_argument("--size", type=int, default=128, help="side of a window in pixels")
    parser.add_argument("--step", type=int, default=4, help="windows that are labelled in a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("active_learning.jsonl"))
    options = parser.parse_args()
    measure(options)
    print(render(read(options.out), options.learner))


if __name__ == "__main__":
    main()
