"""Commands that make and judge maps: predict, vectorize, change, evaluate, report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.options import (
    Augmentation,
    Device,
    InPrecision,
    LabelNoData,
    ModelFile,
    NoData,
    OnDevice,
    Overlap,
    Overwrite,
    Precision,
    Tile,
)
from segkit.cli.root import app
from segkit.cli.tables import print_areas, print_metrics, print_summary, print_table
from segkit.io.remote import located


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
    print_metrics(result)


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
            print_summary(summary)
        raise
    for summary in summaries:
        print_summary(summary)


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
    print_areas("polygons", summary.polygons, summary.hectares)
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
    print_table(("hectares from / to", *map(str, hectares.columns)), rows)
    if result.unseen:
        print(f"\n{result.unseen:,} pixels have data in one of the maps only; they are no data")
    print(f"\n{result.path}" + ("" if table is None else f"\n{table}"))
