"""Commands that work with finished maps: areas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.mosaics import AsMosaic, OfOverlap, each_raster, one_raster
from segkit.cli.options import ClassNames, Overwrite
from segkit.cli.output import emit
from segkit.cli.printing import print_table
from segkit.cli.root import app, examples


@app.command(
    prints_result=True,
    epilog=examples(
        "segkit areas map.tif districts.gpkg --by name -o areas.csv",
        "segkit areas map.tif districts.gpkg --by name --probabilities probabilities.tif -o areas.xlsx",
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
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the table: .csv or .xlsx.")] = None,
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
    print_table(tuple(table.columns), rows)
    if result.path is not None:
        print(f"\n{result.path}")
    emit({"by": by, "path": result.path, "zones": table})
