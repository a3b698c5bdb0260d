"""Command line: parses, calls one library function, prints what came out.

Libraries are imported inside the commands, so that ``segkit --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from segkit.errors import KEY, RECIPE, SegkitError, offering
from segkit.io.remote import located

if TYPE_CHECKING:
    from segkit.data.cache import Entry
    from segkit.inference.predict import Summary
    from segkit.inference.settings import Choice
    from segkit.training.compare import Comparison

# The commands in the order of the work, as the help lists them.
_GROUPS = {
    "Prepare": ("demo", "check", "schema", "cache"),
    "Train": ("train", "compare"),
    "Map": ("predict", "vectorize", "change"),
    "Judge": ("evaluate", "assess"),
    "Share": ("report",),
}


class _Grouped(TyperGroup):
    """Lists commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


app = typer.Typer(
    name="segkit",
    cls=_Grouped,
    help="Land-cover maps from GeoTIFFs: train, predict whole scenes without seams, export clean polygons.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


assess = typer.Typer(
    help="Areas and accuracy of a map, with error bars, from a random sample that somebody looks at.",
    rich_markup_mode=None,
)
app.add_typer(assess, name="assess")

# What a shell expects after a signal, and after that of Ctrl-C.
_SIGNALLED, _INTERRUPTED = 128, 130
_SAME_SIGNAL_SECONDS = 2
# What libraries say where they got no memory, in small letters.
_NO_MEMORY = (
    "allocate memory", "alloc_cpu", "failed to map segment", "out of memory", "not enough memory",
    "can't start new thread",
)  # fmt: skip


class Device(StrEnum):
    """Where networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """In which numbers networks run."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Augmentation(StrEnum):
    """Test-time augmentation."""

    D4 = "d4"


class Allocation(StrEnum):
    """How a sample is divided among strata."""

    PROPORTIONAL = "proportional"
    EQUAL = "equal"
    NEYMAN = "neyman"


class NoData(StrEnum):
    """What label pixels are whose value is a code and declared as no data."""

    CODE = "code"
    IGNORE = "ignore"


class DemoTask(StrEnum):
    """Tasks of the sample landscape."""

    DEFORESTATION = "deforestation"
    LANDCOVER = "landcover"
    OVERLAPPING = "overlapping"


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (.yaml).")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.safetensors).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: train.epochs=3. May be repeated.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")]
Force = Annotated[bool, typer.Option("--force", help="Train in spite of what check calls a problem.")]
LabelNoData = Annotated[
    NoData | None,
    typer.Option(
        "--nodata", help="Label pixels of a class's value that is declared as no data: this code, or unknown."
    ),
]
Tile = Annotated[int | None, typer.Option(help="Side of the windows that the network sees at most, in pixels.")]
Overlap = Annotated[int | None, typer.Option(help="Pixels that neighbouring windows share at least.")]
OnDevice = Annotated[Device, typer.Option(help="Where to compute.")]
InPrecision = Annotated[Precision, typer.Option(help="bf16 is faster where the hardware has it.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"segkit {version('segkit')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything goes.")] = Path("demo"),
    task: Annotated[DemoTask, typer.Option(help="What to map.")] = DemoTask.DEFORESTATION,
    set_: Set = None,
) -> None:
    """Do the whole job on a sample landscape: train, predict, evaluate, polygons, picture."""
    from segkit.demo.run import demo as run

    result = run(folder, task=task.value, overrides=set_ or (), show_progress=True)
    print(result.render())


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
    _print_metrics(result.metrics)
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
    from segkit.training.compare import parse_vary

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
    _print_comparison(result)


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
        print(f"removed {len(gone)} entries, {_gigabytes(gone)}")
    kept = room.entries()
    print(f"{room.cache_folder()}: {len(kept)} entries, {_gigabytes(kept)}")


def _gigabytes(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size for entry in entries) / 1e9:.3g} GB"


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL|MAP", help="Model file, or a map or folder of maps.")],
    labels: Annotated[str, typer.Option(help="Folder, file or glob of labels, paired by file stem.")],
    images: Annotated[
        list[str] | None, typer.Option(help="Of a model: folder, file or glob of scenes. May be repeated.")
    ] = None,
    stack: Annotated[bool, typer.Option("--stack", help="The images are bands or dates of one scene.")] = False,
    field: Annotated[str | None, typer.Option(help="Vector labels: the field that names the class.")] = None,
    nodata: LabelNoData = None,
    boundary: Annotated[str, typer.Option(metavar="WIDTH", help="Width of boundaries: 20m, 2px.")] = "2px",
    objects: Annotated[str, typer.Option(metavar="AREA", help="Smallest object that counts: 0.5ha, 12px.")] = "1px",
    ignore: Annotated[
        list[int] | None, typer.Option(help='Of maps: a label code that means "not known". May be repeated.')
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Of maps: names of classes, CSV with value,name.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the scores (.json).")] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    overwrite: Overwrite = False,
) -> None:
    """Score a model or maps on labelled scenes: IoU, F1, boundaries, objects, calibration, confusion, intervals."""
    from segkit.evaluation.evaluate import evaluate as run
    from segkit.io.files import existing

    is_model = existing(model, "model file or map").suffix.lower() == ".safetensors"
    if is_model and not images:
        raise typer.BadParameter("a model needs scenes", param_hint="--images")
    if not is_model and images:
        raise typer.BadParameter(f"{model} is a map, which has no images; leave it out", param_hint="--images")
    if is_model and (ignore or names):
        raise typer.BadParameter("a model has its own; it is for maps", param_hint="--ignore" if ignore else "--names")
    scenes = images or []
    result = run(
        model,
        None if not is_model else [scenes] if stack else scenes[0] if len(scenes) == 1 else scenes,
        _labels(labels, field, nodata),
        output,
        boundary=boundary,
        objects=objects,
        ignore=ignore or (),
        names=names,
        tile=tile,
        overlap=overlap,
        precision=precision.value,
        device=device.value,
        overwrite=overwrite,
        show_progress=True,
    )
    _print_metrics(result)


def _labels(path: Any, field: str | None, nodata: NoData | None) -> Any:
    from segkit.recipe.schema import LabelSource

    if field is None and nodata is None:
        return path
    return LabelSource(path=str(path), field=field, nodata=None if nodata is None else nodata.value)


@app.command()
def predict(
    model: ModelFile,
    scenes: Annotated[
        list[Path],
        typer.Argument(metavar="SCENE...", parser=located, help="Rasters, folders or globs of them, or URLs."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="PATH", help="Map (.tif), or a folder (for several scenes).")
    ],
    stack: Annotated[bool, typer.Option("--stack", help="The files are bands or dates of one scene.")] = False,
    probabilities: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write a band of probabilities per class.")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write the probability of what was decided.")
    ] = None,
    vector: Annotated[str | None, typer.Option(metavar="PATH", help="Also write polygons (.gpkg, .shp, ...).")] = None,
    aoi: Annotated[Path | None, typer.Option(help="Polygons that limit the map.")] = None,
    aoi_layer: Annotated[str | None, typer.Option(metavar="NAME", help="Layer of --aoi, if it has several.")] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Annotated[int | None, typer.Option(help="Windows of one forward pass; by default what suits.")] = None,
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    exact: Annotated[bool, typer.Option("--exact", help="As in one pass over the whole scene; slower.")] = False,
    tta: Annotated[Augmentation | None, typer.Option(help="d4: average over 8 turns and flips.")] = None,
    vrt: Annotated[bool, typer.Option("--vrt", help="Open virtual rasters (.vrt), which can read any file.")] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Workers that do it: local:4, or tls://host:8786.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="A cluster may be reached by tcp:// elsewhere.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Map whole scenes of any size, without seams, as cloud-optimised GeoTIFFs."""
    from segkit.errors import ScenesError
    from segkit.inference.predict import predict as run

    if cluster is not None:
        from segkit.inference.dask_executor import connect

    try:
        with nullcontext() if cluster is None else connect(cluster, insecure=insecure) as crew:
            summaries = run(
                model,
                [scenes] if stack else scenes,
                output,
                probabilities=probabilities,
                confidence=confidence,
                vector=vector,
                aoi=aoi,
                aoi_layer=aoi_layer,
                tile=tile,
                overlap=overlap,
                batch=batch,
                precision=precision.value,
                device=device.value,
                exact=exact,
                tta=None if tta is None else tta.value,
                vrt=vrt,
                overwrite=overwrite,
                show_progress=True,
                crew=crew,
            )
    except ScenesError as failed:
        for summary in failed.summaries:
            _print_summary(summary)
        raise
    for summary in summaries:
        _print_summary(summary)


@app.command()
def vectorize(
    map_: Annotated[Path, typer.Argument(metavar="MAP", help="Map of class values (.tif).")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help=".gpkg, .shp, .parquet, .fgb or .geojson")],
    min_area: Annotated[
        str | None, typer.Option(metavar="AREA", help="Merge smaller polygons into their neighbours: 0.5ha, 12px.")
    ] = None,
    fill_holes: Annotated[str | None, typer.Option(metavar="AREA", help="Then fill smaller holes.")] = None,
    simplify: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Fewer vertices; borders move at most so far: 10m, 1.5px.")
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Round the corners of borders.")] = False,
    dissolve: Annotated[bool, typer.Option("--dissolve", help="One multipolygon per class.")] = False,
    classes: Annotated[list[str] | None, typer.Option(help="Only this class (name or value). May be repeated.")] = None,
    background: Annotated[bool, typer.Option("--background", help="Background's polygons, too.")] = False,
    names: Annotated[
        Path | None, typer.Option(help="Names of classes: CSV with the columns value,name and color if wanted.")
    ] = None,
    probabilities: Annotated[Path | None, typer.Option(help="Probabilities of the map, for mean_conf.")] = None,
    to_crs: Annotated[
        str | None, typer.Option("--to-crs", metavar="CRS", help="Transform the polygons: EPSG:4326.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a map into polygons with true areas that fit each other."""
    from segkit.vector import vectorize as run

    summary = run(
        map_,
        output,
        min_area=min_area,
        fill_holes=fill_holes,
        simplify=simplify,
        smooth=smooth,
        dissolve=dissolve,
        classes=classes,
        background=background,
        names=names,
        probabilities=probabilities,
        to_crs=to_crs,
        overwrite=overwrite,
        show_progress=True,
    )
    _print_areas("polygons", summary.polygons, summary.hectares)
    print(f"\n{summary.path}")


@app.command()
def report(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RUN|MAP|SCORES...", help="Run folder, map (.tif), scores or areas (.json).")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page (.html).")] = None,
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Also, or only, its pictures, as PNG.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(parser=located, help="Of the map: its imagery; repeated, files of its bands or dates."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(parser=located, help="Of the map: its labels; with them it is scored.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Vector labels: the field that names the class.")] = None,
    nodata: LabelNoData = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE.tif", help="Of the map: probabilities as predict wrote them.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Of the map: names of classes, CSV with value,name.")] = None,
    ignore: Annotated[
        list[int] | None, typer.Option(help='Of the map: a label code that means "not known". May be repeated.')
    ] = None,
    boundary: Annotated[str, typer.Option(metavar="WIDTH", help="Width of boundaries: 20m, 2px.")] = "2px",
    objects: Annotated[str, typer.Option(metavar="AREA", help="Smallest object that counts: 0.5ha, 12px.")] = "1px",
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    overwrite: Overwrite = False,
) -> None:
    """Make one page that opens offline: scores, charts, areas, worst windows, and a map to pan and zoom."""
    from segkit.reporting.report import report as run

    if labels is None and (field or nodata):
        name = "--field" if field else "--nodata"
        raise typer.BadParameter("belongs to labels, and there are none (--labels)", param_hint=name)
    result = run(
        sources,
        output,
        png=png,
        images=images,
        labels=labels if labels is None else _labels(labels, field, nodata),
        probabilities=probabilities,
        names=names,
        ignore=ignore or (),
        boundary=boundary,
        objects=objects,
        device=device.value,
        precision=precision.value,
        overwrite=overwrite,
        show_progress=True,
    )
    for path in (*result.pictures, *([result.path] if result.path else [])):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def change(
    old: Annotated[Path, typer.Argument(metavar="MAP_OLD", help="Map of class values (.tif).")],
    new: Annotated[Path, typer.Argument(metavar="MAP_NEW", help="A later one, on the same grid.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Map of transitions (.tif).")],
    table: Annotated[Path | None, typer.Option(help="Also write the hectares from class to class (.csv).")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Which class, where classes overlap.")] = None,
    names: Annotated[Path | None, typer.Option(help="Names of classes: CSV with the columns value,name.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two maps: a map of what became of what, and its hectares."""
    from segkit.maps.change import change as run

    result = run(old, new, output, of=class_, names=names, table=table, overwrite=overwrite, show_progress=True)
    hectares = result.table()
    rows = [
        (str(name), *(f"{value:,.2f}" for value in row))
        for name, row in zip(hectares.index, hectares.to_numpy(), strict=True)
    ]
    _print_table(("hectares from / to", *map(str, hectares.columns)), rows)
    if result.unseen:
        print(f"\n{result.unseen:,} pixels have data in one of the maps only; they are no data")
    print(f"\n{result.path}" + ("" if table is None else f"\n{table}"))


@assess.command("design")
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
    _print_table(("stratum", "pixels", "hectares", "expected", "points"), rows)
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


@assess.command("estimate")
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
    _print_table(("class", "mapped ha", "area ha", "user's", "producer's", "n map", "n ref"), rows)
    print(f"\noverall accuracy {number(found.overall, found.overall_ci, 4)}   (± half of a 95 % interval)")
    if found.unfilled:
        print(f"{found.unfilled} points have no ref_class and were left out")
    for target in targets:
        print(write_estimate(found, target, overwrite=overwrite))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from segkit.recipe.schema import schema as run

    print(json.dumps(run(), indent=2))


def main() -> None:
    """Run the command line; a traceback only on --debug.

    Exit codes: 2 for usage, 1 for a failed job, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    debug = "--debug" in sys.argv
    _open_streams()
    _find_folders()
    warnings.showwarning = _warn
    with _ended_by_signals() as received:
        code = _run([argument for argument in sys.argv[1:] if argument != "--debug"], debug=debug)
        if received:
            code = _SIGNALLED + received[0]
        if code == _INTERRUPTED or received:  # typer makes this code of Ctrl-C itself
            what = f"ended by {signal.Signals(received[0]).name}" if received else "interrupted"
            _fail(f"{what}; what was finished before is there, nothing is half-written", code)
        sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run a command, tell what went wrong, and return the exit code."""
    options = _options(arguments)
    try:
        with offering(options):
            return app(args=arguments, prog_name="segkit", standalone_mode=False) or 0
    except (KeyboardInterrupt, Abort):
        return _INTERRUPTED
    except TyperException as error:
        command, below = [*(argument for argument in arguments if not argument.startswith("-")), "", ""][:2]
        command += f" {below}" if f"{command} {below}" in _commands() else ""
        help_ = f"segkit {command} --help" if command in _commands() else "segkit --help"
        return _fail(f"{error.format_message().rstrip('.')}; see {help_}", error.exit_code)
    except SegkitError as error:
        if debug:
            raise
        return _fail(str(error) + _about_keys(str(error), options), error.exit_code)
    except Exception as error:
        if debug:
            raise
        return _fail(_unforeseen(error), 1)


def _unforeseen(error: Exception) -> str:
    """Say what another library or the system raised: what the system has too little of is no fault of the program."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        return (
            f"not enough memory{f' ({text})' if text else ''}; free some, raise the limit (ulimit -v), or ask for less"
        )
    if isinstance(error, OSError) and error.strerror:
        from segkit.io.files import because

        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{because(error, Path())}"
    if isinstance(error, UnicodeError):
        return f"a name or text is not in the encoding of this locale: {text}; rename it, or set PYTHONUTF8=1"
    return f"unexpected {type(error).__name__}: {text}; run again with --debug to see where"


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does; gives those that came.

    A signal that is ignored (nohup), or that a host process has a handler for, stays so. One that follows at once,
    as when a terminal is closed, must not stop what the first has begun.
    """
    received: list[int] = []
    latest = 0.0

    def end(number: int, _: Any) -> None:
        nonlocal latest
        before, latest = latest, time.monotonic()
        received.append(number)
        if len(received) == 1 or latest - before > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _open_streams() -> None:
    """Open what was closed of stdin, stdout and stderr, or a library's messages end in the next file that is opened.

    What cannot be encoded is escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _find_folders() -> None:
    """Name folders that can be written to libraries that keep settings and downloads where this user may not write."""
    from segkit.io.files import home_folder, private_folder

    home = home_folder()
    os.environ.setdefault("HOME", str(home))
    config, cache = (
        Path(os.environ.get(name) or home / own)
        for name, own in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    )
    for variable, folders in {
        "MPLCONFIGDIR": (config / "matplotlib", cache / "matplotlib"),
        "HF_HOME": (cache / "huggingface",),
        "TORCH_HOME": (cache / "torch",),
    }.items():
        unusable = variable not in os.environ and not all(map(_can_be_written, folders))
        if unusable and (private := private_folder()) is not None:
            os.environ[variable] = str(private / folders[0].name)


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that is there, can be written to."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return os.access(there, os.W_OK)


def _options(arguments: Sequence[str]) -> set[str]:
    """Return the options of the command that is asked for."""
    command: Any = typer.main.get_command(app)
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    return {option for parameter in command.params for option in parameter.opts}


def _about_keys(message: str, options: set[str]) -> str:
    """Say of what a message calls by a key of the recipe that this command takes no recipe."""
    keys = [] if RECIPE in options else sorted(set(KEY.findall(message)) & _keys())
    if not keys:
        return ""
    named = f"{keys[0]} is a key" if len(keys) == 1 else f"{' and '.join(keys)} are keys"
    return f" ({named} of a recipe, and this command takes none: change the files, or the recipe and train again)"


def _keys() -> set[str]:
    """Return the keys that messages name: data.bands, labels.values."""
    import dataclasses

    from pydantic import BaseModel

    from segkit.recipe.schema import Data, LabelSource, Model, Train
    from segkit.task.task import Task

    parts: dict[str, type[BaseModel]] = {"data": Data, "labels": LabelSource, "model": Model, "train": Train}
    names = {f"{part}.{name}" for part, kind in parts.items() for name in kind.model_fields}
    return names | {f"task.{field.name}" for field in dataclasses.fields(Task)}


def _commands() -> set[str]:
    own = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    return own | {"assess"} | {f"assess {command.name}" for command in assess.registered_commands}


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, without the place in the code."""
    print(f"segkit: warning: {message}", file=_messages())


def _fail(message: str, code: int) -> int:
    print(f"segkit: {message}", file=_messages())
    return code


def _messages() -> TextIO:
    """Where errors and warnings go: to stdout where stderr was closed from the beginning."""
    return sys.stdout if sys.__stderr__ is None else sys.stderr


def _print_metrics(metrics: dict[str, Any]) -> None:
    def number(value: float | int | None) -> str:
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    known = ("iou", "f1", "precision", "recall", "boundary_iou", "boundary_f1", "object_f1", "support")
    columns = [key for key in known if all(key in scores for scores in metrics["per_class"].values())]
    rows = [(name, *(number(scores[key]) for key in columns)) for name, scores in metrics["per_class"].items()]
    _print_table(("class", *columns), rows)
    told = ("overall_accuracy", "mean_iou", "macro_f1", "ece", "brier", "pixels")
    print("\n" + "   ".join(f"{key} {number(metrics[key])}" for key in told if key in metrics))
    intervals = metrics.get("intervals")
    if intervals:
        spans = (
            f"{key} {low:.4f} to {high:.4f}" for key in told[:3] if intervals[key] for low, high in [intervals[key]]
        )
        print(f"95 % over {intervals['units']} {intervals['unit']}s: " + "   ".join(spans))


def _print_comparison(result: Comparison) -> None:
    """Print a row of means and spreads for each variant, and the matrix of agreement."""
    from segkit.training.compare import MEASURES

    def number(value: float | None, key: str) -> str:
        return "-" if value is None else f"{value:,.1f}" if "seconds" in key else f"{value:.4f}"

    header = ["variant", "n"]
    for title in MEASURES.values():
        header += [title, "+-"]
    rows = []
    for row in result.rows:
        cells = [row.variant, str(row.trials)]
        for key, measure in row.measures.items():
            cells += [number(measure.mean, key), number(measure.spread, key)]
        rows.append(tuple(cells))
    _print_table(tuple(header), rows)
    print("\ndecided alike (diagonal: with another seed)")
    shares = [["-" if share is None else f"{share:.2%}" for share in line] for line in result.agreement]
    names = [row.variant for row in result.rows]
    _print_table(("", *names), [(name, *line) for name, line in zip(names, shares, strict=True)])
    print(f"\ntable {result.folder / 'compare.csv'}\npicture {result.picture}")


def _print_summary(summary: Summary) -> None:
    from segkit.runtime.progress import count

    done = not summary.seconds
    print(f"{summary.path}" + (" was finished already by the same request; nothing to do" if done else ""))
    _print_areas("pixels", summary.pixels, summary.hectares)
    choice = summary.choice
    print(f"tile {choice.tile}, overlap {choice.overlap}, {_said_of_precision(choice)}")
    if not done:
        memory = "" if summary.peak_memory is None else f", peak memory {summary.peak_memory / 2**20:,.0f} MiB"
        resumed = f", {summary.resumed} of {summary.bands} bands taken over" if summary.resumed else ""
        print(f"{summary.seconds:.1f} s, {count(summary.mpx_per_second)} Mpx/s{memory}{resumed}\n")


def _said_of_precision(choice: Choice) -> str:
    from segkit.runtime.progress import count

    if choice.agreement is None:
        return choice.precision
    share = f"{count(100 * (1 - choice.agreement))} % of the pixels"
    return f"bf16 ({share} differ from fp32)" if choice.precision == "bf16" else f"fp32 (bf16 would change {share})"


def _print_areas(counted: str, counts: dict[str, int], hectares: dict[str, float] | None) -> None:
    rows = [
        (name, f"{count:,}", "" if hectares is None else f"{hectares[name]:,.2f}") for name, count in counts.items()
    ]
    _print_table(("class", counted, "hectares"), rows)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = row
        print(
            "  ".join(
                [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
            )
        )


if __name__ == "__main__":
    main()
