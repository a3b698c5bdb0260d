"""Export: an estimate as a table, JSON or a picture, by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segkit.assess.estimation import Estimate
from segkit.errors import UsageError
from segkit.files import check_output, staged
from segkit.raster import PathLike

_MAPPED, _ESTIMATED = "#bdbdbd", "#2b6cb0"  # differ in lightness, too


def write_estimate(estimate: Estimate, output: PathLike, *, overwrite: bool = False) -> Path:
    """Write an estimate: .json (everything), .csv (a row a class) or .png (areas as bars with error bars).

    Raises
    ------
    UsageError, OutputExistsError
        The ending is another one, or the file is there and `overwrite` is false.
    """
    target = check_estimate_output(output, overwrite=overwrite)
    with staged(target) as part:
        _WRITERS[target.suffix.lower()](estimate, part)
    return target


def check_estimate_output(output: PathLike, *, overwrite: bool) -> Path:
    """Refuse what `write_estimate` would refuse, before anything is computed."""
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() not in _WRITERS:
        raise UsageError(f"{target}: an estimate is written as {', '.join(_WRITERS)}; name a file that ends so")
    return target


def _write_json(estimate: Estimate, path: Path) -> None:
    path.write_text(json.dumps(estimate.summary(), indent=2))


def _write_csv(estimate: Estimate, path: Path) -> None:
    estimate.table().to_csv(path, index=False)


def _draw(estimate: Estimate, path: Path) -> None:
    """Draw what the map shows beside what is estimated, with 95 % intervals, and the accuracies below."""
    from matplotlib.figure import Figure

    names, places = estimate.classes, np.arange(len(estimate.classes))
    figure = Figure(figsize=(max(6, 1.1 * len(names) + 3), 7), layout="constrained")
    areas, accuracies = figure.subplots(2, 1, sharex=True)
    shown = np.nan_to_num(estimate.mapped_area)
    areas.bar(places - 0.2, shown, 0.38, color=_MAPPED, label="pixels of the map")
    areas.bar(places + 0.2, estimate.area, 0.38, color=_ESTIMATED, label="estimated, with 95 % interval")
    areas.errorbar(places + 0.2, estimate.area, estimate.area_ci, fmt="none", ecolor="black", capsize=4)
    areas.set_ylabel("hectares")
    areas.legend(frameon=False)
    for shift, (label, value, half) in zip(
        (-0.12, 0.12),
        (
            ("user's accuracy", estimate.users, estimate.users_ci),
            ("producer's accuracy", estimate.producers, estimate.producers_ci),
        ),
        strict=True,
    ):
        mark = "o" if shift < 0 else "s"
        accuracies.errorbar(
            places + shift, value, half, fmt=mark, color=_ESTIMATED, ecolor="black", capsize=4, label=label
        )
    accuracies.axhline(estimate.overall, color="0.5", linewidth=1)
    accuracies.set_ylim(0, 1.02)
    accuracies.set_ylabel("accuracy")
    accuracies.legend(frameon=False, loc="lower right")
    accuracies.set_xticks(places, names, rotation=0 if len(names) < 7 else 45)
    error = "" if not np.isfinite(estimate.overall_ci) else f" ± {estimate.overall_ci:.3f}"
    figure.suptitle(f"overall accuracy {estimate.overall:.3f}{error}, {int(estimate.counts.sum())} samples")
    for axes in (areas, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


_WRITERS: dict[str, Callable[[Estimate, Path], None]] = {".json": _write_json, ".csv": _write_csv, ".png": _draw}
