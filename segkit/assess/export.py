"""Export: an estimate as a table, JSON or a picture, by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from segkit.assess.estimation import Estimate
from segkit.errors import UsageError
from segkit.io.files import cell, check_output, staged
from segkit.io.raster import PathLike
from segkit.plots import area_bars, style


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
    table = estimate.table()
    table.assign(**{"class": table["class"].map(cell)}).to_csv(path, index=False)


def _write_picture(estimate: Estimate, path: Path) -> None:
    style.png(area_bars.areas(estimate.summary()), path)


_WRITERS: dict[str, Callable[[Estimate, Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".png": _write_picture,
}
