"""Commands that prepare and train: init, check, train, compare, cache, schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import Force, LabelField, Overwrite, RecipeFile, Set
from segkit.cli.printing import gigabytes, print_comparison, print_metrics, print_worst_scenes
from segkit.cli.root import app, examples
from segkit.errors import SegkitError


@app.command(
    epilog=examples(
        "segkit init data/deforestation/images data/deforestation/labels",
        "segkit init scene.tif truth.tif -o mine.yaml",
        "segkit init scene.tif -o to_label.yaml",
    )
)
def init(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Image file, folder, or glob in quotes.")],
    labels: Annotated[
        str | None,
        typer.Argument(metavar="[LABELS]", help="Labels: rasters, polygons or points; file, folder or glob."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RECIPE", help="The recipe.")] = Path("recipe.yaml"),
    field: LabelField = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a recipe for images and labels, and say what was found and assumed."""
    from segkit.data.drafting.draft import init as run

    print(run(images, labels, output, field=field, overwrite=overwrite, show_progress=True).render())


@app.command(
    epilog=examples(
        "segkit check configs/deforestation.yaml --picture shares.png",
    )
)
def check(
    recipe: RecipeFile,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw class shares and training tiles.")
    ] = None,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Show what a recipe trains on: grids, bands, label codes, class shares, problems."""
    from segkit.data.check import check as run
    from segkit.data.pairing import recipe_files
    from segkit.io.files import check_distinct, check_output
    from segkit.recipe.schema import Recipe

    loaded = Recipe.load(recipe, set_ or ())
    target = None if picture is None else check_output(picture, overwrite=overwrite)
    if target is not None:
        read: list[Path] = [recipe]
        with suppress(SegkitError):  # it is one of the problems that are shown
            read += recipe_files(loaded)
        check_distinct([target], read)
    report = run(loaded, show_progress=True)
    print(report.render())
    if target is not None:
        from segkit.data.preview import draw_data

        draw_data(loaded, report, target, show_progress=True)
        print(f"\npicture {target}")
    if report.problems:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "segkit train configs/deforestation.yaml -o forest --set train.epochs=3",
        "segkit train configs/deforestation.yaml -o folds --folds 2 --set train.epochs=1",
        "segkit train configs/deforestation.yaml -o tuned --from forest.safetensors --set train.learning_rate=1e-4",
    )
)
def train(
    recipe: RecipeFile,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished epoch.")] = False,
    fold: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Validate on fold K (0 to N-1) of N folds of the training data."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(metavar="N", help="Train all N folds, each in a folder of RUN, and table the scores.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="MODEL", help="Start from the weights of a model, also of other bands or classes."
        ),
    ] = None,
    set_: Set = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model: RUN/model.safetensors, metrics.json, log.csv, curves.png."""
    if folds is not None:
        if fold is not None or resume:
            why = "one fold is trained with --fold, all with --folds" if fold else "--folds resumes without it"
            raise typer.BadParameter(f"{why}; leave it out", param_hint="--fold" if fold else "--resume")
        _train_folds(recipe, output, folds, set_ or (), from_, force=force, overwrite=overwrite)
        return
    from lightning.pytorch.utilities import rank_zero_only

    from segkit.training.train import train as run

    result = run(
        recipe,
        output,
        resume=resume,
        overwrite=overwrite,
        overrides=set_ or (),
        fold=fold,
        start_from=from_,
        force=force,
        show_progress=True,
    )
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return  # the first process of several speaks for all
    print_metrics(result.metrics)
    print_worst_scenes(result.metrics, 1)
    curves = result.folder / "curves.png"  # a classical learner has none
    print(f"\nmodel {result.model}" + (f"\ncurves {curves}" if curves.is_file() else ""))


def _train_folds(
    recipe: Path,
    output: Path | None,
    folds: int,
    overrides: Sequence[str],
    start_from: Path | None,
    *,
    force: bool,
    overwrite: bool,
) -> None:
    """Train all folds and print the table of their scores."""
    from segkit.training.cross_validation import cross_validate

    result = cross_validate(
        recipe,
        output,
        folds=folds,
        overrides=overrides,
        start_from=start_from,
        force=force,
        overwrite=overwrite,
        show_progress=True,
    )
    print(result.render())
    print(f"\ntable {result.folder / 'folds.csv'}")


@app.command(
    epilog=examples(
        "segkit compare configs/deforestation.yaml --heads softmax,sigmoid --seeds 0,1",
        "segkit compare configs/deforestation.yaml --vary train.learning_rate=1e-3,1e-4 --seeds 0 -o rates",
    )
)
def compare(
    recipe: RecipeFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of runs and results; default runs/NAME-compare.")
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="HEAD,...", help="Heads to compare: softmax,sigmoid.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,...", help="Compare values of a key: model.encoder=resnet18,resnet34. Repeatable."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="Random seeds; each variant is trained with each seed.")
    ] = "0,1,2",
    fold: Annotated[
        list[str] | None,
        typer.Option(metavar="K/N,...", help="Folds; each variant is trained on each fold. Repeatable."),
    ] = None,
    set_: Set = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Train variants of a recipe with several seeds: mean and spread of the scores, cost, agreement."""
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
        raise typer.BadParameter(f"--seeds: {text!r} is not a whole number of 0 or more")
    return int(text)


@app.command(
    epilog=examples(
        "segkit cache --clear",
    )
)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove entries that no training is using.")] = False,
) -> None:
    """Show the size of the cache of decoded scenes and labels, or clear it."""
    from segkit.data.cache import cache_folder, clear_cache, list_entries

    if clear:
        removed = clear_cache()
        print(f"removed {len(removed)} entries, {gigabytes(removed)}")
    entries = list_entries()
    print(f"{cache_folder()}: {len(entries)} entries, {gigabytes(entries)}")


@app.command(
    epilog=examples(
        "segkit schema > recipe.schema.json",
    )
)
def schema() -> None:
    """Print the JSON schema of recipes, for completion in editors."""
    from segkit.recipe.schema import schema as run

    print(json.dumps(run(), indent=2))
