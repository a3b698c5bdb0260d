"""Compare the recipes of configs/ with classical learners on the data that each recipe holds out; print a table.

    .venv/bin/python tools/bench_small_data.py --data ../shared/data                   # half an hour on two cores
    .venv/bin/python tools/bench_small_data.py --data ../shared/data mexico --seeds 1  # a minute

The columns are overall accuracy and mean IoU: of classical learners, which decide from single pixels with the default
settings, of the network alone, and of the mean of the probabilities of the network and the linear discriminant
(`model.pixel_branch: true`). Of the networks: mean and standard deviation over seeds. Both come from one training, so
they differ in nothing else.

Results are kept in the file --out, one line per training; a second call measures only what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.areas import open_areas
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.evaluate import score_areas
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe
from segkit.training.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = ("mexico", "slovenia", "enmap_potsdam", "zurich", "flanders", "para_landsat5", "para_sentinel2")
LEARNERS = ("lda", "svm", "forest", "boosting")
NETWORK, MEAN = "network", "network and lda"
Scores = dict[str, float]


@contextmanager
def place_recipes(data: Path) -> Iterator[Path]:
    """Yield a folder of the recipes, which find their data beside it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CONFIGS, Path(folder, "configs"))
        Path(folder, "data").symlink_to(data.resolve(), target_is_directory=True)
        yield Path(folder, "configs")


def pick(metrics: dict[str, Any]) -> Scores:
    """Return the scores of the table."""
    return {name: metrics[name] for name in ("overall_accuracy", "mean_iou")}


def measure_network(recipe: Recipe, folder: Path) -> dict[str, Scores]:
    """Train the network, and score it with and without the linear discriminant."""
    changed = recipe.to_dict()
    changed["model"]["pixel_branch"] = True
    run = train(Recipe.from_dict(changed), folder, overwrite=True, force=True)
    model = load(run.model)
    model.pixel_branch = None
    return {MEAN: pick(run.metrics), NETWORK: pick(score_areas(ModelPredictor(model), open_areas(recipe)[1]))}


def measure_learner(recipe: Recipe, learner: str, folder: Path) -> dict[str, Scores]:
    """Fit a classical learner to the pixels that train in the recipe."""
    changed = recipe.to_dict() | {"model": {"architecture": learner}}
    return {learner: pick(train(Recipe.from_dict(changed), folder, overwrite=True, force=True).metrics)}


def measure(recipes: Path, names: list[str], seeds: int, out: Path) -> None:
    """Append what is missing to the file of results."""
    done = {(line["recipe"], line["training"], line["seed"]) for line in read(out)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name in names:
                for training in (*(LEARNERS if seed == 0 else ()), NETWORK):
                    if (name, training, seed) in done:
                        continue
                    recipe = Recipe.load(recipes / f"{name}.yaml", [f"train.seed={seed}"])
                    started = time.perf_counter()
                    if training == NETWORK:
                        scores = measure_network(recipe, Path(folder, "run"))
                    else:
                        scores = measure_learner(recipe, training, Path(folder, "run"))
                    seconds = round(time.perf_counter() - started)
                    line = {"recipe": name, "training": training, "seed": seed, "seconds": seconds, "scores": scores}
                    with out.open("a") as file:
                        print(json.dumps(line), file=file)
                    print(f"{name} {training} seed {seed}: {seconds} s {scores}", flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def describe(values: list[Scores]) -> str:
    """Return accuracy and mean IoU, with the standard deviation over seeds."""
    texts = []
    for name in ("overall_accuracy", "mean_iou"):
        found = [one[name] for one in values]
        texts.append(f"{np.mean(found):.3f}" + (f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""))
    return ", ".join(texts)


def render(lines: list[dict[str, Any]], names: list[str]) -> str:
    """Return the table as Markdown."""
    found: dict[tuple[str, str], list[Scores]] = defaultdict(list)
    for line in lines:
        for column, scores in line["scores"].items():
            found[line["recipe"], column].append(scores)
    columns = (*LEARNERS, NETWORK, MEAN)
    rows = [["recipe", *columns], ["---"] * (len(columns) + 1)]
    rows += [
        [name, *(describe(found[name, column]) if found[name, column] else "-" for column in columns)] for name in names
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("small_data.jsonl"))
    options = parser.parse_args()
    with place_recipes(options.data) as recipes:
        measure(recipes, options.recipes, options.seeds, options.out)
    print(render(read(options.out), options.recipes))


if __name__ == "__main__":
    main()
