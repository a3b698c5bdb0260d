"""The options of commands that read files side by side as one raster."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class MosaicOverlap(StrEnum):
    """Which file of a mosaic a pixel of several files is from."""

    FIRST = "first"
    LAST = "last"
    MEAN = "mean"


AsMosaic = Annotated[
    bool, typer.Option("--mosaic", help="Files, or those of a folder or glob, lie side by side: they are one raster.")
]
OfOverlap = Annotated[
    MosaicOverlap | None,
    typer.Option(
        "--mosaic-overlap",
        help="Where files of a mosaic overlap: use one of them, or the mean (images); default: an error.",
    ),
]


def one_raster(paths: Sequence[Path], overlap: MosaicOverlap | None, *, mosaic: bool, what: str) -> Path:
    """Return the single path of an argument, or all of its paths as one mosaic.

    Raises
    ------
    typer.BadParameter
        There are several, but they are no mosaic; `what` names one of them.
    """
    from segkit.io.mosaic import Mosaic

    check_overlap(overlap, mosaic=mosaic)
    if mosaic:
        return Mosaic(paths, None if overlap is None else overlap.value)
    if len(paths) > 1:
        raise typer.BadParameter(
            f"found {len(paths)}; give one {what}, or add --mosaic if they lie side by side and are one",
            param_hint=what,
        )
    return paths[0]


def each_raster(paths: Sequence[Path], overlap: MosaicOverlap | None, *, mosaic: bool) -> list[Path]:
    """Return paths of which each is one raster: with `mosaic`, a folder or a glob is a mosaic."""
    from segkit.io.mosaic import Mosaic

    check_overlap(overlap, mosaic=mosaic)
    rule = None if overlap is None else overlap.value
    several = [mosaic and (path.is_dir() or (glob.has_magic(str(path)) and not path.exists())) for path in paths]
    return [Mosaic(path, rule) if many else path for path, many in zip(paths, several, strict=True)]


def check_overlap(overlap: MosaicOverlap | None, *, mosaic: bool) -> None:
    """Raise an error if the option for overlaps is given without a mosaic."""
    if overlap is not None and not mosaic:
        raise typer.BadParameter("is for files that lie side by side; add --mosaic", param_hint="--mosaic-overlap")


def scenes_from(paths: list[Path], overlap: MosaicOverlap | None, *, stack: bool, mosaic: bool) -> Any:
    """Return scenes as `predict` and `evaluate` take them."""
    if stack:
        return [each_raster(paths, overlap, mosaic=mosaic)]
    if mosaic:
        return one_raster(paths, overlap, mosaic=mosaic, what="scene")
    check_overlap(overlap, mosaic=mosaic)
    return paths[0] if len(paths) == 1 else paths
