"""Scenes to predict, a network whose decisions are known, and what it must decide."""

import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from torch import nn

from segkit.errors import ModelFileError
from segkit.io.scene import Scene
from segkit.models.training_pixels import TrainingPixels
from segkit.recipe.imagery import Imagery, open_scene
from segkit.task import LandCoverClass, Task

UTM = Affine(10, 0, 500_000, 0, -10, 9_000_000)
MULTICLASS = Task("multiclass", (LandCoverClass("water", 4, "#0000ff"), LandCoverClass("forest", 9)))
TASKS = [
    MULTICLASS,
    Task("multiclass", (LandCoverClass("water", 255), LandCoverClass("forest", 300)), background=False),
    Task("multiclass", (LandCoverClass("water", 1), LandCoverClass("forest", 2)), head="sigmoid"),
    Task("binary", (LandCoverClass("loss", 7, threshold=0.4),), background_value=3),
    Task("binary", (LandCoverClass("loss", 1),), head="sigmoid"),
    Task("multilabel", (LandCoverClass("trees", 5), LandCoverClass("water", 6))),
    Task("multilabel", (LandCoverClass("trees", 5),)),
]
FAST = {"tile": 32, "overlap": 8, "precision": "fp32", "device": "cpu"}


class Network(nn.Module):
    """A stand-in for a Segmenter, in which each pixel speaks for itself."""

    def __init__(self, task=MULTICLASS, bands=2):
        super().__init__()
        self.task, self.stride, self.bands, self.path = task, 8, bands, None
        self.mix = nn.Conv2d(bands, task.channels, 1)
        self.mix.weight.data = torch.linspace(-2, 2, self.mix.weight.numel()).reshape(self.mix.weight.shape).sin() * 3
        self.mix.bias.data = torch.linspace(-0.1, 0.1, task.channels)
        self.calls = 0
        self.fixed_window_size, self.receptive_field, self.training_pixels = None, 0, None
        self.is_classical, self.backend = False, "torch"
        self.band_names = tuple(str(band) for band in range(1, bands + 1))
        self.imagery = Imagery()

    def open_scene(self, paths, *, vrt=False):
        scene = open_scene(paths, self.imagery, vrt=vrt)
        self.check_scene(scene)
        return scene

    def optimized_for_inference(self, device, precision):
        return self.eval().to(device)

    def fingerprint(self):
        return "test model"

    def check_scene(self, scene):
        if len(scene.bands) != self.bands:
            raise ModelFileError(f"{scene.paths[0]} has {len(scene.bands)} bands")

    def forward(self, pixels, valid):
        self.calls += 1
        return self.mix(pixels.where(valid[:, None], 500.0) / 500 - 1)


def with_training_pixels(model, low=1, high=1000):
    """Give a model three groups of training pixels with values between two numbers; return it."""
    random = np.random.default_rng(0)
    groups = [random.uniform(low, high, (30, model.bands)).astype(np.float32) for _ in range(3)]
    model.training_pixels = TrainingPixels.from_samples(groups, ["uint16"], [(1.0, 0.0)], None)
    model.mean = torch.full((1, model.bands, 1, 1), (low + high) / 2)
    return model


def write_scene(path, height=70, width=90, *, transform=UTM, crs="EPSG:32622", nodata=0, seed=0, bands=2):
    """A random scene, a tenth of whose pixels and one island hold no data."""
    random = np.random.default_rng(seed)
    pixels = random.integers(1, 1000, (bands, height, width), dtype=np.uint16)
    pixels[:, random.random((height, width)) < 0.1] = nodata
    pixels[:, height // 2 : height // 2 + 20, width // 3 : width // 3 + 40] = nodata
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint16"}
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, nodata=nodata) as dataset:
        dataset.write(pixels)
    return path


def expected(model, path):
    """Map values and probabilities of one pass over the whole scene, and where it is valid."""
    tile = Scene.from_files(path).read()
    with torch.inference_mode():
        logits = model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
        probabilities = model.task.probabilities(logits)
        targets = model.task.decide(probabilities)[0].numpy()
    return model.task.map_values(targets, tile.valid), probabilities[0].numpy(), tile.valid


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def write_area(path, *polygons, crs="EPSG:32622", to="EPSG:4326"):
    geopandas.GeoDataFrame(geometry=list(polygons), crs=crs).to_crs(to).to_file(path)
    return path


def placed(transform, *pixel_corners):
    """A polygon of corners in (column, row)."""
    return shapely.Polygon([transform @ corner for corner in pixel_corners])


class Neighbours(Network):
    """Looks around with 3 x 3 convolutions, so that each window says something else at its rim; may break."""

    def __init__(self, *, error=None, after=None, pause=0.0, log=None):
        super().__init__()
        torch.manual_seed(5)
        channels = self.task.channels
        self.mix = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1))
        self.mix[2].weight.data *= 5
        self.receptive_field = 2
        self.error, self.after, self.pause, self.log = error, after, pause, log

    def forward(self, pixels, valid):
        if self.calls == self.after:
            raise self.error
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(".")
        time.sleep(self.pause)
        return super().forward(pixels, valid)
