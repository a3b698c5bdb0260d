"""Commands that only show something: info, encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.mosaics import AsMosaic, OfOverlap, one_raster
from segkit.cli.options import Overwrite
from segkit.cli.output import emit
from segkit.cli.printing import print_table
from segkit.cli.root import app, examples
from segkit.io.remote import as_path


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit info forest.safetensors",
        "segkit info scene.tif --json",
        "segkit info forest.safetensors --stac forest.json",
    ),
)
def info(
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", parser=as_path, help="Model, run folder, map, raster or vector file; several with --mosaic."
        ),
    ],
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    stac: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Also write a STAC item of a model (.json).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what a file is: classes, bands, grid, network, scores; from its metadata."""
    from segkit.reporting.file_info import info as run

    if overwrite and stac is None:
        raise typer.BadParameter("replaces a STAC item, and none is written (--stac)", param_hint="--overwrite")
    found = run(one_raster(file, mosaic_overlap, mosaic=mosaic, what="FILE"), stac=stac, overwrite=overwrite)
    print(found.render() + ("" if stac is None else f"\n\n{stac}"))
    emit({"kind": found.kind, "path": found.path, **found.facts} | ({} if stac is None else {"stac": stac}))


@app.command(prints_result=True, epilog=examples("segkit encoders mobilenetv3_small"))
def encoders(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern with *: also those of timm.")
    ] = None,
) -> None:
    """List encoders and architectures that a recipe can name, with the number of their weights."""
    from segkit.models.catalogue import REFERENCE_ENCODER
    from segkit.models.catalogue import encoders as run

    found = run(pattern, show_progress=True)
    rows = [(one.name, f"{one.weights / 1e6:.1f}", "imagenet" if one.published else "-") for one in found.encoders]
    print_table(("encoder", "million weights", "published"), rows)
    if found.further:
        print(f"\nand {found.further:,} of timm, as tu-NAME; to see some: segkit encoders PATTERN")
    print()
    print_table(
        ("architecture", f"million weights besides {REFERENCE_ENCODER}"),
        [(one.name, "-" if one.weights is None else f"{one.weights / 1e6:.1f}") for one in found.architectures],
    )
    print("\nmodel.options of each:")
    for one in found.architectures:
        print(f"  {one.name}: {', '.join(one.options)}")
    emit(found)
