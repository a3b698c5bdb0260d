"""Small scenes with separable classes, and recipes that train on them in seconds."""

from itertools import pairwise, product

import numpy as np
import rasterio
import torch
from affine import Affine

from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe

SMALLEST = {
    "architecture": "unet",
    "encoder": "tu-resnet10t",
    "options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}
TASKS = {
    "binary": {"type": "binary", "classes": [{"name": "cleared", "value": 7}]},
    "multiclass": {"type": "multiclass", "classes": [{"name": "water", "value": 3}, {"name": "forest", "value": 9}]},
    "multilabel": {"type": "multilabel", "classes": [{"name": "water", "value": 1}, {"name": "forest", "value": 2}]},
}
# Codes of the classes in the label raster of each kind; overlapping classes have a 0/1 band each.
_CODES = {"binary": (7,), "multiclass": (3, 9), "multilabel": (1, 1)}


def write_raster(path, pixels, *, nodata=None, crs="EPSG:32622", left=500_000):
    """Write (bands, H, W) or (H, W) as a GeoTIFF of 10 m pixels."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype, crs=crs, transform=Affine(10, 0, left, 0, -10, 9_000_000), nodata=nodata,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def cut_raster(path, folder, rows, columns):
    """Write a raster as files that end at these rows and columns; returns their folder."""
    folder.mkdir()
    with rasterio.open(path) as dataset:
        pixels, profile, tags = dataset.read(), dataset.profile, dataset.tags()
    spans = (pairwise([0, *inner, size]) for inner, size in zip((rows, columns), pixels.shape[1:], strict=True))
    for (top, bottom), (left, right) in product(*spans):
        shift = Affine.translation(left, top)
        part = profile | {"height": bottom - top, "width": right - left, "transform": profile["transform"] @ shift}
        with rasterio.open(folder / f"{top:02}_{left:02}.tif", "w", **part) as dataset:
            dataset.write(pixels[:, top:bottom, left:right])
            dataset.update_tags(**tags)
    return folder


def place(name):
    """Return the left edge of a scene of `write_pair`."""
    return 500_000 + 10_000 * (ord(name[0]) - ord("a"))


def patches(height, width, seed, side=16):
    """Return a random 0/1 mask of square patches."""
    drawn = np.random.default_rng(seed).integers(0, 2, (-(-height // side), -(-width // side)))
    return np.kron(drawn, np.ones((side, side), dtype=int))[:height, :width]


def write_pair(folder, kind, name, *, height=96, width=96, seed=0, level=500):
    """Write images/NAME.tif, three bands with a no-data corner, and labels/NAME.tif with an unlabelled edge (255).

    Values without a class are around `level`. Scenes with different names do not overlap.
    """
    random = np.random.default_rng(seed)
    masks = np.stack([patches(height, width, (seed, band)) for band in range(2)])
    if kind != "multilabel":
        masks[1] &= ~masks[0]
    codes = np.array(_CODES[kind])
    masks = masks[: len(codes)]
    labels = masks * codes[:, None, None]
    labels = labels if kind == "multilabel" else labels.sum(axis=0, keepdims=True)
    labels[:, :, -3:] = 255
    pixels = level + random.normal(0, 10, (3, height, width))
    pixels[: len(masks)] += 100 * masks
    pixels[:, :10, :10] = 0
    write_raster(folder / "images" / f"{name}.tif", pixels.astype(np.uint16), nodata=0, left=place(name))
    write_raster(folder / "labels" / f"{name}.tif", labels.astype(np.uint8), left=place(name))


def write_pairs(tmp_path_factory, **size):
    """Write two scenes, a and b, of each kind; return {kind: folder}."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in TASKS}
    for kind, folder in folders.items():
        for seed, name in enumerate(("a", "b")):
            write_pair(folder, kind, name, seed=seed, **size)
    return folders


def read_whole(area):
    """Read the full scene of an area: masked tile and targets, and a mask (H, W) of its windows."""
    window = area.sample.scene.grid.full_window
    tile, targets = area.sample.scene.read(window), area.labels.read(window)
    area.mask(tile, targets, window)
    in_windows = np.zeros(tile.valid.shape, dtype=bool)
    for each in area.windows:
        in_windows[each.toslices()] = True
    return tile, targets, in_windows


def recipe_for(folder, kind, **changes):
    """Return a recipe for the pairs in a folder; changes are merged into its sections."""
    raw = {
        "name": kind,
        "task": TASKS[kind],
        "data": {
            "train": {"images": str(folder / "images"), "labels": str(folder / "labels")},
            "val": {"fraction": 0.25, "block": 32, "gap": 4},
            "ignore": [255],
        },
        "model": SMALLEST,
        "train": {
            "tile_size": 32, "batch_size": 4, "epochs": 2, "steps_per_epoch": 3, "learning_rate": 0.01,
            "precision": "fp32", "device": "cpu",
        },
    }  # fmt: skip
    for part, values in changes.items():
        raw[part] = raw[part] | values
    return Recipe.from_dict(raw)


def segmenter(folder, kind="binary", bands=3, *, mean=None, std=None, pretrained=True, **model):
    """Return an untrained segmenter with varied logits."""
    torch.manual_seed(0)
    recipe = recipe_for(folder, kind, model=model)
    names = [f"b{band}" for band in range(1, bands + 1)]
    made = Segmenter(recipe, mean or [500.0] * bands, std or [50.0] * bands, names, pretrained=pretrained)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.02)
            module.running_var.uniform_(0.05, 0.3)
    return made.eval()
