"""How many validation pixels trained variants decide alike."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.data.area import Area, pieces
from segkit.data.areas import examined
from segkit.data.cache import Cache
from segkit.errors import UsageError
from segkit.evaluation.decisions import Decider
from segkit.inference.settings import Options
from segkit.io.files import scratch
from segkit.models.run_folder import MODEL
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.schema import Recipe
from segkit.runtime.progress import progress
from segkit.task.task import IGNORE
from segkit.training.comparison import Measure
from segkit.training.train import check_names
from segkit.training.variants import TrialPlan, variant_names

_PIECE = 1024  # pixels along a side of what is compared at once


class ValidationAreas:
    """What recipes train and validate on; opened once for all that share it."""

    def __init__(self, cache: Cache | None, *, force: bool) -> None:
        self._cache, self._force = cache, force
        self._known: dict[str, tuple[Sequence[Area], Sequence[Area]]] = {}

    def areas(self, recipe: Recipe) -> tuple[Sequence[Area], Sequence[Area]]:
        """Return training and validation areas; refuse those with problems, unless they are to be put up with."""
        raw = recipe.to_dict()
        key = json.dumps([raw["data"], raw["task"] | {"head": None}, recipe.train.tile_size])
        if key not in self._known:
            found = examined(recipe, cache=self._cache)
            found.refuse(force=self._force)
            self._known[key] = found.training, found.validation
        return self._known[key]

    def told(self, recipe: Recipe) -> Any:
        """Return what decides which pixels are validated against what."""
        where = [
            (
                area.sample.scene.paths,
                area.sample.scene.grid,
                shapely.to_wkb(area.cover.shapes).tolist(),
                area.labels.name,
            )
            for area in self.areas(recipe)[1]
        ]
        return where, [(row["name"], row["value"]) for row in recipe.task.legend], recipe.task.type, recipe.data.ignore


def check_alike(plans: Sequence[TrialPlan], ground: ValidationAreas) -> None:
    """Refuse variants that cannot be built or compared, before any of them is trained."""
    built = set()
    for fold in dict.fromkeys(plan.fold for plan in plans):
        mine = [plan for plan in plans if plan.fold == fold]
        first = ground.told(mine[0].recipe)
        for plan in mine:
            check_names(plan.recipe)
            training, validation = ground.areas(plan.recipe)
            if not validation:
                raise UsageError("data.val is null, so there is nothing to compare on; give data.val, or --fold")
            if ground.told(plan.recipe) != first:
                raise UsageError(
                    f"{plan.variant} validates on other pixels or classes than {mine[0].variant}, so their scores do "
                    "not compare; give data.val scenes of its own (images, labels), or vary something else"
                )
            names = training[0].sample.scene.band_names
            network = json.dumps([plan.recipe.to_dict()["model"], plan.recipe.task.channels, len(names)])
            if network not in built:
                Segmenter(plan.recipe, [0.0] * len(names), [1.0] * len(names), names, pretrained=False)
                built.add(network)


def measure_agreement(
    folder: Path, plans: Sequence[TrialPlan], ground: ValidationAreas, *, show_progress: bool
) -> tuple[tuple[float | None, ...], ...]:
    """Return the mean agreement of each two variants; see `Comparison`."""
    variants = variant_names(plans)
    shares: dict[tuple[str, str], list[float]] = {(one, other): [] for one in variants for other in variants}
    for fold in dict.fromkeys(plan.fold for plan in plans):
        mine = [plan for plan in plans if plan.fold == fold]
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(mine)), 2)
            if (mine[a].variant == mine[b].variant) != (mine[a].seed == mine[b].seed)
        ]
        if not pairs:
            continue
        alike, known = _count_alike(folder, mine, pairs, ground, show_progress=show_progress)
        for pair, same, all_ in zip(pairs, alike, known, strict=True):
            one, other = (mine[place].variant for place in pair)
            for key in {(one, other), (other, one)} if all_ else ():
                shares[key].append(same / all_)
    return tuple(tuple(Measure.of(shares[one, other]).mean for other in variants) for one in variants)


def _count_alike(
    folder: Path,
    plans: Sequence[TrialPlan],
    pairs: Sequence[tuple[int, int]],
    ground: ValidationAreas,
    *,
    show_progress: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for each pair of plans, the decisions that are alike and all of them.

    The decisions of one model after the other go to files, whole scenes each, so that memory holds one model and a
    window of every map.
    """
    alike, known = np.zeros((2, len(pairs)), dtype=np.int64)
    recipe = plans[0].recipe
    kept = np.dtype("uint8" if len(recipe.task.categories) < 255 else "uint16")
    parts = ground.areas(recipe)[1]
    with scratch(folder, "agreement") as room, progress("agreement", len(plans), "models", show=show_progress) as step:
        for number, plan in enumerate(plans):
            decider = Decider(load(plan.folder / MODEL), Options(device=plan.recipe.train.device))
            for place, area in enumerate(ground.areas(plan.recipe)[1]):
                store_decisions(room / f"{number}-{place}", decider, area, kept)
            step(1)
        for place, area in enumerate(parts):
            shape = (recipe.task.planes, *area.sample.scene.grid.shape)
            maps = [np.memmap(room / f"{number}-{place}", kept, "r", shape=shape) for number in range(len(plans))]
            for window in pieces(area.windows, _PIECE):
                read = [np.asarray(each[:, *window.toslices()]) for each in maps]
                for which, (a, b) in enumerate(pairs):
                    both = (read[a] > 0) & (read[b] > 0)
                    known[which] += both.sum()
                    alike[which] += (both & (read[a] == read[b])).sum()
    return alike, known


def store_decisions(path: Path, decider: Decider, area: Area, kept: np.dtype[Any]) -> None:
    """Write an area's decisions as a plain array (P, H, W) of its scene: category + 1, and 0 where none counts.

    It is written row by row: a full disk kills who writes to mapped memory.
    """
    height, width = area.sample.scene.grid.shape
    with path.open("wb") as file:
        file.truncate(area.labels.task.planes * height * width * kept.itemsize)
        for part in decider(area):
            values = np.where(part.truth == IGNORE, 0, part.planes + 1).astype(kept)
            for plane, rows in enumerate(values):
                for row, line in enumerate(rows, int(part.window.row_off)):
                    file.seek(((plane * height + row) * width + int(part.window.col_off)) * kept.itemsize)
                    file.write(np.ascontiguousarray(line).data)
