"""Commands that work with finished maps: vectorize, change, clean, reclassify, areas."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.mosaics import AsMosaic, OfOverlap, each_raster, one_raster
from segkit.cli.options import (
    Attributes,
    BoundaryClass,
    ClassNames,
    FillHoles,
    MaxArea,
    MinArea,
    MinConfidence,
    OverlappingClass,
    Overwrite,
    Protect,
    Regularize,
    Split,
    SplitBy,
    SplitDepth,
)
from segkit.cli.output import emit
from segkit.cli.printing import print_areas, print_table
from segkit.cli.root import app, examples
from segkit.io.remote import as_path

_ROWS_SHOWN = 20  # zones that areas prints if it writes all of them to a file


@app.command(
    epilog=examples(
        "segkit vectorize map.tif forest.gpkg --min-area 0.5ha --simplify 10m",
        "segkit vectorize --mosaic tiled all.gpkg",
    )
)
def vectorize(
    map_: Annotated[
        list[Path], typer.Argument(metavar="MAP", help="Map of class values (.tif); several with --mosaic.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Polygons (.gpkg, .shp, .parquet, .fgb or .geojson).")],
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    min_area: MinArea = None,
    fill_holes: FillHoles = None,
    protect: Protect = None,
    simplify: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Simplify borders by at most this distance: 10m, 1.5px.")
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Round corners.")] = False,
    regularize: Regularize = None,
    split: Split = None,
    split_by: SplitBy = None,
    split_depth: SplitDepth = None,
    boundary_class: BoundaryClass = None,
    max_area: MaxArea = None,
    min_confidence: MinConfidence = None,
    attributes: Attributes = None,
    dissolve: Annotated[bool, typer.Option("--dissolve", help="One multipolygon per class.")] = False,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="Only this class (name or value). Repeatable.")
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Also write polygons of background.")] = False,
    class_names: ClassNames = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE.tif", help="Probabilities of the map; fills the column mean_conf.")
    ] = None,
    to_crs: Annotated[
        str | None, typer.Option("--to-crs", metavar="CRS", help="Reproject the polygons: EPSG:4326.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a map into polygons with true areas and shared borders."""
    from segkit.vector import vectorize as run

    summary = run(
        one_raster(map_, mosaic_overlap, mosaic=mosaic, what="MAP"),
        output,
        min_area=min_area,
        fill_holes=fill_holes,
        protect=protect or (),
        simplify=simplify,
        smooth=smooth,
        regularize=regularize or (),
        split=split or (),
        split_by=split_by and split_by.value,
        split_depth=split_depth,
        boundary_class=boundary_class,
        max_area=max_area,
        min_confidence=min_confidence,
        attributes=[one.value for one in attributes or ()],
        dissolve=dissolve,
        classes=classes,
        background=background,
        class_names=class_names,
        probabilities=probabilities and each_raster([probabilities], mosaic_overlap, mosaic=mosaic)[0],
        to_crs=to_crs,
        overwrite=overwrite,
        show_progress=True,
    )
    print_areas("polygons", summary.polygons, summary.hectares)
    if split:
        print(f"\n{summary.areas_split:,} areas split into {summary.objects_split:,} objects")
        if summary.too_large_to_split:
            from segkit.vector.tracing.splitter import MAX_AREA_PIXELS

            print(f"not split, longer or wider than {MAX_AREA_PIXELS:,} pixels: {summary.too_large_to_split:,}")
    if regularize:
        print(f"\nright-angled outlines: {summary.right_angled:,}; ordinary ones: {summary.not_right_angled:,}")
    count = summary.left_out
    print(f"\n{count:,} polygon{'s' if count > 1 else ''} left out" if count else "")
    print(summary.path)
    emit(summary)


@app.command(
    epilog=examples(
        "segkit change map_2019.tif map_2024.tif -o change.tif --table change.csv",
    )
)
def change(
    old: Annotated[Path, typer.Argument(metavar="MAP_OLD", help="Map of class values (.tif).")],
    new: Annotated[Path, typer.Argument(metavar="MAP_NEW", help="A later map on the same grid.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Map of transitions (.tif).")],
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the hectares of each transition (.csv).")
    ] = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    class_: OverlappingClass = None,
    class_names: ClassNames = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two maps: a map of transitions between classes, and their hectares."""
    from segkit.maps.change import change as run

    before, after = each_raster([old, new], mosaic_overlap, mosaic=mosaic)
    result = run(
        before,
        after,
        output,
        class_name=class_,
        class_names=class_names,
        table=table,
        overwrite=overwrite,
        show_progress=True,
    )
    hectares = result.table()
    rows = [
        (str(name), *(f"{value:,.2f}" for value in row))
        for name, row in zip(hectares.index, hectares.to_numpy(), strict=True)
    ]
    print_table(("hectares from / to", *map(str, hectares.columns)), rows)
    if result.unmatched_pixels:
        print(f"\n{result.unmatched_pixels:,} pixels have data in only one of the maps; they are no data in the result")
    print(f"\n{result.path}" + ("" if table is None else f"\n{table}"))
    emit({field.name: getattr(result, field.name) for field in fields(result)} | {"table": table})


@app.command(epilog=examples("segkit clean map.tif cleaned.tif --min-area 0.5ha --protect deforestation"))
def clean(
    map_: Annotated[
        list[Path], typer.Argument(metavar="MAP", help="Map of class values (.tif); several with --mosaic.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New map (.tif).")],
    min_area: MinArea = None,
    fill_holes: FillHoles = None,
    protect: Protect = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    class_names: ClassNames = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge small regions of a map into neighbours, and fill small holes, as vectorize does with polygons."""
    from segkit.maps.cleaning import clean as run

    if min_area is None and fill_holes is None:
        raise typer.BadParameter("give the smallest area: --min-area or --fill-holes", param_hint="--min-area")
    result = run(
        one_raster(map_, mosaic_overlap, mosaic=mosaic, what="MAP"),
        output,
        min_area=min_area,
        fill_holes=fill_holes,
        protect=protect or (),
        class_names=class_names,
        overwrite=overwrite,
        show_progress=True,
    )
    before = result.pixels_before
    print_table(
        ("class", "pixels before", "after"), [(n, f"{before[n]:,}", f"{c:,}") for n, c in result.pixels.items()]
    )
    print(f"\n{result.path}")
    emit(result)


@app.command(
    epilog=examples(
        'segkit reclassify map.tif simple.tif --rename deforestation=cleared --color "cleared=#d7301f"',
        'segkit reclassify map.tif new.tif --rule "deforestation to background inside district.gpkg"',
        "segkit reclassify forest.safetensors renamed.safetensors --rename deforestation=cleared",
    )
)
def reclassify(
    source: Annotated[Path, typer.Argument(metavar="MAP|MODEL", help="Map (.tif), or model file.", parser=as_path)],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New map (.tif) or model file.")],
    merge: Annotated[
        list[str] | None,
        typer.Option(metavar="NEW=CLASS,...", help="Merge classes: forest=primary,secondary. Repeatable."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=NEW", help="Rename a class (name or value). Repeatable.")
    ] = None,
    color: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=#RRGGBB", help="Colour of a class of the result. Repeatable.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=CODE", help="Code of a class of the result. Repeatable.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help='For maps: change a class, before all else: "clearing to forest outside before.tif:forest".'
            " Repeatable.",
        ),
    ] = None,
    class_names: ClassNames = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge, rename and recolour classes, or change a class where another map or polygons say so."""
    from segkit.models.reclassification import ReclassifiedModel
    from segkit.models.reclassification import reclassify as run

    result = run(
        source,
        output,
        merge={new: _listed(classes) for new, classes in _pairs(merge, "--merge", "forest=primary,secondary").items()},
        rename=_pairs(rename, "--rename", "clearing=cleared"),
        colors=_pairs(color, "--color", "forest=#1b7837"),
        values={name: _code(name, text) for name, text in _pairs(value, "--value", "forest=3").items()},
        rules=rule or (),
        class_names=class_names,
        overwrite=overwrite,
        show_progress=True,
    )
    if isinstance(result, ReclassifiedModel):
        print_table(
            ("class", "value", "color"), [(one.name, str(one.value), one.color or "") for one in result.classes]
        )
        if not result.has_scores:
            print("\nthe model has no scores: its decisions may differ from before; run segkit evaluate")
    else:
        rows = [(one.name, str(one.value), one.color or "", f"{result.pixels[one.name]:,}") for one in result.classes]
        print_table(("class", "value", "color", "pixels"), rows)
        for count in result.rules:
            unknown = f"; {count.unknown:,} where {count.rule.path} has no data stay" if count.unknown else ""
            print(f"{count.rule.old} to {count.rule.new}: {count.changed:,} pixels{unknown}")
    print(f"\n{result.path}")
    emit(result)


def _pairs(texts: list[str] | None, option: str, form: str) -> dict[str, str]:
    """Parse NAME=VALUE; a name that is given twice is an error."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise typer.BadParameter(f"{text!r} is not of the form {form}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        found[name] = value
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _code(name: str, text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"{name}={text} is not a whole number", param_hint="--value")
    return int(text)


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit areas map.tif districts.gpkg --by name -o districts.csv",
        "segkit areas map.tif districts.gpkg --by name --probabilities probabilities.tif -o districts.xlsx",
    ),
)
def areas(
    map_: Annotated[
        list[Path], typer.Argument(metavar="MAP", help="Map of class values (.tif); several with --mosaic.")
    ],
    zones: Annotated[Path, typer.Argument(metavar="ZONES", help="Polygons in any CRS (.gpkg, .shp, ...).")],
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Field that names the zones; equal names are one zone.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Layer of ZONES, if it has several.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the table (.csv or .xlsx).")
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE.tif", help="Probabilities of the map: also sum expected areas.")
    ] = None,
    mosaic: AsMosaic = False,
    mosaic_overlap: OfOverlap = None,
    class_names: ClassNames = None,
    overwrite: Overwrite = False,
) -> None:
    """Sum the true area of each class in each zone; pixels on a border count with their exact fraction."""
    from segkit.maps.zonal_areas import areas as run

    result = run(
        one_raster(map_, mosaic_overlap, mosaic=mosaic, what="MAP"),
        zones,
        by=by,
        layer=layer,
        output=output,
        probabilities=probabilities and each_raster([probabilities], mosaic_overlap, mosaic=mosaic)[0],
        class_names=class_names,
        overwrite=overwrite,
        show_progress=True,
    )
    table = result.table()
    rows = [(str(name), *(f"{value:,.4f}" for value in row)) for name, *row in table.itertuples(index=False)]
    print_table(tuple(table.columns), rows if result.path is None else rows[:_ROWS_SHOWN])
    if result.path is not None and len(rows) > _ROWS_SHOWN:
        print(f"... {len(rows) - _ROWS_SHOWN:,} more zones in the file")
    if result.path is not None:
        print(f"\n{result.path}")
    emit({"by": by, "path": result.path, "zones": table})
