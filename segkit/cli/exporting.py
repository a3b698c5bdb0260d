"""The command that writes models for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkit.cli.options import AverageWith, Overwrite, Quantize
from segkit.cli.output import emit
from segkit.cli.root import app, examples
from segkit.io.remote import as_path

if TYPE_CHECKING:
    from segkit.exporting.write import ExportSummary


@app.command(
    epilog=examples(
        "segkit export forest.safetensors -o forest.onnx",
        "segkit export forest.safetensors -o qgis.onnx --tile 512 --check-on scene.tif",
        "segkit export forest.safetensors -o classes.onnx --decide",
        "segkit export forest.safetensors -o fast.onnx --quantize int8 --calibrate tiles",
    )
)
def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model file (.safetensors), or the folder of all folds: their mean.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File to write (.onnx, or .pt2 for torch.export).")
    ],
    average_with: AverageWith = None,
    decide: Annotated[
        bool, typer.Option("--decide", help="Give the values of the map in place of probabilities.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Window size, for programs that need a fixed one (default: any size)."),
    ] = None,
    nodata: Annotated[
        list[float] | None,
        typer.Option(
            "--nodata",
            metavar="VALUE",
            help="Stored value that means no data (default: that of the recipe). Repeatable.",
        ),
    ] = None,
    check_on: Annotated[
        Path | None,
        typer.Option(
            "--check-on",
            metavar="SCENE",
            parser=as_path,
            help="Scene for the comparison with torch (default: tiles made of training pixels).",
        ),
    ] = None,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Compute the inner convolutions in integers: faster, .onnx only.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(metavar="SCENES", parser=as_path, help="Scenes, folders or globs to calibrate int8. Repeatable."),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement", metavar="SHARE", help="Share of held-out pixels that int8 must decide like fp32."
        ),
    ] = 0.99,
    overwrite: Overwrite = False,
) -> None:
    """Write a model for other programs (ONNX, torch.export), compared with segkit before it gets its name."""
    from segkit.exporting.write import export as run

    summary = run(
        [model, *average_with] if average_with else model,
        output,
        decide=decide,
        tile=tile,
        nodata=nodata or (),
        check_on=check_on,
        quantize=None if quantize is None else quantize.value,
        calibrate=calibrate or (),
        min_agreement=min_agreement,
        overwrite=overwrite,
        show_progress=True,
    )
    _print_export(summary)
    emit(summary)


def _print_export(summary: ExportSummary) -> None:
    for name, channels in summary.outputs.items():
        print(f"output {name}: {', '.join(channels)}")
    print("no data: " + ", ".join(["NaN", *(f"{value:g}" for value in summary.nodata)]))
    parity = summary.parity
    shown = f"{parity.difference:.2%} of the pixels" if summary.decided else f"{parity.difference:.1e} in probability"
    print(f"largest difference from segkit: {shown} ({parity.pixels:,} pixels, {parity.source})")
    if (found := summary.quantization) is not None:
        print(
            f"int8: {found.agreement:.2%} of {found.pixels:,} held-out pixels have the class of fp32 "
            f"({found.calibrated_on} tiles calibrated it, {found.judged_on} are held out)"
        )
        for name, share in found.per_class.items():
            print(f"  {name}: {'no pixels' if share is None else f'{share:.2%}'}")
    for limit in summary.deepness_limits or ():
        print(f"in Deepness (QGIS): {limit}")
    print(f"\n{summary.path}  {summary.path.stat().st_size / 1e6:.1f} MB")
