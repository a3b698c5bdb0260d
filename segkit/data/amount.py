"""Whether labels and steps are enough: warnings of check and train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segkit.data.labels.open import has_features
from segkit.data.pairing import Sample
from segkit.io.points import is_point_table
from segkit.io.remote import as_path
from segkit.plots.text import format_percent
from segkit.recipe.schema import Train

_MIN_TRAIN, _MIN_VAL = 20, 10  # pixels of a class; with fewer, its scores are chance
_MIN_LEFT = 0.5  # share of the labelled pixels that a split and its gap should leave
_MAX_OUTSIDE = 0.9  # share of the labelled pixels outside all polygons
# The sample landscape is learned in 90 steps (mean IoU 0.94); real data take more.
_MIN_EPOCH_STEPS, _MIN_STEPS = 5, 80


def default_steps(pixels: int, tile_size: int, batch_size: int) -> int:
    """Return the steps of an epoch that cover a number of labelled pixels once."""
    return max(1, round(pixels / tile_size**2 / batch_size))


def describe_few_steps(settings: Train, tile_size: int, pixels: int) -> str | None:
    """Return a warning if an epoch, or the whole training, has too few steps to learn from; else None.

    Parameters
    ----------
    tile_size
        Side of the tiles, which may be larger than in the recipe.
    pixels
        Labelled training pixels.
    """
    steps = settings.steps_per_epoch or default_steps(pixels, tile_size, settings.batch_size)
    total = steps * settings.epochs
    if total >= _MIN_STEPS and (steps >= _MIN_EPOCH_STEPS or settings.steps_per_epoch is not None):
        return None
    enough = max(_MIN_EPOCH_STEPS, -(-600 // settings.epochs))
    advice = (
        f"set train.steps_per_epoch: {enough}"
        if steps < enough
        else f"set train.epochs to {-(-600 // steps)} or so, or use more steps in each (train.steps_per_epoch)"
    )
    return (
        f"an epoch has {steps} step{'s' * (steps != 1)} of {settings.batch_size} tiles and the training {total:,}, "
        f"hardly enough for a network to learn; {advice}"
    )


def describe_little_left(
    names: Sequence[str], training: Sequence[int], validation: Sequence[int], labelled: int
) -> Iterator[str]:
    """Yield warnings about a split that leaves few labelled pixels, of all classes or of some.

    Parameters
    ----------
    names, training, validation
        Names of the classes, and their pixels on both sides.
    labelled
        Labelled pixels before the split, counted as `training` and `validation` are.
    """
    used = sum(training) + sum(validation)
    if used < _MIN_LEFT * labelled:
        yield (
            f"the gap around validation areas takes {format_percent(1 - used / labelled)} of the labelled pixels; make "
            "data.val.gap smaller, or data.val.block larger"
        )
    few = [
        f"{name!r} {train:,} and {val:,}"
        for name, train, val in zip(names, training, validation, strict=True)
        if 0 < train < _MIN_TRAIN or 0 < val < _MIN_VAL
    ]
    if few:
        yield f"few pixels train and validate: {', '.join(few)}; scores of such classes are mostly chance; label more"


def describe_outside(samples: Sequence[Sample], background: int, labelled: int, *, others: int) -> str | None:
    """Return a warning if most labelled pixels are background only because they lie outside all polygons; else None.

    Parameters
    ----------
    background, labelled
        Pixels of background and of all categories.
    others
        Number of classes besides background.
    """
    by_default = any(
        source.outside_polygons is None and not source.fractions and _are_polygons(source.paths)
        for sample in samples
        for source in sample.label_sources
    )
    if not by_default or background < _MAX_OUTSIDE * labelled:
        return None
    ignore = "labels.outside_polygons: ignore and task.background: false"
    if others == 1:
        ignore = "labels.outside_polygons: ignore, and draw polygons of background"
    return (
        f"{format_percent(background / labelled)} of the labelled pixels are outside the polygons and count as "
        f"background; if nobody looked there, set {ignore}; if they are background, say so: "
        "labels.outside_polygons: background"
    )


def _are_polygons(paths: Sequence[object]) -> bool:
    files = [as_path(str(path)) for path in paths]
    return bool(files) and all(has_features(file) and not is_point_table(file) for file in files)
