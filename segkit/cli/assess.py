"""Commands of `segkit assess`: a sample of a map, and the areas estimated from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import Allocation, Overwrite
from segkit.cli.root import assess_app
from segkit.cli.tables import print_table


@assess_app.command("design")
def assess_design(
    map_: Annotated[Path, typer.Argument(metavar="MAP", help="Map of class values (.tif).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Points to look at (.gpkg).")],
    samples: Annotated[int | None, typer.Option("-n", "--samples", min=1, help="How many points in all.")] = None,
    error: Annotated[
        float | None, typer.Option(help="Instead: the standard error wanted of the overall accuracy: 0.01.")
    ] = None,
    allocation: Annotated[Allocation, typer.Option(help="How points are divided among strata.")] = (
        Allocation.PROPORTIONAL
    ),
    minimum: Annotated[int, typer.Option(min=0, help="Points that each stratum gets at least.")] = 50,
    expect: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="User's accuracy expected (0.9 if not said). May be repeated."),
    ] = None,
    buffer: Annotated[
        str | None,
        typer.Option(metavar="CLASS:METRES", help="What is so near to a class is a stratum of its own: clearing:60."),
    ] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Which class, where classes overlap.")] = None,
    names: Annotated[Path | None, typer.Option(help="Names of classes: CSV with the columns value,name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same points.")] = 0,
    show_map: Annotated[bool, typer.Option("--show-map", help="Let the interpreter see the map's class.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw a stratified random sample of a map: points with an empty column ref_class and a form for QGIS."""
    from segkit.assess import design as run

    made = run(
        map_,
        output,
        samples=samples,
        error=error,
        allocation=allocation.value,
        minimum=minimum,
        expected=dict(_share(one) for one in expect or ()),
        buffer=None if buffer is None else _near(buffer),
        of=class_,
        names=names,
        seed=seed,
        show_map=show_map,
        overwrite=overwrite,
        show_progress=True,
    )
    rows = [
        (part.name, f"{part.pixels:,}", f"{part.hectares:,.2f}", f"{expected:.2f}", str(number))
        for part, number, expected in zip(made.strata, made.samples, made.expected, strict=True)
    ]
    print_table(("stratum", "pixels", "hectares", "expected", "points"), rows)
    print(f"\nexpected standard error of the overall accuracy {made.expected_error:.4f}")
    print(f"{made.path}: fill ref_class of its layer points, then: segkit assess estimate {map_} {made.path}")


def _share(text: str) -> tuple[str, float]:
    return _named_number(text, "=", "--expect", "CLASS=SHARE, as forest=0.95")


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


@assess_app.command("estimate")
def assess_estimate(
    map_: Annotated[Path, typer.Argument(metavar="MAP", help="The map that the points were drawn from.")],
    points: Annotated[Path, typer.Argument(metavar="POINTS", help="Filled points (.gpkg), or counts (.csv).")],
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help=".json, .csv or .png. May be repeated.")
    ] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Which class, where classes overlap.")] = None,
    names: Annotated[Path | None, typer.Option(help="Names of classes: CSV with the columns value,name.")] = None,
    finite: Annotated[bool, typer.Option("--finite", help="Correct for sampling a good part of a stratum.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Estimate areas and accuracies with 95 % intervals from filled points."""
    from segkit.assess import estimate_sample, write_estimate
    from segkit.assess.export import check_estimate_output
    from segkit.io.files import check_apart

    targets = [check_estimate_output(one, overwrite=overwrite) for one in output or ()]
    check_apart(targets, [map_, points, names])
    found = estimate_sample(map_, points, of=class_, names=names, correct_finite=finite)

    def number(value: float, half: float, digits: int) -> str:
        if value != value:
            return "-"
        return f"{value:,.{digits}f}" + (f" ± {half:,.{digits}f}" if half == half else " ± ?")

    table = found.table()
    rows = [
        (
            row["class"],
            f"{row['mapped_ha']:,.2f}",
            number(row["area_ha"], row["area_ha_ci95"], 2),
            number(row["users"], row["users_ci95"], 3),
            number(row["producers"], row["producers_ci95"], 3),
            str(row["map_samples"]),
            str(row["ref_samples"]),
        )
        for row in table.to_dict("records")
    ]
    print_table(("class", "mapped ha", "area ha", "user's", "producer's", "n map", "n ref"), rows)
    print(f"\noverall accuracy {number(found.overall, found.overall_ci, 4)}   (± half of a 95 % interval)")
    if found.unfilled:
        print(f"{found.unfilled} points have no ref_class and were left out")
    for target in targets:
        print(write_estimate(found, target, overwrite=overwrite))
