"""Commands of the label loop: suggest windows to label, and read them back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkit.cli.mosaics import AsMosaic, OfOverlap, scenes_from
from segkit.cli.options import (
    AverageWith,
    Device,
    InPrecision,
    OnDevice,
    Overlap,
    Overwrite,
    Precision,
    Tile,
    Uncertainty,
)
from segkit.cli.output import emit
from segkit.cli.printing import print_table
from segkit.cli.root import app, examples
from segkit.io.remote import as_path

if TYPE_CHECKING:
    from segkit.labelling.collection import LabelCollection

_SHOWN = 10  # windows that suggest prints


class Differing(StrEnum):
    """What ground is on which files differ."""

    UNLABELLED = "unlabelled"
    FIRST = "first"


@app.command(
    epilog=examples(
        "segkit suggest to_label.yaml -n 4 --size 32px -o start.gpkg",
        "segkit suggest forest.safetensors scene.tif -n 4 --size 320m -o todo.gpkg",
        "segkit suggest forest.safetensors scene.tif -n 4 --size 32px --labelled todo.gpkg -o more.gpkg",
    )
)
def suggest(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RECIPE", help="Model file, or folder of all folds; without a model the recipe (.yaml)."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Windows to label (.gpkg).")],
    scenes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SCENE...]",
            parser=as_path,
            help="Rasters, folders or globs of them, or URLs (default: the training images of the recipe).",
        ),
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of windows.")] = 30,
    size: Annotated[str, typer.Option(metavar="LENGTH", help="Side of a window: 128px, 500m.")] = "128px",
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="With a model: leave out the ground that the labels of this recipe cover.",
        ),
    ] = None,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(
            "--labelled",
            metavar="FILE",
            help="Also leave out labelled ground: polygons, or an earlier file of windows. Repeatable.",
        ),
    ] = None,
    stack: Annotated[bool, typer.Option("--stack", help="The files are bands or dates of one scene.")] = False,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    average_with: AverageWith = None,
    uncertainty: Annotated[
        Uncertainty | None,
        typer.Option(help="Measure of uncertainty (default: entropy; of several models disagreement)."),
    ] = None,
    min_valid: Annotated[
        float, typer.Option("--min-valid", min=0, max=1, help="Share of the pixels of a window that must have data.")
    ] = 1.0,
    min_area: Annotated[
        str | None,
        typer.Option(
            "--min-area", metavar="AREA", help="Pre-labels: merge smaller regions into neighbours (default: 10px)."
        ),
    ] = None,
    simplify: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Pre-labels: how far borders may move (default: 1px).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed chooses the same windows.")] = 0,
    tile: Tile = None,
    overlap: Overlap = None,
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    overwrite: Overwrite = False,
) -> None:
    """Choose windows worth labelling next, and write them with pre-labels and forms for QGIS."""
    from segkit.labelling.suggestion import suggest as run

    if not scenes and (stack or mosaic or mosaic_overlap):
        raise typer.BadParameter(
            "is for scenes that are named; the recipe says it of its own", param_hint="--stack" if stack else "--mosaic"
        )
    made = run(
        [model, *average_with] if average_with else model,
        scenes_from(scenes, mosaic_overlap, stack=stack, mosaic=mosaic) if scenes else None,
        output,
        number=number,
        size=size,
        recipe=recipe,
        labelled=labelled or (),
        uncertainty=None if uncertainty is None else uncertainty.value,
        min_valid=min_valid,
        min_area=min_area,
        simplify=simplify,
        seed=seed,
        tile=tile,
        overlap=overlap,
        precision=precision.value,
        device=device.value,
        overwrite=overwrite,
        show_progress=True,
    )
    header = ("window", "scene", "row", "column", *([] if made.measure is None else [made.measure]))
    rows = [
        (
            *map(str, (one.id, one.scene, one.row, one.col)),
            *([] if one.uncertain is None else [f"{one.uncertain:.3f}"]),
        )
        for one in made.windows[:_SHOWN]
    ]
    print_table(header, rows)
    if len(made.windows) > _SHOWN:
        print(f"and {len(made.windows) - _SHOWN} more")
    print(
        f"\nchosen from {made.candidates:,} windows, by {made.features}; {made.labelled:,} have labelled ground, "
        f"{made.invalid:,} too few valid pixels"
    )
    if len(made.windows) < number:
        print(f"only {len(made.windows)} of {number} windows could be chosen without overlaps")
    for path in made.missing:
        print(f"{path} does not exist yet, so nothing in it counts as labelled")
    print(f"{made.path}: edit it in QGIS and set status to done, then: segkit labels {made.path} -o labels.gpkg")
    emit(made)


@app.command(
    epilog=examples("segkit labels done.gpkg -o labels.gpkg", "segkit labels done.gpkg second.gpkg -o both.gpkg")
)
def labels(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of segkit suggest, edited; also of several people.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Labels (.gpkg).")],
    differing: Annotated[
        Differing, typer.Option(help="Where files differ: unlabelled, or as in the first file.")
    ] = Differing.UNLABELLED,
    overwrite: Overwrite = False,
) -> None:
    """Check labelled windows, merge those of several people, and write them as labels for a training."""
    from segkit.labelling.collection import labels as run

    made = run(files, output, differing=differing.value, overwrite=overwrite, show_progress=True)
    print_table(("class", made.unit), [(name, f"{area:,.2f}") for name, area in made.area.items()])
    print(f"\nwindows: {', '.join(f'{count} {status}' for status, count in made.windows.items())}")
    if made.unlabelled:
        print(f"unlabelled in windows that are done: {made.unlabelled:,.2f} {made.unit}")
    _print_agreement(made)
    for note in made.notes:
        print(f"note: {note}")
    keys = ", ".join(f"{key}: {value}" for key, value in made.source.items())
    print(f"in the recipe, with a path relative to it: labels: {{{keys}}}")
    emit(made)


def _print_agreement(made: LabelCollection) -> None:
    for one in made.agreement:
        print(f"\n{one.one} and {one.other} both label {one.area:,.2f} {made.unit}")
        print_table(("class", "kappa"), [(name, "-" if k != k else f"{k:.3f}") for name, k in one.kappa.items()])
