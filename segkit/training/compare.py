"""Comparison: one recipe trained in variants, each with several seeds or folds, and how far the models agree."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.data.areas import examined, with_fold
from segkit.data.cache import Cache
from segkit.data.pairing import recipe_files
from segkit.data.split import Area, pieces
from segkit.errors import OutputExistsError, RecipeError, UsageError
from segkit.evaluation.decisions import Decider
from segkit.inference.settings import Options
from segkit.io.files import cell, check_apart, check_folder, discard, scratch, staged
from segkit.io.raster import PathLike
from segkit.models.run_folder import LAST, METRICS, MODEL, RECIPE, is_run_of
from segkit.models.segmenter import Segmenter, load
from segkit.plots.images import any_names
from segkit.recipe.schema import Recipe, parse_yaml, put
from segkit.runtime.progress import progress
from segkit.task.task import IGNORE
from segkit.training.train import check_names, run_files, train

_SPENT = "spent.json"
# Columns of the table: what each is called, and where it is found in a trial.
MEASURES = {
    "mean_iou": "mean IoU",
    "macro_f1": "F1",
    "overall_accuracy": "accuracy",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}
_PIECE = 1024  # pixels along a side of what is compared at once
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Trial:
    """One training.

    Parameters
    ----------
    variant
        What is particular about its recipe.
    seed, fold
        Of the training, and which fold validates ("0/5"); None where the recipe says.
    folder
        Its run.
    metrics
        On its validation areas, as in `metrics.json`.
    seconds, cpu_seconds
        That training took, on the clock and of all cores together; None where a killed process took its count along.
    """

    variant: str
    seed: int
    fold: str | None
    folder: Path
    metrics: dict[str, Any]
    seconds: float | None
    cpu_seconds: float | None

    def measure(self, key: str) -> float | None:
        """Return one of `MEASURES`; None where it is not defined."""
        found = getattr(self, key) if key in ("seconds", "cpu_seconds") else self.metrics[key]
        return None if found is None else float(found)


@dataclass(frozen=True)
class Measure:
    """A number over the trials in which it is defined.

    Parameters
    ----------
    mean
        None where it is defined in none.
    spread
        Standard deviation of the sample (of n - 1 degrees of freedom); None of less than two.
    values
        Of each trial that has one.
    """

    mean: float | None
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, found: Iterable[float | None]) -> Measure:
        """Summarise; what is None does not count."""
        values = tuple(value for value in found if value is not None)
        mean = float(np.mean(values)) if values else None
        return cls(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, values)


@dataclass(frozen=True)
class Row:
    """A variant: how many trials it has, and each of `MEASURES` over them."""

    variant: str
    trials: int
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Parameters
    ----------
    folder
        Holds compare.json, compare.csv, compare.png and the runs.
    rows
        One a variant.
    trials
        All trainings.
    agreement
        Share of the decisions in which two variants (rows and columns, as in `rows`) are alike, over the validation
        pixels whose label is known: the mean over seeds and folds. On the diagonal a variant is compared with itself
        trained with another seed; None with one seed.
    """

    folder: Path
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    agreement: tuple[tuple[float | None, ...], ...]

    @property
    def picture(self) -> Path:
        """The same as a picture."""
        return self.folder / "compare.png"


def compare(
    recipe: Recipe | PathLike,
    output: PathLike | None = None,
    *,
    heads: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    folds: Sequence[str] = (),
    overrides: Sequence[str] = (),
    force: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Train a recipe in variants and compare their scores, their cost and their decisions.

    Every combination of a head and of a value of each varied key is a variant; each is trained with every seed, in
    every fold. Trainings go one after the other and by turns, so that what slows the machine meets all variants.
    Finished ones in the folder are taken as they are, and those that were stopped go on.

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        Holds a run for each training, and the result; by default ``runs/NAME-compare``.
    heads
        "softmax", "sigmoid"; by default the recipe's.
    vary
        {key of the recipe: its values}: ``{"model.encoder": ["resnet18", "resnet34"]}``.
    seeds
        Of `train.seed`.
    folds
        "0/3", "1/3", ...: see `segkit.data.areas.with_fold`; by default `data.val` is as in the recipe.
    overrides
        ``"train.epochs=3"`` and the like, for a recipe file.
    force
        Train in spite of what `segkit.check` calls a problem.
    overwrite
        Train anew what is there.
    show_progress
        Tell about each training on stderr.

    Raises
    ------
    UsageError, DataError
        A variant is not valid, or does not validate on the same pixels as the others; nothing was trained.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    plans = _plans(
        base, Path(f"runs/{base.name}-compare" if output is None else output), heads, vary or {}, seeds, folds
    )
    folder = _check_folder(plans, output, overwrite=overwrite)
    written = [folder / f"compare{ending}" for ending in (".json", ".csv", ".png")]
    written += [file for plan in plans for file in run_files(plan.folder, plan.recipe)]
    read = [file for plan in plans for file in recipe_files(plan.recipe)]
    check_apart(written, [None if isinstance(recipe, Recipe) else recipe, *read], advice="name another folder (-o)")
    with Cache.opened(base.data.cache, show_progress=show_progress) as cache:
        ground = _Ground(cache, force=force)
        _check_alike(plans, ground)
        trials = []
        for number, plan in enumerate(plans, 1):
            if show_progress:
                done = ": finished already" if plan.finished and not overwrite else ""
                print(f"training {number} of {len(plans)}, {plan.folder}{done}", file=sys.stderr, flush=True)
            trials.append(_trial(plan, overwrite=overwrite, show_progress=show_progress))
        agreement = _agreement(folder, plans, ground, show_progress=show_progress)
    rows = [_row(variant, [trial for trial in trials if trial.variant == variant]) for variant in _variants(plans)]
    result = Comparison(folder, tuple(rows), tuple(trials), agreement)
    _write(result)
    return result


@dataclass(frozen=True, eq=False)
class _Plan:
    """A training to be done."""

    variant: str
    seed: int
    fold: str | None
    recipe: Recipe
    folder: Path

    @property
    def started(self) -> bool:
        return (self.folder / RECIPE).is_file()

    @property
    def same(self) -> bool:
        """Whether what is there is of this recipe."""
        return is_run_of(self.folder, self.recipe)

    @property
    def finished(self) -> bool:
        return self.started and self.same and (self.folder / MODEL).is_file()


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Read ``"train.learning_rate=1e-3,1e-4"`` and the like: a key of the recipe and its values as YAML.

    Raises
    ------
    UsageError
        There is no "=", no value, or the key stands twice.
    RecipeError
        The values are not YAML.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values or not all(key.split(".")):
            raise UsageError(f"--vary {text}: write it as key=value,value, for example model.encoder=resnet18,resnet34")
        if key in vary:
            raise UsageError(f"--vary {key} stands twice; name all its values in one")
        vary[key] = parse_yaml(f"[{values}]", f"--vary {text}")
    return vary


def _plans(
    base: Recipe,
    folder: Path,
    heads: Sequence[str],
    vary: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    folds: Sequence[str],
) -> list[_Plan]:
    """Make all recipes; variants follow each other most quickly."""
    if base.train.devices != 1 or base.train.num_nodes != 1:
        raise UsageError("compare trains on one device, so that times compare; set train.devices and num_nodes to 1")
    choices: dict[str, Sequence[Any]] = ({"task.head": heads} if heads else {}) | dict(vary)
    for what, values in {"seeds": seeds, "folds": folds, **choices}.items():
        told = [_told(value) for value in values]
        if what != "folds" and not told:
            raise UsageError(f"{what}: no value is given; name one or more")
        for value in told:
            if told.count(value) > 1:
                raise UsageError(f"{what}: {value} stands twice; name each value once")
    variants: dict[str, Recipe] = {}
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        variants[_name(changes) or base.name] = _changed(base, changes)
    slugs = _slugs(variants)
    plans = []
    for fold, seed in itertools.product(folds or (None,), seeds):
        for name, recipe in variants.items():
            seeded = _changed(recipe, {"train.seed": seed})
            place = folder / slugs[name] / (f"seed{seed}" + (f"-fold{fold.replace('/', 'of')}" if fold else ""))
            plans.append(_Plan(name, seed, fold, with_fold(seeded, fold) if fold else seeded, place))
    return plans


def _variants(plans: Sequence[_Plan]) -> list[str]:
    return list(dict.fromkeys(plan.variant for plan in plans))


def _name(changes: Mapping[str, Any]) -> str:
    """Call a variant by what it changes: a head by its name, others by the end of their key where that is enough."""
    ends = Counter(key.rpartition(".")[2] for key in changes)
    parts = []
    for key, value in changes.items():
        end = key.rpartition(".")[2]
        parts.append(_told(value) if key == "task.head" else f"{end if ends[end] == 1 else key}={_told(value)}")
    return ", ".join(parts)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slugs(names: Iterable[str]) -> dict[str, str]:
    """Return a folder's name for each variant, different on every file system."""
    slugs = {name: re.sub(r"[^\w.=+-]+", "-", name).strip("-.")[:80] for name in names}
    often = Counter(slug.casefold() for slug in slugs.values())
    return {
        name: slug if slug and often[slug.casefold()] == 1 else f"{slug}-{sha256(name.encode()).hexdigest()[:8]}"
        for name, slug in slugs.items()
    }


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values at some keys."""
    raw: Any = recipe.to_dict()
    for key, value in changes.items():
        place = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        try:
            put(raw, place, value, key)
        except RecipeError as error:
            raise RecipeError(f"{key}={_told(value)}: the recipe has no such place; see segkit schema") from error
    try:
        return Recipe.from_dict(raw)
    except RecipeError as error:
        told = ", ".join(f"{key}={_told(value)}" for key, value in changes.items())
        raise RecipeError(f"{told}: {str(error).removeprefix('recipe: ')}") from error


def _check_folder(plans: Sequence[_Plan], output: PathLike | None, *, overwrite: bool) -> Path:
    """Return the comparison's folder, and refuse one that holds runs of other recipes."""
    folder = plans[0].folder.parents[1]
    if output is not None or folder.exists():
        check_folder(folder, "comparison")
    for plan in plans:
        if plan.started and not overwrite and not plan.same:
            raise OutputExistsError(
                f"{plan.folder}: holds a run of another recipe; --overwrite trains it anew, -o names another folder"
            )
    return folder


class _Ground:
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


def _check_alike(plans: Sequence[_Plan], ground: _Ground) -> None:
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


def _trial(plan: _Plan, *, overwrite: bool, show_progress: bool) -> Trial:
    """Train what is not finished."""
    spent = plan.folder / _SPENT
    if overwrite or not plan.finished:
        if plan.started and not plan.same:
            discard(plan.folder)  # a model of another recipe must not be taken for this one's
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        resume = not overwrite and plan.started and (plan.folder / LAST).is_file()
        with _clocked(spent, resume=resume):
            # What is wrong with the data was refused before any training.
            train(plan.recipe, plan.folder, resume=resume, overwrite=True, force=True, show_progress=show_progress)
    cost = json.loads(spent.read_text()) if spent.is_file() else {"seconds": None, "cpu_seconds": None}
    metrics = json.loads((plan.folder / METRICS).read_text())
    return Trial(plan.variant, plan.seed, plan.fold, plan.folder, metrics, **cost)


@contextmanager
def _clocked(file: Path, *, resume: bool) -> Iterator[None]:
    """Write what the block takes, and what it took before it was stopped; nothing where that is not known."""
    before = {"seconds": 0.0, "cpu_seconds": 0.0}
    if resume:
        before = json.loads(file.read_text()) if file.is_file() else {}
    file.unlink(missing_ok=True)  # who is killed leaves none
    clock, cpu = time.monotonic(), sum(os.times()[:4])
    try:
        yield
    finally:
        if before and file.parent.is_dir():
            took = {"seconds": time.monotonic() - clock, "cpu_seconds": sum(os.times()[:4]) - cpu}
            with staged(file) as part:
                part.write_text(json.dumps({key: before[key] + took[key] for key in took}))


def _row(variant: str, trials: Sequence[Trial]) -> Row:
    return Row(variant, len(trials), {key: Measure.of(trial.measure(key) for trial in trials) for key in MEASURES})


def _agreement(
    folder: Path, plans: Sequence[_Plan], ground: _Ground, *, show_progress: bool
) -> tuple[tuple[float | None, ...], ...]:
    """Return the mean agreement of each two variants; see `Comparison`."""
    variants = _variants(plans)
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
    folder: Path, plans: Sequence[_Plan], pairs: Sequence[tuple[int, int]], ground: _Ground, *, show_progress: bool
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
                _keep(room / f"{number}-{place}", decider, area, kept)
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


def _keep(path: Path, decider: Decider, area: Area, kept: np.dtype[Any]) -> None:
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


def _write(result: Comparison) -> None:
    """Write the picture, the table and all of it, which is there last."""
    with staged(result.picture) as part:
        _draw(result, part)
    with staged(result.folder / "compare.csv") as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "trials", *(f"{key}{end}" for key in MEASURES for end in ("", "_spread"))])
        for row in result.rows:
            numbers = [value for key in MEASURES for value in (row.measures[key].mean, row.measures[key].spread)]
            writer.writerow(
                [cell(row.variant), row.trials, *("" if value is None else repr(value) for value in numbers)]
            )
    trials = [asdict(trial) | {"folder": str(trial.folder.relative_to(result.folder))} for trial in result.trials]
    told = {
        "variants": [asdict(row) for row in result.rows],
        "agreement": {"labels": [row.variant for row in result.rows], "matrix": result.agreement},
        "trials": trials,
    }
    with staged(result.folder / "compare.json") as part:
        part.write_text(json.dumps(told, indent=2))


@any_names()
def _draw(result: Comparison, path: Path) -> None:
    """Draw scores and seconds with their spread and every trial, and the matrix of agreement."""
    from matplotlib.figure import Figure

    names, count = [row.variant.replace(", ", "\n") for row in result.rows], len(result.rows)
    lines = max(name.count("\n") + 1 for name in names)
    shown = [key for key in MEASURES if key != "cpu_seconds"]
    side = 1.6 + 0.75 * count
    figure = Figure(
        figsize=(2.1 * len(shown) + side + 2, max(2.6, 1.5 + count * (0.28 + 0.24 * lines))), layout="constrained"
    )
    axes = figure.subplots(1, len(shown) + 1, width_ratios=[2.1] * len(shown) + [side])
    for ax, key in zip(axes, shown, strict=False):
        for place, row in enumerate(result.rows):
            measure, color = row.measures[key], _COLORS[place % len(_COLORS)]
            if measure.mean is None:
                continue
            ax.plot(measure.values, [place + 0.2] * len(measure.values), ".", color=color, alpha=0.55, ms=7, mew=0)
            ax.errorbar(measure.mean, place, xerr=measure.spread, fmt="D", color=color, ms=6, capsize=4, lw=1.8)
            ax.annotate(
                _short(measure.mean, key),
                (measure.mean, place),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        ax.set(yticks=range(count), yticklabels=names if ax is axes[0] else [], ylim=(count - 0.4, -0.6))
        ax.set_title(MEASURES[key], fontsize=10)
        ax.margins(x=0.25)
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    _draw_matrix(axes[-1], result, names)
    trials = {row.trials for row in result.rows}
    told = f"{min(trials)} trainings each" if len(trials) == 1 and max(trials) > 1 else "one training each"
    figure.supxlabel(f"diamond and bar: mean and standard deviation, dots: single trainings ({told})", fontsize=8)
    figure.savefig(path, dpi=130)


def _draw_matrix(ax: Any, result: Comparison, names: Sequence[str]) -> None:
    shares = np.array([[np.nan if each is None else each for each in row] for row in result.agreement], dtype=float)
    ax.set_facecolor("#eeeeee")
    low = np.nanmin(shares) if np.isfinite(shares).any() else 0.0
    ax.imshow(shares, cmap="cividis", vmin=min(low, 0.99) - 0.02, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        dark = np.isfinite(share) and share < (1 + min(low, 0.99)) / 2
        told = f"{share:.1%}" if np.isfinite(share) else "-"
        ax.text(column, row, told, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ticks = range(len(names))
    ax.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
    ax.tick_params(labelsize=8, length=0)
    ax.set_title("decided alike\n(diagonal: with another seed)", fontsize=10)


def _short(value: float, key: str) -> str:
    return f"{value:.3g}" if key == "seconds" else f"{value:.3f}"
