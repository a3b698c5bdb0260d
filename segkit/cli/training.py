"""Commands that prepare and train: check, train, compare, cache, schema."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import Force, Overwrite, RecipeFile, Set
from segkit.cli.root import app
from segkit.cli.tables import gigabytes, print_comparison, print_metrics
from segkit.errors import SegkitError


@app.command()
def check(
    recipe: RecipeFile,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw class shares and training crops.")
    ] = None,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Show what a recipe would train on: grids, bands, codes, class shares, problems."""
    from segkit.data.check import check as run
    from segkit.data.pairing import recipe_files
    from segkit.io.files import check_apart, check_output
    from segkit.recipe.schema import Recipe

    loaded = Recipe.load(recipe, set_ or ())
    target = None if picture is None else check_output(picture, overwrite=overwrite)
    if target is not None:
        read: list[Path] = [recipe]
        with suppress(SegkitError):  # it is one of the problems that are shown
            read += recipe_files(loaded)
        check_apart([target], read)
    report = run(loaded, show_progress=True)
    print(report.render())
    if target is not None:
        from segkit.data.preview import draw_data

        draw_data(loaded, report, target, show_progress=True)
        print(f"\npicture {target}")
    if report.problems:
        raise typer.Exit(1)


@app.command()
def train(
    recipe: RecipeFile,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    fold: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Validate on one of N folds, 0/N to N-1/N, of the training scenes."),
    ] = None,
    set_: Set = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model: RUN/model.safetensors, RUN/metrics.json, the log and its picture."""
    from lightning.pytorch.utilities import rank_zero_only

    from segkit.training.train import train as run

    result = run(
        recipe,
        output,
        resume=resume,
        overwrite=overwrite,
        overrides=set_ or (),
        fold=fold,
        force=force,
        show_progress=True,
    )
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return  # the first process of several speaks for all
    print_metrics(result.metrics)
    print(f"\nmodel {result.model}\ncurves {result.folder / 'curves.png'}")


@app.command()
def compare(
    recipe: RecipeFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of runs and result; default runs/NAME-compare.")
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="HEAD,...", help="Heads to compare: softmax,sigmoid.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,...", help="Values of a key to compare: model.encoder=resnet18,resnet34. Repeatable."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,...", help="Each variant is trained with each of these.")] = "0,1,2",
    fold: Annotated[
        list[str] | None, typer.Option(metavar="K/N,...", help="Each variant is trained in each fold. Repeatable.")
    ] = None,
    set_: Set = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a recipe in variants, with several seeds: scores with their spread, cost, and agreement."""
    from segkit.training.compare import compare as run
    from segkit.training.variants import parse_vary

    result = run(
        recipe,
        output,
        heads=_listed(heads or ""),
        vary=parse_vary(vary or ()),
        seeds=[_seed(text) for text in _listed(seeds)],
        folds=[each for text in fold or () for each in _listed(text)],
        overrides=set_ or (),
        force=force,
        overwrite=overwrite,
        show_progress=True,
    )
    print_comparison(result)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"--seeds: {text!r} is no whole number from 0 on")
    return int(text)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what no training uses right now.")] = False,
) -> None:
    """Show what decoded scenes and labels take on the disk, or remove them."""
    from segkit.data import cache as room

    if clear:
        gone = room.clear()
        print(f"removed {len(gone)} entries, {gigabytes(gone)}")
    kept = room.entries()
    print(f"{room.cache_folder()}: {len(kept)} entries, {gigabytes(kept)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from segkit.recipe.schema import schema as run

    print(json.dumps(run(), indent=2))
