"""Commands that prepare and train: init, check, train, finish, compare, cache, schema."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkit.cli.options import Force, LabelField, Overwrite, RecipeFile, Set
from segkit.cli.output import emit
from segkit.cli.printing import gigabytes, print_comparison, print_metrics, print_worst_scenes
from segkit.cli.root import app, examples
from segkit.errors import SegkitError
from segkit.runtime.garbage_collection import pause_collection

if TYPE_CHECKING:
    from segkit.training.results import Run
    from segkit.training.resume import TrainingInterrupted


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
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RECIPE", help="Recipe to write (.yaml).")] = Path(
        "recipe.yaml"
    ),
    field: LabelField = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a recipe for images and labels, and say what was found and assumed."""
    from segkit.data.drafting.draft import init as run

    draft = run(images, labels, output, field=field, overwrite=overwrite, show_progress=True)
    print(draft.render())
    emit({field.name: getattr(draft, field.name) for field in fields(draft) if field.name != "recipe"})


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit check configs/deforestation.yaml --picture shares.png",
    ),
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
    emit(report.summary() | {"picture": target})
    if report.problems:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "segkit train configs/deforestation.yaml -o forest --set train.epochs=3",
        "segkit train configs/deforestation.yaml -o forest --resume --set train.epochs=4",
        "segkit train configs/deforestation.yaml -o folds --folds 2 --set train.epochs=1",
        "segkit train configs/deforestation.yaml -o tuned --from forest.safetensors --set train.learning_rate=1e-4",
    )
)
def train(
    recipe: RecipeFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Run folder (default: runs/NAME).")
    ] = None,
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
        if fold is not None:
            raise typer.BadParameter(
                "one fold is trained with --fold, all with --folds; leave it out", param_hint="--fold"
            )
        _train_folds(recipe, output, folds, set_ or (), from_, resume=resume, force=force, overwrite=overwrite)
        return
    with pause_collection():
        from segkit.runtime.distributed import rank
        from segkit.training.resume import TrainingInterrupted
        from segkit.training.train import train as run

    try:
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
    except TrainingInterrupted as error:
        raise KeyboardInterrupt(f"{error}; {_next_commands(error)}") from None
    if rank():
        return  # the first process of several speaks for all
    _print_run(result)
    emit(result)


def _next_commands(stopped: TrainingInterrupted) -> str:
    """Return the commands that continue a training, or end it."""
    finish_ = f"segkit finish {shlex.quote(str(stopped.folder))}"
    if stopped.has_ended:
        return f"to write them: {finish_}"
    words = ["segkit", *(word for word in sys.argv[1:] if word != "--debug")]
    if not stopped.finished:
        return f"to start again: {shlex.join(words)}"
    words = [word for word in words if word not in ("--overwrite", "--resume")] + ["--resume"]
    return f"to continue: {shlex.join(words)}; to write a model now: {finish_}"


def _print_run(run: Run) -> None:
    """Print the scores, the time taken, the files of a run, and the next command."""
    from segkit.models.run_folder import LOG, METRICS, RECIPE
    from segkit.runtime.progress import format_duration
    from segkit.training.results import CURVES, WORST

    if run.metrics["pixels"]:
        print_metrics(run.metrics)
        print_worst_scenes(run.metrics, 1)
    else:
        print("no validation data (data.val), so no scores: segkit evaluate scores the model on other labels")
    epochs = run.metrics.get("epochs")  # a classical learner has none
    trained = epochs and f"; {epochs['finished']} of {epochs['planned']} epochs, model of epoch {epochs['kept']}"
    print(f"\ntime {format_duration(run.seconds)}{trained or ''}")
    names = {
        "model": run.model.name, "scores": METRICS, "log": LOG, "curves": CURVES, "worst windows": WORST,
        "recipe": RECIPE, "checkpoints": "checkpoints", "tensorboard": "tensorboard",
    }  # fmt: skip
    for what, name in names.items():
        if (run.folder / name).exists():
            print(f"{what} {run.folder / name}")
    print(f"next: segkit predict {shlex.quote(str(run.model))} SCENE.tif -o map.tif")


@app.command(
    epilog=examples(
        "segkit finish forest",
    )
)
def finish(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Run folder of segkit train.")],
) -> None:
    """Write the model of the best epoch so far of an interrupted training, with its scores; it can still be resumed."""
    from segkit.training.finishing import finish as call

    result = call(run, show_progress=True)
    _print_run(result)
    emit(result)


def _train_folds(
    recipe: Path,
    output: Path | None,
    folds: int,
    overrides: Sequence[str],
    start_from: Path | None,
    *,
    resume: bool,
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
        resume=resume,
        force=force,
        overwrite=overwrite,
        show_progress=True,
    )
    print(result.render())
    print(f"\ntable {result.folder / 'folds.csv'}")
    emit({"folder": result.folder, "folds": result.folds, "pooled": result.pooled})


@app.command(
    epilog=examples(
        "segkit compare configs/deforestation.yaml --heads softmax,sigmoid --seeds 0,1",
        "segkit compare configs/deforestation.yaml --vary train.learning_rate=1e-3,1e-4 --seeds 0 -o rates",
    )
)
def compare(
    recipe: RecipeFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Folder of runs and results (default: runs/NAME-compare)."
        ),
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
    emit(result)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"--seeds: {text!r} is not a whole number of 0 or more")
    return int(text)


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit cache --clear",
    ),
)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove entries that no training is using.")] = False,
) -> None:
    """Show the size of the cache of decoded scenes and labels, or clear it."""
    from segkit.data.cache import cache_folder, clear_cache, list_entries

    removed = clear_cache() if clear else []
    if clear:
        print(f"removed {len(removed)} entries, {gigabytes(removed)}")
    entries = list_entries()
    print(f"{cache_folder()}: {len(entries)} entries, {gigabytes(entries)}")
    emit({"folder": cache_folder(), "entries": entries, "removed": removed})


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit schema > recipe.schema.json",
    ),
)
def schema() -> None:
    """Print the JSON schema of recipes, for completion in editors."""
    from segkit.recipe.schema import schema as run

    found = run()
    print(json.dumps(found, indent=2))
    emit(found)
