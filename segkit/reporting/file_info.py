"""`segkit.info`: what a model, run, map or other file of a project is, as facts for programs and a card for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasterio.io import DatasetReader

from segkit.errors import DataError, GridError, RecipeError, SegkitError, UsageError, suggest
from segkit.io.class_table import OUTPUT_TAG, Legend, MapClass
from segkit.io.files import require_file
from segkit.io.grid import Grid, crs_name
from segkit.io.paths import FileSet, PathLike
from segkit.io.product import find_products, holds_products
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import Remote, as_path
from segkit.io.vector import is_vector, layer_names, read_layer
from segkit.runtime.tables import format_table

if TYPE_CHECKING:
    from segkit.models.model_file import Header

_SCORES = ("overall_accuracy", "mean_iou", "macro_f1", "ece")
_MAX_LISTED = 40  # rows of a table on the card; the facts hold all


@dataclass(frozen=True)
class FileInfo:
    """What a file or folder is.

    Parameters
    ----------
    kind
        "model", "exported model" (ONNX), "run", "folds", "map", "raster", "product", "products" or "vector".
    path
        The file or folder.
    facts
        JSON values by name; tables are lists of rows. Their names are listed in docs/commands.md.
    """

    kind: str
    path: Path
    facts: dict[str, Any]

    def render(self) -> str:
        """Return the facts as plain text."""
        lines = [f"{self.path}: {self.kind}"]
        for name, value in self.facts.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines += ["", *_table(name, value), ""]
            elif value not in (None, [], {}):
                lines.append(f"{name.replace('_', ' ')}: {_text(value)}")
        return "\n".join(lines).rstrip()


def info(path: PathLike, *, stac: PathLike | None = None, overwrite: bool = False) -> FileInfo:
    """Say what a model, run, map, raster, product or vector file is, from its metadata.

    Parameters
    ----------
    path
        A model file (.safetensors, or .onnx as `segkit.export` writes it), the folder of a run or of a
        cross-validation, a raster or its URL, files that lie side by side as a `segkit.Mosaic`, a Sentinel-2 SAFE
        folder, a file of STAC items, or a vector file.
    stac
        Where to write a STAC item (.json) that describes a model file.
    overwrite
        Whether to replace an existing item.

    Raises
    ------
    MissingFileError
        The file does not exist.
    SegkitError
        It is damaged.
    UsageError
        It is of another kind, or is no model file and `stac` is given.
    OutputExistsError
        The item exists, and `overwrite` is false.
    """
    file = as_path(path)
    kind, read = _kind(file)
    facts = read(file)
    if stac is not None:
        _write_item(kind, file, stac, overwrite=overwrite)
    return FileInfo(facts.pop("kind", kind), file, facts)


def _write_item(kind: str, file: Path, output: PathLike, *, overwrite: bool) -> None:
    if kind != "model":
        advice = suggest("of a run, name its model.safetensors", "a map's item is written by segkit predict --stac")
        raise UsageError(f"{file}: is no model file, and only these are described as STAC items here{advice}")
    from segkit.models.stac_model import write_model_item

    write_model_item(file, output, overwrite=overwrite)


def _kind(file: Path) -> tuple[str, Callable[[Path], dict[str, Any]]]:
    """Return what a path seems to be, and the function that reads it."""
    if isinstance(file, FileSet | Remote):
        return "raster", _raster
    require_file(file)
    if holds_products(file):
        return "product", _products
    if file.is_dir():
        return "run", _folder
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        return "model", _model
    if suffix == ".onnx":
        return "exported model", _onnx
    if suffix in (".yaml", ".yml"):
        raise UsageError(f"{file}: is a text file; of a recipe, segkit check shows the data")
    return ("vector", _vector) if is_vector(file) else ("raster", _raster)


def _model(file: Path) -> dict[str, Any]:
    from segkit.models.model_file import count_weights, read_header

    try:
        facts = _header_facts(read_header(file))
    except RecipeError as error:
        raise DataError(f"{file}: this segkit cannot use its header: {error}") from error
    return facts | {"weights": count_weights(file), "size_bytes": file.stat().st_size}


def _onnx(file: Path) -> dict[str, Any]:
    """Read the card of an exported model."""
    from segkit.models.graph_model import read_card
    from segkit.models.model_file import parse_header

    card = read_card(file)
    try:
        facts = _header_facts(parse_header(card["models"][0]))
        names = [one["name"] for one in card["task"]["classes"]]
        of_all_models = dict(zip(names, card["thresholds"] or (), strict=False))
        facts["classes"] = [one | {"threshold": of_all_models.get(one["name"])} for one in facts["classes"]]
        kept = {
            "decided": card["decided"],
            "window_size": card["window_size"],
            "quantization": card.get("quantization"),
        }
        return facts | kept | {"models": len(card["models"]), "size_bytes": file.stat().st_size}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{file}: its card is damaged ({error})") from error


def _header_facts(header: Header) -> dict[str, Any]:
    recipe = header.to_recipe()
    task = recipe.task
    per_class = header.metrics.get("per_class", {})
    thresholds = dict(zip((one.name for one in task.classes), task.thresholds or (), strict=False))
    classes = [
        {key: row[key] for key in ("name", "value", "color")}
        | {"threshold": thresholds.get(row["name"]), "iou": per_class.get(row["name"], {}).get("iou")}
        for row in task.legend
    ]
    bands = [
        {"name": name, "mean": mean, "std": std}
        for name, mean, std in zip(header.band_names, header.mean, header.std, strict=True)
    ]
    is_classical = recipe.model.is_classical
    before = None if header.output_classes is None else [one["name"] for one in header.recipe["task"]["classes"]]
    return {
        "name": recipe.name,
        "task": task.type,
        "head": task.head,
        "classes": classes,
        "classes_of_the_network": before,
        "bands": bands,
        "architecture": recipe.model.architecture,
        "encoder": None if is_classical else recipe.model.encoder,
        "tile_size": None if is_classical else recipe.train.tile_size,
        "receptive_field": header.receptive_field,
        "calibrated": header.calibration is not None,
        "area_of_applicability": header.training_pixels is not None,
        "started_from": None if header.initial_weights is None else header.initial_weights.source,
        "scores": _scores(header.metrics),
        "created": header.created,
        "versions": header.versions,
    }


def _scores(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: metrics[key] for key in _SCORES if key in metrics}


def _folder(folder: Path) -> dict[str, Any]:
    """Read the folder of a run or of a cross-validation."""
    from segkit.models.run_folder import LOG, MODEL, RECIPE, find_folds, read_log

    folds = find_folds(folder)
    if folds:
        rows = [
            {"fold": f"{fold} of {number}", **_scores(_metrics(run)), "finished": (run / MODEL).is_file()}
            for (fold, number), run in folds.items()
        ]
        return {"kind": "folds", "folds": rows}
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder}: is not the folder of a run, which holds {RECIPE}; name a file in it")
    from segkit.recipe.schema import Recipe

    recipe = Recipe.load(folder / RECIPE)
    epochs = read_log(folder / LOG) if (folder / LOG).is_file() else []
    metrics = _metrics(folder)
    return {
        "name": recipe.name,
        "task": recipe.task.type,
        "classes": [
            {"name": name, **{key: scores.get(key) for key in ("iou", "f1", "precision", "recall", "support")}}
            for name, scores in (metrics.get("per_class") or {}).items()
        ],
        "architecture": recipe.model.architecture,
        "encoder": None if recipe.model.is_classical else recipe.model.encoder,
        "epochs": None if recipe.model.is_classical else recipe.train.epochs,
        "finished_epochs": None if recipe.model.is_classical else len(epochs),
        "finished": (folder / MODEL).is_file(),
        "scores": _scores(metrics),
        "model": str(folder / MODEL) if (folder / MODEL).is_file() else None,
        "files": sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")),
    }


def _metrics(run: Path) -> dict[str, Any]:
    """Return the scores of a run; none if it is not finished."""
    from segkit.models.run_folder import METRICS, read_metrics

    return read_metrics(run) if (run / METRICS).is_file() else {}


def _raster(file: Path) -> dict[str, Any]:
    """Read a raster; one of class values with names is a map."""
    with open_raster(file) as dataset:
        grid, tags = read_grid(dataset), dataset.tags()
        legend = _legend(dataset)
        facts: dict[str, Any] = {"kind": "raster" if legend is None else "map"}
        facts |= {"holds": tags[OUTPUT_TAG]} if OUTPUT_TAG in tags else {}
        facts |= _grid_facts(grid)
        if legend is None:
            facts["bands"] = _bands(dataset)
        else:
            facts |= {"overlapping": legend.multilabel, "dtype": dataset.dtypes[0], "nodata": dataset.nodata}
            facts["classes"] = _map_classes(legend, tags)
        facts |= {
            key: tags[f"segkit_{key}"]
            for key in (
                "model",
                "tile",
                "overlap",
                "precision",
                "backend",
                "reclassified",
                "cleaned",
                "date",
                "version",
            )
            if f"segkit_{key}" in tags
        }
        if not isinstance(file, FileSet):
            facts |= _storage(dataset)
    if not isinstance(file, FileSet | Remote):
        facts["size_bytes"] = file.stat().st_size
    return facts


def _legend(dataset: DatasetReader) -> Legend | None:
    """Return the classes of a map; None if the raster is none, or no class has a name."""
    try:
        legend = Legend.from_dataset(dataset)
    except DataError:
        return None
    named = any(one.name != str(one.value) for one in legend.value_table.values())
    return legend if named else None


def _grid_facts(grid: Grid) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": grid.height, "columns": grid.width, "crs": crs_name(grid.crs)}
    if not grid.has_location:
        return facts | {"georeferenced": False}
    facts |= {"pixel_size": list(grid.pixel_size), "bounds": list(grid.bounds)}
    try:
        facts["pixel_metres"] = list(grid.pixel_metres())
    except (GridError, SegkitError):
        facts["pixel_metres"] = None
    return facts


def _bands(dataset: DatasetReader) -> list[dict[str, Any]]:
    names = dataset.descriptions
    return [
        {
            "band": band,
            "name": names[band - 1],
            "dtype": dataset.dtypes[band - 1],
            "nodata": dataset.nodatavals[band - 1],
            "scale": dataset.scales[band - 1],
            "offset": dataset.offsets[band - 1],
        }
        for band in dataset.indexes
    ]


def _map_classes(legend: Legend, tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the classes of a map; with pixels and hectares if it was predicted, which counts them."""
    try:
        counts = json.loads(tags.get("segkit_counts", "{}"))
    except (ValueError, RecursionError):
        counts = {}
    of_all = (counts.get(key) if isinstance(counts, dict) else None for key in ("pixels", "hectares"))
    pixels, hectares = (one if isinstance(one, dict) else {} for one in of_all)
    # A colour table has 256 colours, most of which no value of the map has.
    found = legend.classes or tuple(one for one in legend.value_table.values() if not _is_filling(one))
    return [
        {"name": one.name, "value": one.value, "color": one.color, "background": one.background}
        | ({"pixels": pixels.get(one.name), "hectares": hectares.get(one.name)} if pixels else {})
        for one in found
    ]


def _is_filling(one: MapClass) -> bool:
    return one.name == str(one.value) and one.color in (None, "#000000")


def _storage(dataset: DatasetReader) -> dict[str, Any]:
    compression = None if dataset.compression is None else dataset.compression.value
    return {
        "driver": dataset.driver,
        "compression": compression,
        "block": list(dataset.block_shapes[0]),
        "overviews": dataset.overviews(1),
    }


def _products(file: Path) -> dict[str, Any]:
    """Read the bands of a product; of several items, their names."""
    products = find_products(file) or []
    if len(products) != 1:
        return {"kind": "products", "items": [product.stem for product in products]}
    [product] = products
    with product.open_dataset(vrt=None) as dataset:
        grid = read_grid(dataset)
    return {"item": product.stem, "crs": crs_name(grid.crs), "bounds": list(grid.bounds)} | {
        "bands": [
            {
                "name": band.name,
                "other_names": list(band.other_names),
                "pixel_sizes": sorted(one.resolution for one in band.files if not one.problem),
                "scale": band.scale,
                "offset": band.offset,
                "added": band.shift,
                "nodata": band.nodata,
                "used": band.is_imagery,
            }
            for band in product.bands
        ],
        "missing_files": [one.problem for band in product.bands for one in band.files if one.problem],
    }


def _vector(file: Path) -> dict[str, Any]:
    import shapely

    rows = []
    for name in layer_names(file):
        layer = read_layer(file, None if file.suffix.lower() == ".parquet" else name)
        shapes = layer.geometries
        types = [] if shapes is None else sorted({one.geom_type for one in shapes if one is not None})
        bounds = None if shapes is None or not len(shapes) else shapely.total_bounds(shapes).tolist()
        rows.append(
            {
                "layer": name,
                "features": len(layer.attributes),
                "geometry": types,
                "crs": crs_name(layer.crs),
                "fields": [str(field) for field in layer.attributes],
                "bounds": bounds,
            }
        )
    return {"layers": rows, "size_bytes": file.stat().st_size}


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table without the columns in which no row has a value."""
    columns = [key for key in rows[0] if any(row.get(key) not in (None, [], {}) for row in rows)]
    header = [name.replace("_", " ") if at == 0 else key.replace("_", " ") for at, key in enumerate(columns)]
    yield format_table(header, [[_text(row.get(key)) for key in columns] for row in rows[:_MAX_LISTED]])
    if len(rows) > _MAX_LISTED:
        yield f"and {len(rows) - _MAX_LISTED} more"


def _text(value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 10_000 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(each) for each in value)
    return str(value)
