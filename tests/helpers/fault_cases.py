"""Small files of each kind that segkit reads, and the commands that read them."""

import shutil
import warnings
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
import yaml
from exported import classical
from faults import Case
from maps import write_map
from products import random_bands, write_item, write_safe
from rasterio.errors import NotGeoreferencedWarning
from synthetic import TASKS, recipe_for, segmenter, write_pair, write_raster

MODEL, TILES = "model.safetensors", ("--tile", "32", "--overlap", "8", "--precision", "fp32", "--device", "cpu")
_GTIFF = {"driver": "GTiff", "tiled": True, "blockxsize": 32, "blockysize": 32}
# How scenes are written, by the name of the file.
SCENES = {
    "strips.tif": {"driver": "GTiff"},
    "deflate.tif": _GTIFF | {"compress": "deflate", "predictor": 2},
    "zstd.tif": _GTIFF | {"compress": "zstd"},
    "lzw.tif": _GTIFF | {"compress": "lzw"},
    "cog.tif": {"driver": "COG", "compress": "deflate", "blocksize": 32},
    "scene.jp2": {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"},
    "scene.png": {"driver": "PNG"},
    "scene.jpg": {"driver": "JPEG"},
    "scene.webp": {"driver": "WEBP", "lossless": "yes"},
    "scene.dat": {"driver": "ENVI"},
}
# Formats of zones, and of each the files that are damaged.
VECTORS = {
    "gpkg": ["zones.gpkg"],
    "shp": ["zones.shp", "zones.dbf", "zones.shx", "zones.prj", "zones.cpg"],
    "geojson": ["zones.geojson"],
    "fgb": ["zones.fgb"],
    "parquet": ["zones.parquet"],
    "gml": ["zones.gml"],
    "kml": ["zones.kml"],
}


def write_scene(path, size=(40, 44), **options):
    """Write three bands, of 8 bits in formats for pictures, in the format of the options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    is_picture = options["driver"] in ("PNG", "JPEG", "WEBP")
    pixels = random.integers(1, 250 if is_picture else 1000, (3, *size)).astype("uint8" if is_picture else "uint16")
    plain = write_raster(path.with_name("plain.tif"), pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rasterio.shutil.copy(plain, path, **options)
    plain.unlink()
    return path


def codes(size=(40, 44)):
    """Return a map of the classes 0, 3 and 9, in blocks."""
    drawn = np.random.default_rng(1).choice(np.array([0, 3, 9], np.uint8), (-(-size[0] // 8), -(-size[1] // 8)))
    return np.kron(drawn, np.ones((8, 8), np.uint8))[: size[0], : size[1]]


def zones():
    """Return two zones of the map."""
    left, top = 500_000, 9_000_000
    shapes = [
        shapely.box(left + 10, top - 300, left + 200, top - 10),
        shapely.box(left + 210, top - 390, left + 400, top),
    ]
    return geopandas.GeoDataFrame({"name": ["north", "south"]}, geometry=shapes, crs="EPSG:32622")


def raster_cases(folder):
    """Scenes in all formats, through `predict`; one through `info`."""
    for name, options in SCENES.items():
        own = folder / name
        write_scene(own / name, **options)
        classical(folder, "binary").save(own / MODEL)
        yield Case(name, own, name, ("predict", MODEL, name, "-o", "out/map.tif", *TILES))
    yield Case(
        "info deflate.tif", folder / "deflate.tif", "deflate.tif", ("info", "deflate.tif"), text=True, prints=True
    )
    yield Case(
        "scene.hdr",
        folder / "scene.dat",
        "scene.hdr",
        ("predict", MODEL, "scene.dat", "-o", "out/map.tif", *TILES),
        text=True,
    )
    own = folder / "vrt"
    write_scene(own / "part.tif", driver="GTiff")
    classical(folder, "binary").save(own / MODEL)
    with rasterio.open(own / "part.tif") as part:
        rasterio.shutil.copy(part, own / "scene.vrt", driver="VRT")
    text = (own / "scene.vrt").read_text()
    (own / "scene.vrt").write_text(text.replace(str(own) + "/", ""))
    run = ("predict", MODEL, "scene.vrt", "--vrt", "-o", "out/map.tif", *TILES)
    yield Case("scene.vrt", own, "scene.vrt", run, text=True)


def map_cases(folder):
    """Maps, through the commands for finished maps."""
    own = folder / "map"
    own.mkdir(parents=True)
    write_map(own / "map.tif", codes(), compress="deflate", **{k: v for k, v in _GTIFF.items() if k != "driver"})
    write_map(own / "old.tif", codes()[::-1].copy())
    zones().to_file(own / "zones.gpkg")
    for arguments in (
        ("vectorize", "map.tif", "out/map.gpkg", "--simplify", "20m"),
        ("areas", "map.tif", "zones.gpkg", "--by", "name", "-o", "out/areas.csv"),
        ("clean", "map.tif", "out/cleaned.tif", "--min-area", "70px"),
        ("change", "old.tif", "map.tif", "-o", "out/change.tif", "--table", "out/change.csv"),
        ("reclassify", "map.tif", "out/new.tif", "--merge", "land=3,9"),
    ):
        yield Case(f"map.tif {arguments[0]}", own, "map.tif", arguments)
    yield Case(
        "map.tif design",
        own,
        "map.tif",
        ("assess", "design", "map.tif", "-n", "60", "--min-per-stratum", "5", "-o", "out/p.gpkg"),
    )


def _write_recipe(path, raw):
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def recipe_cases(folder):
    """A recipe, a label raster, vector labels and a table of scenes, through `check`."""
    own = folder / "recipe"
    for seed, name in enumerate("ab"):
        write_pair(own, "multiclass", name, seed=seed, height=64, width=64)
    raw = recipe_for(own, "multiclass").to_dict()
    raw = {
        "name": "r",
        "task": TASKS["multiclass"],
        "data": {
            "train": {"images": "images", "labels": "labels"},
            "val": {"fraction": 0.25, "block": 32, "gap": 4},
            "ignore": [255],
        },
        "model": raw["model"],
        "train": {"tile_size": 32, "batch_size": 4, "epochs": 2, "precision": "fp32", "device": "cpu"},
    }
    _write_recipe(own / "recipe.yaml", raw)
    check = ("check", "recipe.yaml")
    yield Case("recipe.yaml", own, "recipe.yaml", check, text=True, prints=True)
    yield Case("label raster", own, "labels/a.tif", check, prints=True)
    yield Case("training image", own, "images/a.tif", check, prints=True)
    table = folder / "table"
    for seed, name in enumerate("ab"):
        write_pair(table, "multiclass", name, seed=seed, height=64, width=64)
    (table / "scenes.csv").write_text("image,label\nimages/a.tif,labels/a.tif\nimages/b.tif,labels/b.tif\n")
    raw["data"]["train"] = {"table": "scenes.csv"}
    _write_recipe(table / "recipe.yaml", raw)
    yield Case("scenes.csv", table, "scenes.csv", check, text=True, prints=True)


def vector_cases(folder):
    """Zones in all vector formats, through `areas`."""
    frame = zones()
    for ending, files in VECTORS.items():
        own = folder / ending
        own.mkdir(parents=True)
        write_map(own / "map.tif", codes())
        path = own / f"zones.{ending}"
        if ending == "parquet":
            frame.to_parquet(path)
        elif ending in ("geojson", "kml"):
            driver = "KML" if ending == "kml" else "GeoJSON"
            frame.to_crs(4326).rename(columns={"name": "Name" if ending == "kml" else "name"}).to_file(
                path, driver=driver
            )
        else:
            frame.to_file(path)
        field = "Name" if ending == "kml" else "name"
        for file in files:
            run = ("areas", "map.tif", path.name, "--by", field, "-o", "out/areas.csv")
            yield Case(
                f"{ending}: {file}", own, file, run, text=ending in ("kml", "gml") or file.endswith(("prj", "cpg"))
            )


def point_cases(folder):
    """Interpreted points, as a GeoPackage and as tables, through `assess estimate`."""
    own = folder / "points"
    own.mkdir(parents=True)
    whole = codes()
    write_map(own / "map.tif", whole)
    random = np.random.default_rng(2)
    rows, columns = random.integers(0, 40, 90), random.integers(0, 44, 90)
    seen = np.where(random.random(90) < 0.2, 3, whole[rows, columns])
    x, y = 500_005 + 10 * columns, 8_999_995 - 10 * rows
    frame = geopandas.GeoDataFrame({"ref_class": seen}, geometry=geopandas.points_from_xy(x, y), crs="EPSG:32622")
    frame.to_file(own / "points.gpkg")
    lines = [f"{a},{b},{c}" for a, b, c in zip(x, y, seen, strict=True)]
    (own / "points.csv").write_text("\n".join(["x,y,ref_class", *lines]) + "\n")
    (own / "names.csv").write_text("value,name,color\n0,background,#000000\n3,water,#0000ff\n9,forest,#00ff00\n")
    run = (
        "assess",
        "estimate",
        "map.tif",
        "points.csv",
        "--crs",
        "EPSG:32622",
        "--class-names",
        "names.csv",
        "-o",
        "out/e.json",
    )
    yield Case("points.csv", own, "points.csv", run, text=True)
    yield Case("names.csv", own, "names.csv", run, text=True)
    yield Case("points.gpkg", own, "points.gpkg", ("assess", "estimate", "map.tif", "points.gpkg", "-o", "out/e.json"))


def model_cases(folder):
    """Model files of a learner and of a network, through `info`, `predict` and `reclassify`."""
    own = folder / "learner"
    write_scene(own / "scene.tif", driver="GTiff")
    classical(folder, "binary").save(own / MODEL)
    predict = ("predict", MODEL, "scene.tif", "-o", "out/map.tif", *TILES)
    yield Case("learner predict", own, MODEL, predict)
    yield Case("learner info", own, MODEL, ("info", MODEL), prints=True)
    yield Case(
        "learner reclassify", own, MODEL, ("reclassify", MODEL, "out/new.safetensors", "--rename", "cleared=new")
    )
    own = folder / "network"
    write_scene(own / "scene.tif", driver="GTiff")
    model = segmenter(folder, "binary", encoder="tu-resnet10t")
    model._receptive_field = 40
    model.save(own / MODEL)
    content = (own / MODEL).read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    yield Case("network predict", own, MODEL, predict, head=head)


def journal_cases(folder):
    """What an interrupted prediction left, through the same `predict`."""
    from unittest import mock

    from faults import call

    from segkit.inference.journal import Journal

    own = folder / "journal"
    write_scene(own / "scene.tif", size=(200, 44), driver="GTiff")
    classical(folder, "binary").save(own / MODEL)
    (own / "out").mkdir()
    run = ("predict", MODEL, "scene.tif", "-o", "out/map.tif", "--probabilities", "out/p.tif", *TILES)
    with mock.patch.object(Journal, "remove"):
        done = call(run, own)
    assert done.code == 0, done.said
    for path in (own / "out").iterdir():
        if path.is_file():
            path.unlink()
    for path in sorted((own / "out" / "map.tif.bands").rglob("*")):
        if path.is_file() and path.name != ".lock":
            file = str(path.relative_to(own))
            yield Case(f"journal {'/'.join(Path(file).parts[2:])}", own, file, run, checked=True)


def product_cases(folder):
    """A Sentinel-2 product and a STAC item, through `info` and `predict`."""
    safe = folder / "safe"
    product = write_safe(safe, random_bands(["B02", "B03", "B04"], side=40))
    classical(folder, "binary").save(safe / MODEL)
    xml = f"{product.name}/MTD_MSIL2A.xml"
    band = str(next(product.rglob("*B03*.jp2")).relative_to(safe))
    predict = ("predict", MODEL, product.name, "-o", "out/map.tif", *TILES)
    yield Case("SAFE metadata", safe, xml, ("info", product.name), text=True, prints=True)
    yield Case("SAFE metadata predict", safe, xml, predict, text=True)
    yield Case("SAFE band", safe, band, predict)
    own = folder / "item"
    write_scene(own / "scene.tif", **_GTIFF | {"compress": "deflate"})
    assets = {"data": {"href": "./scene.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}}
    write_item(own / "item.json", assets, datetime="2024-07-01T00:00:00Z")
    classical(folder, "binary").save(own / MODEL)
    predict = ("predict", MODEL, "item.json", "-o", "out/map.tif", *TILES)
    yield Case("STAC item", own, "item.json", ("info", "item.json"), text=True, prints=True)
    yield Case("STAC item predict", own, "item.json", predict, text=True)
    yield Case("STAC item's raster", own, "scene.tif", (*predict, "--on-read-error", "nodata"), text=True)


def labelling_cases(folder):
    """Windows to label, through `labels` and `suggest`."""
    from faults import call
    from labelling import label

    own = folder / "windows"
    write_scene(own / "scene.tif", driver="GTiff")
    classical(folder, "binary").save(own / MODEL)
    small = ("--size", "16px", "-n", "2", "--tile", "32", "--overlap", "8", "--precision", "fp32", "--device", "cpu")
    made = call(("suggest", MODEL, "scene.tif", "-o", "done.gpkg", *small), own)
    assert made.code == 0, made.said
    label(own / "done.gpkg", zones().assign(**{"class": "cleared"}))
    yield Case("windows labels", own, "done.gpkg", ("labels", "done.gpkg", "-o", "out/labels.gpkg"))
    again = ("suggest", MODEL, "scene.tif", "--labelled", "done.gpkg", "-o", "out/more.gpkg", *small)
    yield Case("windows suggest", own, "done.gpkg", again)


def _train(folder, **keys):
    """Write scenes; return a recipe without unneeded work, with absolute paths, as the run folder stores them."""
    for seed, name in enumerate("ab"):
        write_pair(folder, "binary", name, seed=seed, height=64, width=64)
    raw = recipe_for(folder, "binary").to_dict()
    raw["train"] |= {"baselines": [], "fit_thresholds": False, "steps_per_epoch": 1, "batch_size": 2} | keys
    return raw


def run_cases(folder):
    """The cache of a training and its run folder, through `train`, `info` and `report`; and scores."""
    from faults import call

    own = folder / "cached"
    raw = _train(own)
    raw["model"] = {"architecture": "lda"}
    raw["data"]["cache"] = 1
    _write_recipe(own / "recipe.yaml", raw)
    (own / "out").mkdir()
    train, cache = ("train", "recipe.yaml", "-o", "out/run", "--force"), (("SEGKIT_CACHE", "out/cache"),)
    assert (made := call(train, own, cache)).code == 0, made.said
    shutil.move(own / "out/run", own / "run")
    for path in sorted(path for path in (own / "out/cache").glob("*/*") if path.name != ".lock")[:4]:
        file = str(path.relative_to(own))
        name = f"cache {path.name}"
        yield Case(name, own, file, train, checked=True, judged="model.safetensors", environment=cache)
    for name in ("metrics.json", "recipe.yaml", "model.safetensors"):
        yield Case(f"run {name} info", own, f"run/{name}", ("info", "run"), text=True, prints=True)
    report = ("report", "run/metrics.json", "-o", "out/report.html")
    yield Case("metrics.json report", own, "run/metrics.json", report, text=True)


def checkpoint_cases(folder):
    """The checkpoints and the log of an interrupted training, through `finish`, `train --resume` and `info`."""
    from faults import call

    own = folder / "checkpoints"
    raw = _train(own, epochs=2)
    _write_recipe(own / "recipe.yaml", raw)
    (own / "out").mkdir()
    train = ("train", "recipe.yaml", "-o", "out/run", "--force")
    assert (made := call(train, own)).code == 0, made.said
    for name in ("model.safetensors", "metrics.json"):
        (own / "out/run" / name).unlink()
    yield Case("log.csv info", own, "out/run/log.csv", ("info", "out/run"), text=True, prints=True)
    for name in ("best", "last"):
        file = f"out/run/checkpoints/{name}.ckpt"
        finish = ("finish", "out/run")
        yield Case(f"{name}.ckpt finish", own, file, finish, checked=True, judged="run/model.safetensors")
    more = (*train, "--resume", "--set", "train.epochs=3")
    yield Case("last.ckpt resume", own, file, more, checked=True, judged="run/model.safetensors")


def onnx_cases(folder):
    """An exported model, through `info` and `predict`."""
    from exported import moderate

    from segkit.exporting.write import export

    own = folder / "onnx"
    write_scene(own / "scene.tif", driver="GTiff")
    moderate(folder, "binary").save(folder / MODEL)
    export(folder / MODEL, own / "model.onnx")
    yield Case("onnx info", own, "model.onnx", ("info", "model.onnx"), prints=True)
    yield Case(
        "onnx predict",
        own,
        "model.onnx",
        ("predict", "model.onnx", "scene.tif", "-o", "out/map.tif", "--tile", "64", "--device", "cpu"),
    )


KINDS = {
    "rasters": raster_cases,
    "maps": map_cases,
    "models": model_cases,
    "recipes": recipe_cases,
    "vectors": vector_cases,
    "points": point_cases,
    "journals": journal_cases,
    "products": product_cases,
    "windows": labelling_cases,
    "runs": run_cases,
    "checkpoints": checkpoint_cases,
    "onnx": onnx_cases,
}
