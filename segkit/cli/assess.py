"""Commands of `segkit assess`: a sample of a map, and the areas estimated from it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.mosaics import AsMosaic, OfOverlap, one_raster
from segkit.cli.options import Allocation, ClassNames, OverlappingClass, Overwrite, PointsCrs
from segkit.cli.output import emit
from segkit.cli.printing import print_table
from segkit.cli.root import assess_app, examples


@assess_app.command(
    "design", epilog=examples("segkit assess design map.tif -n 200 --min-per-stratum 20 -o points.gpkg")
)
def assess_design(
    map_: Annotated[
        list[Path], typer.Argument(metavar="MAP", help="Map of class values (.tif); several with --mosaic.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Sample points to interpret (.gpkg).")],
    samples: Annotated[int | None, typer.Option("-n", "--samples", min=1, help="Number of sample points.")] = None,
    error: Annotated[
        float | None,
        typer.Option(
            "--target-se", metavar="SHARE", help="Instead of -n: standard error of the overall accuracy to reach: 0.01."
        ),
    ] = None,
    allocation: Annotated[Allocation, typer.Option(help="How points are allocated to strata.")] = (
        Allocation.PROPORTIONAL
    ),
    minimum: Annotated[int, typer.Option("--min-per-stratum", min=0, help="Minimum points per stratum.")] = 50,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expected-users-accuracy",
            metavar="CLASS=SHARE",
            help="Expected user's accuracy of a class (default: 0.9). Repeatable.",
        ),
    ] = None,
    buffer: Annotated[
        str | None,
        typer.Option(metavar="CLASS:METRES", help="Add a stratum of pixels within a distance of a class: clearing:60."),
    ] = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    class_: OverlappingClass = None,
    class_names: ClassNames = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed draws the same points.")] = 0,
    show_map: Annotated[bool, typer.Option("--show-map", help="Show the map's class to the interpreter.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw a stratified random sample of a map: points with an empty column ref_class, and a form for QGIS."""
    from segkit.assess import design as run

    made = run(
        one_raster(map_, mosaic_overlap, mosaic=mosaic, what="MAP"),
        output,
        samples=samples,
        target_se=error,
        allocation=allocation.value,
        min_per_stratum=minimum,
        expected_users_accuracy=dict(_share(one) for one in expect or ()),
        buffer=None if buffer is None else _near(buffer),
        class_name=class_,
        class_names=class_names,
        seed=seed,
        show_map=show_map,
        overwrite=overwrite,
        show_progress=True,
    )
    rows = [
        (part.name, f"{part.pixels:,}", f"{part.hectares:,.2f}", f"{expected:.2f}", str(number))
        for part, number, expected in zip(made.strata, made.samples, made.expected_users_accuracy, strict=True)
    ]
    print_table(("stratum", "pixels", "hectares", "expected user's accuracy", "points"), rows)
    print(f"\nexpected standard error of the overall accuracy {made.expected_error:.4f}")
    again = " ".join(shlex.quote(str(path)) for path in map_)
    again = f"--mosaic {again}" if mosaic else again
    print(
        f"{made.path}: fill the column ref_class of the layer points, then: segkit assess estimate {again} {made.path}"
    )
    emit(made)


def _share(text: str) -> tuple[str, float]:
    return _named_number(text, "=", "--expected-users-accuracy", "CLASS=SHARE, as forest=0.95")


def _near(text: str) -> tuple[str, float]:
    return _named_number(text.removesuffix("m"), ":", "--buffer", "CLASS:METRES, as clearing:60")


def _named_number(text: str, between: str, option: str, form: str) -> tuple[str, float]:
    name, _, number = text.rpartition(between)
    try:
        if name:
            return name, float(number)
    except ValueError:
        pass
    raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)


@assess_app.command(
    "estimate",
    prints_result=True,
    epilog=examples("segkit assess estimate map.tif filled.gpkg -o areas.csv -o areas.png"),
)
def assess_estimate(
    map_: Annotated[
        list[Path],
        typer.Argument(metavar="MAP", help="The map from which the points were drawn; several files with --mosaic."),
    ],
    points: Annotated[Path, typer.Argument(metavar="POINTS", help="Interpreted points, or counts (.csv).")],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Also write the estimate (.json, .csv or .png). Repeatable."
        ),
    ] = None,
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="Column of the points with the reference class.")
    ] = "ref_class",
    crs: PointsCrs = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    class_: OverlappingClass = None,
    class_names: ClassNames = None,
    finite: Annotated[
        bool,
        typer.Option(
            "--finite-population-correction",
            help="Correct the variances for points that are a large part of a stratum.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Estimate areas and accuracies with 95 % confidence intervals from interpreted points."""
    from segkit.assess import estimate_sample, write_estimate
    from segkit.assess.export import check_estimate_output
    from segkit.io.files import check_distinct

    map_path = one_raster(map_, mosaic_overlap, mosaic=mosaic, what="MAP")
    targets = [check_estimate_output(one, overwrite=overwrite) for one in output or ()]
    check_distinct(targets, [map_path, points, class_names])
    found = estimate_sample(
        map_path,
        points,
        field=field,
        crs=crs,
        class_name=class_,
        class_names=class_names,
        finite_population_correction=finite,
    )

    def number(values: dict[str, Any], key: str, digits: int) -> str:
        if values[key] is None:
            return "-"
        value, low, high = (f"{values[name]:,.{digits}f}" for name in (key, f"{key}_low95", f"{key}_high95"))
        return f"{value} ({low} to {high})"

    summary = found.summary()
    rows = [
        (
            name,
            f"{values['mapped_ha']:,.2f}",
            number(values, "area_ha", 2),
            number(values, "users", 3),
            number(values, "producers", 3),
            str(values["map_samples"]),
            str(values["ref_samples"]),
        )
        for name, values in summary["per_class"].items()
    ]
    print_table(("class", "mapped ha", "area ha", "user's", "producer's", "n map", "n ref"), rows)
    print(f"\noverall accuracy {number(summary, 'overall_accuracy', 4)}   (in brackets: 95 % confidence intervals)")
    if found.unlabelled:
        print(f"{found.unlabelled} points have no ref_class and are not used")
    for target in targets:
        print(write_estimate(found, target, overwrite=overwrite))
    emit({**summary, "unlabelled": found.unlabelled, "paths": targets})
