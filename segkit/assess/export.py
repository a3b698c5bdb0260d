"""Write an estimate as JSON, CSV or PNG; the file extension selects the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from segkit.assess.estimation import Estimate
from segkit.errors import UsageError
from segkit.io.files import atomic_write, check_output, escape_formula
from segkit.io.paths import PathLike
from segkit.plots import area_bars, style


def write_estimate(estimate: Estimate, output: PathLike, *, overwrite: bool = False) -> Path:
    """Write an estimate: .json (all estimates), .csv (a row per class) or .png (bar chart of areas with error bars).

    Raises
    ------
    UsageError, OutputExistsError
        Another file extension, or the file exists and `overwrite` is false.
    """
    target = check_estimate_output(output, overwrite=overwrite)
    with atomic_write(target) as part:
        _WRITERS[target.suffix.lower()](estimate, part)
    return target


def check_estimate_output(output: PathLike, *, overwrite: bool) -> Path:
    """Raise the errors of `write_estimate` before anything is computed."""
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"{target}: estimates are written as {', '.join(_WRITERS)}; give a file name with one of these extensions"
        )
    return target


def _write_json(estimate: Estimate, path: Path) -> None:
    path.write_text(json.dumps(estimate.summary(), indent=2), encoding="utf-8")


def _write_csv(estimate: Estimate, path: Path) -> None:
    table = estimate.table()
    table.assign(**{"class": table["class"].map(escape_formula)}).to_csv(path, index=False)


def _write_png(estimate: Estimate, path: Path) -> None:
    style.write_png(area_bars.estimated_areas(estimate.summary()), path)


_WRITERS: dict[str, Callable[[Estimate, Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".png": _write_png,
}
