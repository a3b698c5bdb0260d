"""Plant label errors in real and synthetic sets, audit them, and count how many are found; print a table.

    .venv/bin/python tools/bench_audit.py --data ../shared/data                        # an hour on one core
    .venv/bin/python tools/bench_audit.py --data ../shared/data flanders --learner lda # a minute

Of each set, 5 % of the objects are given another class: connected segments of the labels, cut into blocks of 64 pixels
so that a forest of a whole scene is many objects. Then the list of `segkit.audit` is read from the top. An object is
found if at least half of its pixels lie in one of the first findings, which proposes its true class. How many findings
are read is 5 % and 10 % of the number of all objects. "Area found" is the share of their pixels that lie in these.

"Corrected": the first findings (10 %) are looked at by somebody who knows the truth. A quick learner is then fitted to
the noisy, the corrected and the clean labels, and scored on clean labels elsewhere.

"Shift": another audit, in which the labels of one scene lie 2 pixels to the right; "before" is its offset without that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.features import rasterize

from segkit.auditing.label_audit import audit
from segkit.auditing.results import Audit
from segkit.auditing.segments import label_segments
from segkit.demo.landscape.canvas import LandCover
from segkit.demo.landscape.scene import make_landscape
from segkit.evaluation.evaluate import evaluate
from segkit.recipe.schema import Recipe
from segkit.training.train import train

BLOCK, MIN_PIXELS, SHARE, SHIFT = 64, 30, 0.05, 2
SHARES = (0.05, 0.1)
LEARNER = {"architecture": "lda", "features": {"texture": [3, 7]}}


@dataclass(frozen=True)
class Case:
    """Images and labels of a set, those to score on, and the task of a recipe."""

    images: list[Path]
    labels: list[Path]
    test_images: list[Path]
    test_labels: list[Path]
    task: dict[str, Any]
    codes: tuple[int, ...]
    ignore: tuple[int, ...] = (255,)


def binary(name: str) -> dict[str, Any]:
    return {"type": "binary", "classes": [{"name": name, "value": 1}]}


def flanders(data: Path, scenes: int, folder: Path, seed: int) -> Case:
    folder = data / "flanders"
    image, mask = next(folder.glob("*_min_byte.tif")), folder / "fields_mask_ignore255.tif"
    return Case([image], [mask], [image], [mask], binary("field"), (0, 1))


def amazon(data: Path, scenes: int, folder: Path, seed: int) -> Case:
    images = sorted((data / "amazon" / "images").glob("*.tif"))
    labels = [data / "amazon" / "labels" / image.name for image in images]
    end = min(scenes, len(images) - 1)
    rest = slice(end, end + max(1, scenes // 3))
    return Case(images[:end], labels[:end], images[rest], labels[rest], binary("deforestation"), (0, 1))


def landscape(data: Path, scenes: int, folder: Path, seed: int) -> Case:
    files = make_landscape(folder, width=1024, height=768, seed=seed)
    classes = [{"name": cover.name.lower(), "value": int(cover)} for cover in LandCover if cover is not LandCover.OTHER]
    task = {"type": "multiclass", "classes": classes}
    codes = tuple(int(cover) for cover in LandCover)
    west, east = files.train, files.heldout
    return Case([west.scene_2024], [west.landcover], [east.scene_2024], [east.landcover], task, codes)


CASES = {"flanders": flanders, "amazon": amazon, "landscape": landscape}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def write(path: Path, labels: np.ndarray, like: Path) -> None:
    with rasterio.open(like) as file:
        profile = file.profile
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as file:
        file.write(labels[None])


def cut_objects(labels: np.ndarray, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of each pixel (-1: none), and the objects that are large enough."""
    row, column = (np.arange(size) // BLOCK for size in labels.shape)
    block = row[:, None] * len(column) + column
    codes = np.where(np.isin(labels, case.codes), block * 1000 + labels.astype(np.int64), -1)
    numbers, count = label_segments(codes)
    pixels = np.bincount(numbers[numbers >= 0], minlength=count)
    return numbers, np.flatnonzero(pixels >= MIN_PIXELS)


def plant(case: Case, seed: int) -> tuple[list[np.ndarray], list[tuple[int, np.ndarray, int]], int]:
    """Give some objects another class; returns the labels, (scene, mask, true code) of each, and the objects in all."""
    random = np.random.default_rng(seed)
    noisy = [read(path) for path in case.labels]
    cut = [cut_objects(labels, case) for labels in noisy]
    every = [(scene, int(number)) for scene, (_, large) in enumerate(cut) for number in large]
    planted = []
    for index in random.choice(len(every), round(SHARE * len(every)), replace=False):
        scene, number = every[index]
        mask = cut[scene][0] == number
        true = int(noisy[scene][mask][0])
        noisy[scene] = np.where(mask, random.choice([code for code in case.codes if code != true]), noisy[scene])
        planted.append((scene, mask, true))
    return noisy, planted, len(every)


def make_recipe(case: Case, labels: list[Path], learner: dict[str, Any] | None = None) -> Recipe:
    raw = {
        "name": "audit",
        "task": case.task,
        "data": {
            "train": {"images": [str(path) for path in case.images], "labels": [str(path) for path in labels]},
            "val": None,
            "ignore": list(case.ignore),
            "cache": 0,
        },
        "train": {"checkpoint": "last", "tile_size": 64, "baselines": []},
    }
    return Recipe.from_dict(raw | ({"model": learner} if learner else {}))


def write_all(folder: Path, labels: list[np.ndarray], case: Case) -> list[Path]:
    """Write labels with the names of the images."""
    paths = [folder / f"{image.stem}.tif" for image in case.images]
    for path, values, like in zip(paths, labels, case.labels, strict=True):
        write(path, values, like)
    return paths


def ranks(found: Audit, case: Case, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each scene where the first findings lie, and the codes that they propose."""
    codes = {one["name"]: one["value"] for one in case.task["classes"]} | {"background": 0}
    for number, path in enumerate(case.labels):
        with rasterio.open(path) as file:
            shape, transform = file.shape, file.transform
        proposed = np.full(shape, -1, dtype=np.int32)
        for one in found.findings[:first][::-1]:
            if one.scene_number == number and one.proposed in codes and one.kind != "swapped":
                shapes = [(one.polygon, codes[one.proposed])]
                rasterize(shapes, out=proposed, transform=transform)
        yield proposed >= 0, proposed


def measure(name: str, case: Case, learner: str, seed: int, folder: Path) -> dict[str, Any]:
    """Audit planted errors and a shift, and score learners; returns the numbers of the table."""
    noisy, planted, objects = plant(case, seed)
    started = time.process_time()
    found = audit(
        make_recipe(case, write_all(folder / "noisy", noisy, case)), folder / "audit", learner=learner, overwrite=True
    )
    result: dict[str, Any] = {"set": name, "learner": learner, "seed": seed, "objects": objects}
    result |= {"planted": len(planted), "findings": len(found.findings)}
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    for share in SHARES:
        places = list(ranks(found, case, round(share * objects)))
        covered = [int((places[scene][1][mask] == true).sum()) for scene, mask, true in planted]
        sizes = [int(mask.sum()) for _, mask, _ in planted]
        hits = [2 * found_pixels >= size for found_pixels, size in zip(covered, sizes, strict=True)]
        result[f"found_{share:.0%}"] = round(float(np.mean(hits)), 3)
        result[f"area_found_{share:.0%}"] = round(sum(covered) / sum(sizes), 3)
    wrong = [np.zeros(labels.shape, dtype=bool) for labels in noisy]
    for scene, mask, _ in planted:
        wrong[scene] |= mask
    result["planted_pixels"] = round(sum(map(np.sum, wrong)) / sum((~np.isin(x, case.ignore)).sum() for x in noisy), 4)
    total = sum(one.pixels for one in found.errors.values())
    result["estimated"] = round(sum(one.pixels * (one.share or 0) for one in found.errors.values()) / total, 4)
    clean = [read(path) for path in case.labels]
    checked = [place for place, _ in ranks(found, case, round(SHARES[-1] * objects))]
    corrected = [np.where(place, truth, labels) for place, truth, labels in zip(checked, clean, noisy, strict=True)]
    for kind, labels in (("noisy", noisy), ("corrected", corrected), ("clean", clean)):
        recipe = make_recipe(case, write_all(folder / kind, labels, case), LEARNER)
        run = train(recipe, folder / "run", overwrite=True, force=True)
        scores = evaluate(run.model, [str(path) for path in case.test_images], [str(path) for path in case.test_labels])
        result[f"iou_{kind}"] = round(scores["mean_iou"], 4)
    shifted = [*clean]
    shifted[0] = np.roll(clean[0], SHIFT, axis=1)
    moved = audit(
        make_recipe(case, write_all(folder / "shifted", shifted, case)), folder / "moved", learner=learner,
        overwrite=True, folds=3,
    )  # fmt: skip
    result["shift_before"], result["shift"] = (_shift(each.scenes[0]) for each in (found, moved))
    result["other_shifts"] = [_shift(scene) for scene in moved.scenes[1:]]
    return result


def _shift(scene: Any) -> list[float] | None:
    return None if scene.shift is None else [round(scene.shift.x, 2), round(scene.shift.y, 2), scene.shift.error_x]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sets")
    parser.add_argument("--learner", default="forest", help="of segkit audit")
    parser.add_argument("--scenes", type=int, default=20, help="scenes of amazon to audit")
    parser.add_argument("--seeds", type=int, default=1, help="of the errors, and of the sample landscape")
    options = parser.parse_args()
    for name in options.sets or list(CASES):
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                case = CASES[name](options.data, options.scenes, Path(folder, "set"), seed)
                print(json.dumps(measure(name, case, options.learner, seed, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
