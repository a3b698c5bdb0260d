"""A STAC item that describes a predicted map and the rasters and polygons beside it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.io import DatasetReader

from segkit.errors import suggest
from segkit.inference.outputs import OutputRequest
from segkit.inference.scene_files import MAP, PredictionFiles
from segkit.io.acquisition import find_acquisition
from segkit.io.class_table import Legend
from segkit.io.footprint import find_footprint
from segkit.io.grid import Grid
from segkit.io.paths import list_files
from segkit.io.product import Product
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import Remote
from segkit.io.stac import find_stac_items
from segkit.io.stac_output import (
    ITEM_SUFFIX,
    ITEM_TYPE,
    check_item_path,
    format_time,
    make_classes,
    make_href,
    make_item,
    write_item,
)
from segkit.models.ensemble import members
from segkit.models.stac_model import find_model_item, model_name

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_TITLES = {
    "map": "Class of each pixel",
    "probabilities": "Probability of each class",
    "confidence": "Probability of the predicted class",
    "uncertainty": "Uncertainty",
    "applicability": "Dissimilarity to the training data",
}
_VECTOR_TYPES = {
    ".gpkg": "application/geopackage+sqlite3",
    ".geojson": "application/geo+json",
    ".parquet": "application/vnd.apache.parquet",
    ".fgb": "application/vnd.flatgeobuf",
    ".shp": "application/vnd.shp",
}
_MAX_LISTED = 20  # files of a scene that are linked; a mosaic can have thousands


def write_map_item(job: PredictionFiles, model: AnyModel, *, overwrite: bool) -> None:
    """Write the item of a finished map, unless a newer file exists.

    Raises
    ------
    OutputExistsError
        An older file exists, and `overwrite` is false.
    """
    path = job.stac
    assert path is not None
    written = max(file.stat().st_mtime_ns for file in job.outputs if file != path)
    if not overwrite and path.exists() and path.stat().st_mtime_ns >= written:
        return
    check_item_path(path, overwrite=overwrite)
    write_item(describe_map_item(job, model, path), path)


def describe_map_item(job: PredictionFiles, model: AnyModel, path: Path) -> dict[str, Any]:
    """Return the item of a finished map that is to be written to a path."""
    with open_raster(job.whole(MAP)) as dataset:
        grid, tags = read_grid(dataset), dataset.tags()
    created = format_time(datetime.fromisoformat(tags["segkit_date"]))
    names = [model_name(one.recipe.name) for one in members(model)]
    properties = {
        "title": f"Land cover of {job.files[0].stem}",
        **_times(job, created),
        "created": created,
        **_projection(grid),
        "processing:level": "L4",
        "processing:software": {"segkit": tags["segkit_version"]},
        "processing:lineage": f"Predicted from {', '.join(sorted({file.name for file in job.files}))} by "
        f"{' and '.join(names)} (windows of {tags['segkit_tile']} pixels, overlap {tags['segkit_overlap']}, "
        f"{tags['segkit_precision']})",
    }
    links = [*_scene_links(job, path), *_model_links(model, path)]
    extensions = ("projection", "raster", "classification", "processing")
    return make_item(path, properties, dict(_assets(job, path)), links, extensions, footprint=find_footprint(grid))


def _times(job: PredictionFiles, created: str) -> dict[str, Any]:
    """Return when the scene was acquired; if that is not known, when the map was made."""
    period = find_acquisition(job.files)
    if period is None:
        warnings.warn(
            f"{job.files[0]}: neither its metadata nor its name say when it was acquired, so its STAC item has "
            "the date of the map" + suggest("put the date into its name (scene_20240701.tif)"),
            stacklevel=2,
        )
        return {"datetime": created}
    start, end = map(format_time, period)
    return {"datetime": start} if start == end else {"datetime": None, "start_datetime": start, "end_datetime": end}


def _projection(grid: Grid) -> dict[str, Any]:
    """Return CRS, shape and transform of a grid."""
    fields: dict[str, Any] = {"proj:shape": [grid.height, grid.width]}
    if grid.has_location:
        fields |= {"proj:transform": list(grid.transform)[:6], "proj:bbox": list(grid.bounds)}
    if grid.crs is not None:
        code = grid.crs.to_epsg()
        fields["proj:code"] = None if code is None else f"EPSG:{code}"
        if code is None:
            fields["proj:wkt2"] = grid.crs.to_wkt(version="WKT2_2019")
    return fields


def _assets(job: PredictionFiles, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and content of the assets: each raster, or each of its parts, and the polygons."""
    for output in job.rasters:
        files = job.written(output)
        for file in files:
            key = output.name if not job.tiles else f"{output.name}-{file.stem}"
            yield key, _raster_asset(output, file, path, is_part=bool(job.tiles))
    if job.vector is not None:
        yield (
            "polygons",
            {
                "href": make_href(job.vector, path),
                "type": _VECTOR_TYPES[job.vector.suffix.lower()],
                "title": "Polygons of the map",
                "roles": ["data"],
            },
        )


def _raster_asset(output: OutputRequest, file: Path, path: Path, *, is_part: bool) -> dict[str, Any]:
    with open_raster(file) as dataset:
        bands = [_describe_band(dataset, band) for band in dataset.indexes]
        classes = _band_classes(dataset, is_part=is_part) if output == MAP else [None] * dataset.count
        projection = _projection(read_grid(dataset)) if is_part else {}
    core = ("data_type", "nodata")
    of_core = [
        {"name": name, **{key: band[key] for key in core if key in band}, **_as_classes(one)}
        for (name, band), one in zip(bands, classes, strict=True)
    ]
    return {
        "href": make_href(file, path),
        "type": _COG,
        "title": _TITLES[output.name],
        "roles": ["data"] if output == MAP else ["data", "metadata"],
        **projection,
        "bands": of_core,
        "raster:bands": [band | _as_classes(one) for (_, band), one in zip(bands, classes, strict=True)],
    }


def _as_classes(classes: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {} if classes is None else {"classification:classes": classes}


def _describe_band(dataset: DatasetReader, band: int) -> tuple[str, dict[str, Any]]:
    """Return the name of a band, and its values as the extension *raster* describes them."""
    nodata, scale, offset = (values[band - 1] for values in (dataset.nodatavals, dataset.scales, dataset.offsets))
    facts: dict[str, Any] = {"data_type": dataset.dtypes[band - 1], "sampling": "area"}
    if nodata is not None:
        facts["nodata"] = "nan" if np.isnan(nodata) else int(nodata) if float(nodata).is_integer() else nodata
    if (scale, offset) != (1, 0):
        facts |= {"scale": scale, "offset": offset}
    return dataset.descriptions[band - 1] or f"band {band}", facts


def _band_classes(dataset: DatasetReader, *, is_part: bool) -> list[list[dict[str, Any]] | None]:
    """Return the classes of each band of a map, with their pixels; these are known of the whole map only."""
    legend = Legend.from_dataset(dataset)
    rows = [{"name": one.name, "value": one.value, "color": one.color} for one in legend.classes]
    pixels = {} if is_part else json.loads(dataset.tags()["segkit_counts"])["pixels"]
    if not legend.multilabel:
        return [make_classes(rows, pixels)]
    absent = {"name": "absent", "value": 0, "color": None}
    return [make_classes([absent, row | {"value": 1}], pixels) for row in rows]


def _scene_links(job: PredictionFiles, path: Path) -> Iterator[dict[str, Any]]:
    """Yield links to the scene: to its items if it has some, else to its files."""
    files = list(dict.fromkeys(one for file in job.files for one in _sources(file)))
    for file in files[:_MAX_LISTED]:
        kind = {"type": ITEM_TYPE} if file.suffix.lower() == ITEM_SUFFIX else {}
        yield {"rel": "derived_from", "href": make_href(file, path), **kind, "title": f"Scene {file.name}"}


def _sources(file: Path) -> tuple[Path, ...]:
    """Return what a scene's file is linked as: the item or folder of a product, the item beside a file, or the file."""
    if isinstance(file, Product):
        return (Path(os.fspath(file)),)
    return tuple(one if isinstance(one, Remote) else next(iter(find_stac_items(one)), one) for one in list_files(file))


def _model_links(model: AnyModel, path: Path) -> Iterator[dict[str, Any]]:
    """Yield links to the models: to their items if they lie beside them, else to the files."""
    for one in members(model):
        if one.path is None:
            continue
        item = find_model_item(one.path)
        yield {
            "rel": "derived_from",
            "href": make_href(item or one.path, path),
            "type": ITEM_TYPE if item else "application/octet-stream",
            "title": f"Model {one.path.name}",
            "mlm:name": model_name(one.recipe.name),
        }
