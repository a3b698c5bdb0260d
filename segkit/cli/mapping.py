"""Commands that make and judge maps: predict, evaluate, report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.mosaics import AsMosaic, MosaicOverlap, OfOverlap, check_overlap, each_raster, one_raster, scenes_from
from segkit.cli.options import (
    Augmentation,
    AverageWith,
    BoundaryWidth,
    ClassNames,
    Device,
    IgnoredCodes,
    ImageDates,
    ImageNoData,
    InBackend,
    InPrecision,
    LabelField,
    LabelNoData,
    LayerFiles,
    MaskFile,
    MaskMeaning,
    MinObjectArea,
    NoData,
    Offset,
    OnDevice,
    Overlap,
    Overwrite,
    Precision,
    ReadErrors,
    Scale,
    SceneNoData,
    SetLabels,
    Tile,
    Uncertainty,
    parse_layers,
)
from segkit.cli.output import emit, show_result
from segkit.cli.printing import (
    print_forecasts,
    print_metrics,
    print_summary,
    print_worst_scenes,
)
from segkit.cli.root import app, examples
from segkit.io.remote import as_path

_WORST_SCENES = 3  # that evaluate prints


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit evaluate forest.safetensors --images scene.tif --labels truth.tif -o scores.json",
        "segkit evaluate map.tif --labels truth.tif --class-names names.csv",
    ),
)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL|MAP", help="Model file, or folder of all folds; map, or folder of maps."),
    ],
    labels: Annotated[
        str, typer.Option(metavar="PATH", help="Labels: file, folder or glob, paired with images by file name.")
    ],
    images: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="For a model: scenes; file, folder or glob. Repeatable.")
    ] = None,
    stack: Annotated[bool, typer.Option("--stack", help="The images are bands or dates of one scene.")] = False,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    pair: Annotated[
        str | None, typer.Option(metavar="PATTERN", help='Names of images, if those of labels differ: "{}_sat".')
    ] = None,
    dates: ImageDates = None,
    field: LabelField = None,
    nodata: LabelNoData = None,
    set_labels: SetLabels = None,
    average_with: AverageWith = None,
    boundary_width: BoundaryWidth = "2px",
    min_object_area: MinObjectArea = "1px",
    ignore: IgnoredCodes = None,
    class_names: ClassNames = None,
    image_nodata: ImageNoData = None,
    scale: Scale = None,
    offset: Offset = None,
    mask: MaskFile = None,
    mask_preset: MaskMeaning = None,
    layer: LayerFiles = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the scores (.json).")
    ] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    backend: InBackend = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a model or maps against labels: IoU, F1, boundaries, objects, calibration, confusion matrix."""
    from segkit.evaluation.evaluate import evaluate as run
    from segkit.io.files import require_file
    from segkit.models.run_folder import find_folds

    is_model = model.suffix.lower() in (".safetensors", ".onnx") or (bool(images) and bool(find_folds(model)))
    scored = model if is_model else one_raster([model], mosaic_overlap, mosaic=mosaic, what="map")
    require_file(scored, "model file or map")
    if is_model and not images:
        raise typer.BadParameter("a model needs scenes", param_hint="--images")
    if not is_model and images:
        raise typer.BadParameter(f"{model} is a map, which needs no images; leave it out", param_hint="--images")
    if not is_model and average_with:
        raise typer.BadParameter(f"{model} is a map; only models are averaged", param_hint="--average-with")
    if is_model and (ignore or class_names):
        raise typer.BadParameter(
            "is for maps only; a model file holds its own", param_hint="--ignore" if ignore else "--class-names"
        )
    reading: dict[str, object] = {"--image-nodata": image_nodata, "--scale": scale, "--offset": offset}
    reading |= {"--mask": mask, "--mask-preset": mask_preset, "--layer": layer, "--backend": backend}
    if not is_model and (given := [option for option, value in reading.items() if value]):
        raise typer.BadParameter(f"{scored} is a map, which needs no images; leave it out", param_hint=given[0])
    paths = [as_path(one) for one in images or ()]
    result = run(
        [scored, *average_with] if average_with else scored,
        scenes_from(paths, mosaic_overlap, stack=stack, mosaic=mosaic) if is_model else None,
        _labels(labels, field, nodata, set_labels),
        output,
        pair=pair,
        dates=dates,
        boundary_width=boundary_width,
        min_object_area=min_object_area,
        ignore=ignore or (),
        class_names=class_names,
        nodata=image_nodata,
        scale=scale,
        offset=offset,
        mask=mask,
        mask_preset=None if mask_preset is None else mask_preset.value,
        layers=parse_layers(layer),
        tile=tile,
        overlap=overlap,
        precision=precision.value,
        device=device.value,
        backend=None if backend is None else backend.value,
        overwrite=overwrite,
        show_progress=True,
    )
    print_metrics(result)
    print_worst_scenes(result, _WORST_SCENES)
    if output is not None:
        print(f"\n{output}")
    emit(result)


def _labels(path: Any, field: str | None, nodata: NoData | None, options: list[str] | None) -> Any:
    from segkit.recipe.label_source import label_source_from

    if field is None and nodata is None and not options:
        return path
    source = label_source_from(str(path), options or ())
    given = {"field": field, "nodata": None if nodata is None else nodata.value}
    return source.model_copy(update={key: value for key, value in given.items() if value is not None})


@app.command(
    epilog=examples(
        "segkit predict forest.safetensors scene.tif -o map.tif --probabilities probabilities.tif",
        "segkit predict forest.safetensors north.tif south.tif -o maps/ --vector maps/ --cluster local:2",
        "segkit predict forest.safetensors scene.tif -o mean.tif --average-with second.safetensors",
        "segkit predict forest.safetensors scene.tif -o checked.tif --uncertainty entropy --applicability index.tif",
        "segkit predict forest.safetensors --mosaic tiles -o tiled/ --like-input",
    )
)
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Model file (.safetensors or .onnx), or a folder of all folds: their mean."
        ),
    ],
    scenes: Annotated[
        list[Path],
        typer.Argument(metavar="SCENE...", parser=as_path, help="Rasters, folders or globs of them, or URLs."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="PATH", help="Map (.tif), or a folder for several scenes.")
    ],
    stack: Annotated[bool, typer.Option("--stack", help="The files are bands or dates of one scene.")] = False,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    like_input: Annotated[
        bool, typer.Option("--like-input", help="Cut the map of a mosaic like its files, into the folder of -o.")
    ] = False,
    dates: ImageDates = None,
    probabilities: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write class probabilities, a band per class.")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write the probability of the predicted class.")
    ] = None,
    uncertainty: Annotated[
        list[Uncertainty] | None,
        typer.Option(
            metavar="entropy|margin|disagreement",
            help="Also write this measure of uncertainty to MAP_uncertainty.tif; disagreement needs several models. "
            "Repeatable.",
        ),
    ] = None,
    applicability: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write how unlike the training data each pixel is.")
    ] = None,
    vector: Annotated[str | None, typer.Option(metavar="PATH", help="Also write polygons (.gpkg, .shp, ...).")] = None,
    stac: Annotated[str | None, typer.Option(metavar="PATH", help="Also write a STAC item of the map (.json).")] = None,
    average_with: AverageWith = None,
    aoi: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Area of interest: polygons outside of which the map is no data."),
    ] = None,
    aoi_layer: Annotated[str | None, typer.Option(metavar="NAME", help="Layer of --aoi, if it has several.")] = None,
    nodata: SceneNoData = None,
    scale: Scale = None,
    offset: Offset = None,
    mask: MaskFile = None,
    mask_preset: MaskMeaning = None,
    layer: LayerFiles = None,
    tile: Tile = None,
    overlap: Overlap = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Windows per batch (default: automatic).")
    ] = None,
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    backend: InBackend = None,
    exact: Annotated[bool, typer.Option("--exact", help="The same result as without tiling, in fp32; slower.")] = False,
    tta: Annotated[
        Augmentation | None, typer.Option(help="Test-time augmentation; d4: mean of 8 rotations and flips.")
    ] = None,
    on_read_error: Annotated[
        ReadErrors, typer.Option("--on-read-error", help="Whether blocks that cannot be read are an error, or no data.")
    ] = ReadErrors.FAIL,
    vrt: Annotated[
        bool, typer.Option("--vrt", help="Allow virtual rasters (.vrt); they can read any other file.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster: local:4, or tls://host:8786.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow unencrypted tcp:// to other hosts.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many windows, how much time and memory it would take.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Map scenes of any size without seams, as cloud-optimised GeoTIFFs."""
    from segkit.errors import ScenesError
    from segkit.inference.predict import predict as run

    given = scenes_from(scenes, mosaic_overlap, stack=stack, mosaic=mosaic)
    models = [model, *average_with] if average_with else model
    options: dict[str, Any] = {
        "probabilities": probabilities,
        "confidence": confidence,
        "uncertainty": [one.value for one in uncertainty or ()],
        "applicability": applicability,
        "vector": vector,
        "stac": stac,
        "like_input": like_input,
        "aoi": aoi,
        "aoi_layer": aoi_layer,
        "nodata": nodata,
        "scale": scale,
        "offset": offset,
        "mask": mask,
        "mask_preset": None if mask_preset is None else mask_preset.value,
        "layers": parse_layers(layer),
        "tile": tile,
        "overlap": overlap,
        "batch_size": batch_size,
        "precision": precision.value,
        "device": device.value,
        "exact": exact,
        "tta": None if tta is None else tta.value,
        "backend": None if backend is None else backend.value,
        "on_read_error": on_read_error.value,
        "dates": dates,
        "vrt": vrt,
        "overwrite": overwrite,
    }
    if dry_run:
        if cluster is not None:
            raise typer.BadParameter("times this machine, not a cluster; leave out --cluster", param_hint="--dry-run")
        from segkit.inference.forecasting import forecast

        forecasts = forecast(models, given, output, **options)
        show_result()
        print_forecasts(forecasts)
        emit(forecasts)
        return
    if cluster is not None:
        from segkit.inference.dask_executor import connect

    try:
        with nullcontext() if cluster is None else connect(cluster, insecure=insecure) as executor:
            summaries = run(models, given, output, **options, show_progress=True, executor=executor)
    except ScenesError as failed:
        for summary in failed.summaries:
            print_summary(summary)
        emit(failed.summaries)
        raise
    for summary in summaries:
        print_summary(summary)
    emit(summaries)


@app.command(
    epilog=examples(
        "segkit report trained map.tif --images scene.tif -o report.html",
        "segkit report first second start.gpkg next.gpkg --images scene.tif --labels kept_apart.tif -o loop.html",
    )
)
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Run folder (several: rounds of labelling), map (.tif), scores or areas (.json), windows of suggest "
            "(.gpkg), folder of audit.",
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Report (.html).")] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pictures as PNG, too, or only these.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            parser=as_path,
            help="Imagery of the map, or the files of its bands or dates; without a map: scenes of windows, or of "
            "--labels. Repeatable.",
        ),
    ] = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="PATH", parser=as_path, help="Labels to score the map, or without a map several runs."),
    ] = None,
    field: LabelField = None,
    nodata: LabelNoData = None,
    set_labels: SetLabels = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE.tif", help="Probabilities of the map, as predict writes them.")
    ] = None,
    class_names: ClassNames = None,
    ignore: IgnoredCodes = None,
    boundary_width: BoundaryWidth = "2px",
    min_object_area: MinObjectArea = "1px",
    precision: InPrecision = Precision.AUTO,
    device: OnDevice = Device.AUTO,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page that works offline: scores, charts, areas, tiles with most errors, zoomable map."""
    from segkit.reporting.report import report as run

    check_overlap(mosaic_overlap, mosaic=mosaic)
    if labels is None and (field or nodata):
        name = "--field" if field else "--nodata"
        raise typer.BadParameter("needs labels (--labels)", param_hint=name)
    result = run(
        _join_maps(sources, mosaic_overlap) if mosaic else sources,
        output,
        png=png,
        images=images and each_raster(images, mosaic_overlap, mosaic=mosaic),
        labels=labels if labels is None else _labels(labels, field, nodata, set_labels),
        probabilities=probabilities and each_raster([probabilities], mosaic_overlap, mosaic=mosaic)[0],
        class_names=class_names,
        ignore=ignore or (),
        boundary_width=boundary_width,
        min_object_area=min_object_area,
        device=device.value,
        precision=precision.value,
        overwrite=overwrite,
        show_progress=True,
    )
    for path in (*result.pictures, *([result.path] if result.path else [])):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    emit(result)


def _join_maps(sources: list[Path], overlap: MosaicOverlap | None) -> list[Path]:
    """Return the sources of a report, with all maps as one mosaic: rasters, globs, and folders of no run or audit."""
    from segkit.auditing.results import FILES
    from segkit.models.run_folder import METRICS

    of_folders = METRICS, *FILES
    others = [
        path
        for path in sources
        if path.suffix.lower() in (".json", ".gpkg") or any((path / name).exists() for name in of_folders)
    ]
    maps = [path for path in sources if path not in others]
    return [*others, one_raster(maps, overlap, mosaic=True, what="map")] if maps else others
